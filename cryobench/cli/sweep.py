"""`cryobench sweep`: the grid of a suite file, and its published results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryobench.cli.options import BatchOption, ByOption, DeviceOption, QuietOption

if TYPE_CHECKING:
    from cryobench.record import Record
    from cryobench.suite import Absent
    from cryobench.suite_file import Reference, SuiteFile


def sweep(
    suite: Annotated[Path, typer.Argument(help="A suite (.yaml): solvers, operators, noises, data, images, seeds.")],
    out: Annotated[
        Path | None, typer.Option(help="Results folder. A cell found there is not run again. [default: runs/SUITE]",
                                  show_default=False)
    ] = None,
    by: ByOption = "psnr",
    device: DeviceOption = "cpu",
    batch: BatchOption = "auto",
    save: Annotated[
        list[str] | None, typer.Option(help="As in `run`: reconstructions, figures. Repeat for more.",
                                       show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run cells again that are there already.")] = False,
    publish: Annotated[
        Path | None, typer.Option(help="Also write the results to SUITE.csv and SUITE.md in this folder.")
    ] = None,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Run a suite: every solver on every operator, noise and data set it lists.

    Example: cryobench sweep leaderboards/fourier.yaml --publish leaderboards
    """
    from cryobench import suite as suites
    from cryobench.cli.output import note, print_leaderboard
    from cryobench.cli.running import run_and_show
    from cryobench.files import check_writable_file
    from cryobench.registry import installed
    from cryobench.results import Results
    from cryobench.suite_file import read_suite

    asked = read_suite(suite)
    plans, absent = suites.plans(asked, installed(), device=device, batch=batch, save=save or ())
    references = suites.references(asked, installed())
    files = {} if publish is None else {ending: publish / f"{suite.stem}.{ending}" for ending in ("csv", "md")}
    for path in files.values():
        check_writable_file(path)
    store = Results(out or Path("runs") / suite.stem)
    store.check_writable()
    show = partial(print_leaderboard, by=by, csv=None, as_json=False, find=store.find)
    records = run_and_show(plans, store, show, force=force, quiet=quiet)
    for grid in absent:
        note(f"not run: {', '.join(grid.solvers)} on {', '.join(grid.operators)}: {grid.reason} ({grid.error})")
    if files:
        _publish(asked, records, references, absent, by, files)
        note(f"published in {' and '.join(map(str, files.values()))}")
    if any(record.status == "failed" for record in records):
        raise typer.Exit(1)


def _publish(
    suite: SuiteFile,
    records: Sequence[Record],
    references: Sequence[Reference],
    absent: Sequence[Absent],
    by: str,
    files: Mapping[str, Path],
) -> None:
    """Write the leaderboard as CSV and as a page, each whole."""
    from datetime import UTC, datetime

    from cryobench.environment import hardware, version
    from cryobench.files import whole_file
    from cryobench.leaderboard.published import beside, report, with_published
    from cryobench.leaderboard.render import to_csv
    from cryobench.leaderboard.table import leaderboard

    frame = leaderboard(records, by=by)
    machine = hardware()
    devices = [str(machine[name]) for name in machine if name.startswith("cuda")]
    where = f"{machine['processor']} ({machine['cores']} cores){''.join(f', {device}' for device in devices)}"
    made = f"Made on {datetime.now(UTC):%Y-%m-%d} with cryobench {version()} on {where} by"
    command = f"cryobench sweep {suite.path} --publish {files['md'].parent}"
    numbers = beside(references, records, absent)
    texts = {"csv": to_csv(with_published(frame, numbers)), "md": report(suite, frame, numbers, absent, made, command)}
    for ending, path in files.items():
        with whole_file(path) as beside_it:
            beside_it.write_text(texts[ending], encoding="utf-8")
