"""Collects the records of a run and reports the finished cells if it ends early. Does not import torch."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cryobench.cli.output import note, stdout_for_results
from cryobench.cli.watch import note_kept
from cryobench.errors import ExecutorError, ParameterError, ResultsError
from cryobench.record import COSTS
from cryobench.registry import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from cryobench.cli.output import Outputs
    from cryobench.plan.grid import Plan
    from cryobench.record import Record
    from cryobench.results.store import Results

INTERRUPTED = 130


def ranked_by(by: str | None, plans: Sequence[Plan]) -> str:
    """The column to rank by: the given one, else that of the protocol of the run, else `psnr`, or the first metric of a
    run without it.

    Raises `ParameterError`, before any work, if the run will not have the column.
    """
    from cryobench.leaderboard.table import measured_by

    protocols = {plan.request.protocol for plan in plans}
    if by is None and len(protocols) == 1 and (name := protocols.pop()) is not None:
        from cryobench.plan.protocols import protocol

        return protocol(name).by
    measured = [column for plan in plans for column in plan.rankable]
    by = measured_by(by, measured)
    rankable = [*measured, *COSTS]
    if by not in rankable:
        raise ParameterError(f"--by {by!r} is not a column of this run; {did_you_mean(by, dict.fromkeys(rankable))}")
    return by


def collect(records: Iterable[Record], cells: int, store: Results) -> list[Record]:
    """Collect the records of a run. Finished cells are kept if it ends early (Ctrl-C, a full disk, lost workers)."""
    found: list[Record] = []

    def kept() -> str:
        finished = f"{len(found)} of {cells} cells are finished and kept in {store.given}"
        return f"{finished}; the same command continues from there"

    with stopping(kept):
        note_kept(kept())
        with stdout_for_results():
            for record in records:
                found.append(record)
                note_kept(kept())
    return found


def next_step(frame: pd.DataFrame, outputs: Outputs, folder: Path, available: int) -> str:
    """What a user may do after a run, on one line; '' where there is nothing to add.

    frame: its leaderboard. folder: its results. available: images of its smallest data set.
    """
    from cryobench.leaderboard.statistics.pairs import FEW_IMAGES
    from cryobench.leaderboard.statistics.power import images_to_test

    ran = frame[frame["rank"].notna() & (frame["n_images"] > 0)]
    if ran.empty:
        return ""
    groups = ran.index.get_level_values("group").tolist()
    largest, rows = Counter(groups).most_common(1)[0]
    untested = dict(zip(groups, ran["untested"].tolist(), strict=True))[largest]
    steps = []
    wanted = images_to_test(rows * (rows - 1) // 2)
    if untested.startswith(FEW_IMAGES) and wanted <= available:
        steps.append(f"{wanted} images (--images) would give p-values")
    if set(ran["data"]) == {"demo"}:
        steps.append("--data particles.star takes your own")
    if "html" not in outputs.formats:
        where = "" if folder == Path("runs") else f" {shlex.quote(str(folder))}"
        steps.append(f"`cryobench leaderboard{where} --format html=board.html` makes a page")
    return "; ".join(steps)


@contextmanager
def stopping(kept: Callable[[], str]) -> Iterator[None]:
    """End the program with a message if the block is interrupted by Ctrl-C, cannot save results or loses its workers.

    kept: what is saved at that moment, for the message.
    """
    try:
        yield
    except KeyboardInterrupt:
        note(f"\nstopped: {kept()}")
        raise typer.Exit(INTERRUPTED) from None
    except (ResultsError, ExecutorError) as error:
        note(f"error: {error}; {kept()}")
        raise typer.Exit(1) from None
