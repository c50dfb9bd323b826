"""YAML of bounded size and depth: PyYAML recurses into nested lists and mappings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cryobench.files import read_bounded

MAX_BYTES = 4_000_000
"""Maximum size of a YAML file."""
MAX_DEPTH = 32
"""Maximum number of lists and mappings inside each other."""
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader of libyaml, which is ten times as fast, if PyYAML was built with it."""


def compose(path: Path) -> yaml.Node | None:
    """The nodes of a YAML file, None if it is empty. Raises `OSError`, `ValueError` and `yaml.YAMLError`."""
    return yaml.compose(_text(path), Loader=_Loader)


def load(path: Path) -> Any:
    """A YAML file as plain data. Raises `OSError`, `ValueError` and `yaml.YAMLError`."""
    return yaml.load(_text(path), Loader=_Loader)


def _text(path: Path) -> str:
    """The text of the file, whose depth has been checked."""
    text, depth = read_bounded(path, MAX_BYTES).decode(), 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} lists and mappings inside each other"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
    return text
