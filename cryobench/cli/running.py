"""Plans are run, with progress, and what was finished is said. Imports no torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from cryobench.cli.output import note
from cryobench.cli.progress import ProgressObserver
from cryobench.errors import ResultsError

if TYPE_CHECKING:
    from cryobench.grid import Plan
    from cryobench.record import Record
    from cryobench.results import Results

INTERRUPTED = 130


def run_and_show(
    plans: Sequence[Plan], store: Results, show: Callable[[list[Record]], None], *, force: bool, quiet: bool
) -> list[Record]:
    """Run plans one after the other and show the records. What is finished is kept whatever ends it early: Ctrl-C, a
    full disk."""
    from cryobench import runner
    from cryobench.hooks import Hooks

    hooks = Hooks(lambda message: note(f"warning: {message}")).load_installed()
    cells = sum(len(plan.cells) for plan in plans)
    kept = f"cells are finished and kept in {store.root}; the same command goes on from there"
    records: list[Record] = []
    # what plugins print must not end up among the results
    with ProgressObserver(cells, quiet) as observer, contextlib.redirect_stdout(sys.stderr):
        try:
            for plan in plans:
                for record in runner.run(plan, hooks, store=store, force=force, observer=observer):
                    records.append(record)
        except KeyboardInterrupt:
            note(f"\nstopped: {len(records)} of {cells} {kept}")
            raise typer.Exit(INTERRUPTED) from None
        except ResultsError as error:
            note(f"error: {error}; {len(records)} of {cells} {kept}")
            raise typer.Exit(1) from None
    show(records)
    if not quiet:
        known = f", {observer.reused} of them there already (--force runs them again)" if observer.reused else ""
        note(f"{cells} cells in {store.root}{known}")
    return records
