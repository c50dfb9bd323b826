"""Options and completions that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

ByOption = Annotated[str, typer.Option("--by", help="Metric column that ranks the solvers.")]
CsvOption = Annotated[
    Path | None, typer.Option("--csv", help="Write the table as CSV, one row per cell; '-' for stdout.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the table as JSON on stdout instead.")]


def complete(kind: str) -> Callable[[str], list[str]]:
    """Shell completion with the registered names of a kind; imports no plugin."""

    def names(incomplete: str) -> list[str]:
        from cryobench.registry import installed

        return [name for name in installed().names(kind) if name.startswith(incomplete)]

    return names
