"""The programs in tools/ that write the site, as modules, and the components that it describes."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from cryobench.registry import installed

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def site_tool(name: str) -> ModuleType:
    """A program, with the modules beside it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(TOOLS)
        return importlib.import_module(name)


def own(kind: str) -> list[str]:
    """The names of the components of a kind that are part of cryobench."""
    registry = installed()
    return [name for name in registry.names(kind) if registry.origins(kind, name)[0].distribution == "cryobench"]
