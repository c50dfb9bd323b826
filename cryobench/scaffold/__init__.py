"""New plugin packages: `cryobench new solver NAME` writes a package that installs and satisfies its contract."""

from __future__ import annotations

import keyword
import re
import tempfile
from importlib.resources import files
from pathlib import Path

from cryobench.contract import CONTRACT
from cryobench.environment import version
from cryobench.errors import ParameterError, ResultsError, reason_of
from cryobench.registry import Registry, did_you_mean, installed

KINDS = {"solver": "solvers", "operator": "operators", "mask": "masks", "noise": "noises", "prior": "priors",
         "metric": "metrics", "source": "sources", "objective": "objectives", "encoder": "encoders"}  # fmt: skip
"""The kinds that `cryobench new` makes, and the registry name of each."""
EXAMPLES = {
    "solver": "cryobench run --solver {name} --operator sumpool:16 --images 0:2",
    "operator": "cryobench run --solver tikhonov --operator {name} --images 0:2",
    "mask": "cryobench run --solver tikhonov --operator sumpool:4,mask={name} --images 0:2",
    "noise": "cryobench run --solver tikhonov --operator sumpool:4 --noise {name} --images 0:2",
    "prior": "cryobench show {name}",
    "metric": "cryobench run --solver tikhonov --operator sumpool:4 --metric psnr --metric {name} --images 0:2",
    "source": "cryobench run --solver tikhonov --operator sumpool:4 --data {name} --images 0:2",
    "objective": "cryobench show {name}",
    "encoder": "cryobench show {name}",
}
"""A command that uses the new component."""

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

[project.entry-points."cryobench.contract"]
{contract} = "cryobench_{name}"

[tool.hatch.build.targets.wheel]
packages = ["cryobench_{name}.py"]
"""
README = """# cryobench-{dashed}

A {kind} for cryobench.

```
pip install ./cryobench-{dashed}
cryobench check {kinds}/{name}
{example}
```

`cryobench_{name}.py` holds the {kind}, a frozen dataclass; `pyproject.toml` registers it under the entry-point group
`cryobench.{kinds}`, and states the version of the contract; `pytest` tests the contract of every {kind}.
"""
TEST = '''"""The contract of the {kind}."""

from cryobench.testing import {kind}_contract

test_contract = {kind}_contract("{name}")
'''


def create(kind: str, name: str, parent: Path, registry: Registry | None = None) -> Path:
    """Write the package of a new component to `parent`/cryobench-NAME, completely or not at all; return the folder.

    Raises `ParameterError` for an unknown kind, an invalid or registered name, an existing folder, and a missing
    parent; `ResultsError` if the folder cannot be written.
    """
    if kind not in KINDS:
        raise ParameterError(f"no kind {kind!r}; {did_you_mean(kind, KINDS)}")
    name = name.replace("-", "_")
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ParameterError(
            f"{name!r} is not a valid name: expected lower-case letters, digits and _, starting with a letter"
        )
    if not parent.is_dir():
        raise ParameterError(f"{parent} is not a folder; create it first")
    registry = registry or installed()
    if registry.origins(KINDS[kind], name):
        owner = registry.origins(KINDS[kind], name)[0].distribution
        raise ParameterError(f"{kind} {name!r} is already registered by {owner}; choose another name")
    folder = parent / f"cryobench-{name.replace('_', '-')}"
    if folder.exists():
        raise ParameterError(f"{folder} already exists; remove it, or choose another name")
    words = {"kind": kind, "kinds": KINDS[kind], "name": name, "dashed": name.replace("_", "-"),
             "cls": name.title().replace("_", ""), "version": version(), "contract": CONTRACT}  # fmt: skip
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=parent) as made:
            new = Path(made) / folder.name
            (new / "tests").mkdir(parents=True)
            (new / "pyproject.toml").write_text(PYPROJECT.format(**words))
            (new / "README.md").write_text(README.format(**words, example=EXAMPLES[kind].format(**words)))
            (new / "tests" / f"test_{name}.py").write_text(TEST.format(**words))
            (new / f"cryobench_{name}.py").write_text(_module(kind, words["cls"], name))
            new.rename(folder)
    except OSError as error:
        raise ResultsError(f"{folder} cannot be written: {reason_of(error)}") from error
    return folder


def _module(kind: str, cls: str, name: str) -> str:
    text = (files("cryobench.scaffold") / "templates" / f"{kind}.py").read_text()
    return re.sub("Example(?!s)", cls, text.replace('"example"', f'"{name}"'))
