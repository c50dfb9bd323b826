"""New plugin packages: `cryobench new solver NAME` writes one that installs, keeps its contract and is a row."""

from __future__ import annotations

import keyword
import re
import tempfile
from importlib.resources import files
from pathlib import Path

from cryobench.environment import version
from cryobench.errors import ParameterError, ResultsError, said
from cryobench.registry import Registry, did_you_mean, installed

KINDS = {"solver": "solvers", "operator": "operators", "mask": "masks", "noise": "noises", "prior": "priors",
         "metric": "metrics", "source": "sources"}  # fmt: skip
"""What `cryobench new` makes, and the registry kind of each."""
TRIES = {
    "solver": "cryobench run --solver {name} --operator sumpool:16 --images 0:2",
    "operator": "cryobench run --solver tikhonov --operator {name} --images 0:2",
    "mask": "cryobench run --solver tikhonov --operator sumpool:4,mask={name} --images 0:2",
    "noise": "cryobench run --solver tikhonov --operator sumpool:4 --noise {name} --images 0:2",
    "prior": "cryobench show {name}",
    "metric": "cryobench run --solver tikhonov --operator sumpool:4 --metric psnr --metric {name} --images 0:2",
    "source": "cryobench run --solver tikhonov --operator sumpool:4 --data {name} --images 0:2",
}
"""The command that shows a new component at work."""

PYPROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "cryobench-{dashed}"
version = "0.1.0"
description = "{name}, a {kind} for cryobench."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["cryobench>={version}"]

[project.entry-points."cryobench.{kinds}"]
{name} = "cryobench_{name}:{cls}"

[tool.hatch.build.targets.wheel]
packages = ["cryobench_{name}.py"]
"""
README = """# cryobench-{dashed}

A {kind} for cryobench.

```
pip install ./cryobench-{dashed}
cryobench check {kinds}/{name}
{tries}
```

`cryobench_{name}.py` holds the {kind}, a frozen dataclass; `pyproject.toml` registers it under the entry-point group
`cryobench.{kinds}`; `pytest` holds it to the contract of every {kind}.
"""
TEST = '''"""The {kind} keeps its contract."""

from cryobench.testing import {kind}_contract

test_contract = {kind}_contract("{name}")
'''


def create(kind: str, name: str, parent: Path, registry: Registry | None = None) -> Path:
    """Write the package of a new component into `parent`/cryobench-NAME, whole or not at all; the folder.

    Raises `ParameterError` for a kind or a name that cannot be, or is taken, and for a folder that is there already, or
    has nowhere to be; `ResultsError` where it cannot be written.
    """
    if kind not in KINDS:
        raise ParameterError(f"no kind {kind!r}; {did_you_mean(kind, KINDS)}")
    name = name.replace("-", "_")
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ParameterError(f"{name!r} is no name: wanted small letters, digits and _, from a letter on")
    if not parent.is_dir():
        raise ParameterError(f"{parent} is no folder; make it first")
    registry = registry or installed()
    if registry.origins(KINDS[kind], name):
        owner = registry.origins(KINDS[kind], name)[0].distribution
        raise ParameterError(f"{kind} {name!r} is there already, from {owner}; choose another name")
    folder = parent / f"cryobench-{name.replace('_', '-')}"
    if folder.exists():
        raise ParameterError(f"{folder} is there already; remove it, or choose another name")
    words = {"kind": kind, "kinds": KINDS[kind], "name": name, "dashed": name.replace("_", "-"),
             "cls": name.title().replace("_", ""), "version": version()}  # fmt: skip
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=parent) as made:
            new = Path(made) / folder.name
            (new / "tests").mkdir(parents=True)
            (new / "pyproject.toml").write_text(PYPROJECT.format(**words))
            (new / "README.md").write_text(README.format(**words, tries=TRIES[kind].format(**words)))
            (new / "tests" / f"test_{name}.py").write_text(TEST.format(**words))
            (new / f"cryobench_{name}.py").write_text(_module(kind, words["cls"], name))
            new.rename(folder)
    except OSError as error:
        raise ResultsError(f"{folder} cannot be written: {said(error)}") from error
    return folder


def _module(kind: str, cls: str, name: str) -> str:
    text = (files("cryobench.scaffold") / "templates" / f"{kind}.py").read_text()
    return text.replace('"example"', f'"{name}"').replace("Example", cls)
