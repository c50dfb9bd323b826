"""Cells are run, and what was finished is said, whatever ends it early. Imports no torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

from cryobench.cli.output import note
from cryobench.errors import ExecutorError, ParameterError, ResultsError
from cryobench.record import COSTS
from cryobench.registry import did_you_mean

if TYPE_CHECKING:
    from cryobench.plan.grid import Plan
    from cryobench.record import Record
    from cryobench.results.store import Results

INTERRUPTED = 130


def check_by(by: str, plans: Sequence[Plan]) -> None:
    """Refuse, before any work, a column to rank by that there will not be."""
    rankable = [*(column for plan in plans for column in plan.rankable), *COSTS]
    if by not in rankable:
        raise ParameterError(f"--by {by!r} is no column of this run; {did_you_mean(by, dict.fromkeys(rankable))}")


def collect(records: Iterable[Record], cells: int, store: Results) -> list[Record]:
    """All records of so many cells, as they are finished. What is finished is kept whatever ends it early: Ctrl-C, a
    full disk, workers that are gone."""
    kept = f"cells are finished and kept in {store.root}; the same command goes on from there"
    found: list[Record] = []
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what plugins print must not end up among the results
            for record in records:
                found.append(record)
    except KeyboardInterrupt:
        note(f"\nstopped: {len(found)} of {cells} {kept}")
        raise typer.Exit(INTERRUPTED) from None
    except (ResultsError, ExecutorError) as error:
        note(f"error: {error}; {len(found)} of {cells} {kept}")
        raise typer.Exit(1) from None
    return found
