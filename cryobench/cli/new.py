"""`cryobench new`: creates the package of a new component."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def new(
    kind: Annotated[
        str, typer.Argument(help="solver, operator, mask, noise, prior, metric, source, objective or encoder.")
    ],
    name: Annotated[str, typer.Argument(help="Its name in specs, such as steepest.")],
    into: Annotated[Path, typer.Option("--into", help="Folder in which the package is created.")] = Path(),
) -> None:
    """Create a package with a new component, which can be installed and passes the tests of its contract."""
    from cryobench import scaffold
    from cryobench.cli.output import say

    folder = scaffold.create(kind, name, into)
    name = name.replace("-", "_")
    say(
        f"{folder}\n\n"
        f"  pip install -e {folder}\n"
        f"  cryobench check {scaffold.KINDS[kind]}/{name}\n"
        f"  {scaffold.EXAMPLES[kind].format(name=name)}\n\n"
        f"Then write your {kind} in {folder / f'cryobench_{name}.py'}."
    )
