"""The cells of a plan, one after the other.

A cell that fails or is skipped never stops the others, and each record is saved before the next cell starts.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryobench import environment, results
from cryobench.core import Reconstruction
from cryobench.errors import CryobenchError, PluginError, said, told
from cryobench.frames import Recording
from cryobench.grid import SAVES, Cell, Plan
from cryobench.hooks import Hooks
from cryobench.record import Record
from cryobench.results import Results
from cryobench.runner.bench import Bench, Skip, measure
from cryobench.runner.ceiling import ceiling
from cryobench.runner.memory import BatchSizes
from cryobench.runner.observer import Observer
from cryobench.runner.saving import writers
from cryobench.runner.score import score
from cryobench.runner.solve import solve


@dataclass
class _Outcome:
    """A cell's record and what is to be saved beside it."""

    record: Record
    curves: dict[str, np.ndarray]
    files: dict[str, Callable[[Path], None]]


def run(
    plan: Plan,
    hooks: Hooks,
    *,
    store: Results | None = None,
    force: bool = False,
    observer: Observer | None = None,
) -> Iterator[Record]:
    """`execute`, with the hooks told of each event."""
    records = []
    hooks.call("cryobench_run_started", cells=len(plan.cells), options=dataclasses.asdict(plan.request))
    for record in execute(plan, store=store, force=force, observer=observer):
        records.append(record)
        hooks.call("cryobench_record_added", record=record)
        yield record
    hooks.call("cryobench_run_finished", records=records)


def execute(
    plan: Plan, *, store: Results | None = None, force: bool = False, observer: Observer | None = None
) -> Iterator[Record]:
    """Run the cells of a plan, yielding each record once it is saved in `store` (when there is one).

    A cell that is there already, with the files asked for, is reused unless `force`. A file that the solver gives
    nothing for is not missing: the record says so (`unavailable`).
    """
    observer = observer or Observer()
    sizes = BatchSizes(plan.batch, plan.device)
    remarks = _Remarks(plan.request.save, observer)
    bench: Bench | Exception | None = None
    bench_key: tuple[int, ...] = ()
    for cell in plan.cells:
        folder = store.find(cell.hash) if store is not None else None
        known = _known(folder, cell) if folder is not None else None
        saved = (_saved(folder) if folder is not None else set()) | set(known.unavailable if known is not None else ())
        if known is not None and not force and saved.issuperset(plan.save):
            remarks.unavailable(known)
            observer.cell_finished(known, reused=True)
            yield known
            continue
        observer.cell_started(cell)
        if bench_key != (key := (id(cell.dataset), id(cell.operator), id(cell.noise), cell.seed)):
            bench, bench_key = None, key
            try:
                bench = measure(cell, plan, sizes)
            except (Exception, SystemExit) as error:  # a broken operator or noise fails its cells, not the run
                bench = _as_exception(error)
        outcome = _run_cell(cell, plan, bench, sizes, observer, saved | plan.save)
        if isinstance(bench, Bench) and not bench.measures_the_same():
            outcome = _failed(outcome.record, PluginError("the solver or a metric changed the operator"))
            bench_key = ()  # the next cell gets a new one
        record = _save(store, outcome, known, observer)
        remarks.unavailable(record)
        observer.cell_finished(record, reused=False)
        yield record


def _known(folder: Path, cell: Cell) -> Record | None:
    """The finished record of this cell, under the names that this run uses for its parts."""
    try:
        record = results.read_record(folder)
    except CryobenchError:
        return None  # damaged: run it again, which replaces it
    if record.hash != cell.hash or record.status != "ok":
        return None
    return dataclasses.replace(record, **cell.labels)


def _saved(folder: Path) -> set[str]:
    """Which of the files that can be asked for lie in a cell's folder."""
    return {name for name, file in SAVES.items() if (folder / file).exists()}


class _Remarks:
    """Says of each solver, once, which of the files asked for it gives nothing for."""

    def __init__(self, asked: Collection[str], observer: Observer):
        self._asked, self._observer = asked, observer
        self._told: set[tuple[str, str]] = set()

    def unavailable(self, record: Record) -> None:
        for name in record.unavailable:
            if name in self._asked and not (record.floor or record.ceiling) and (name, record.solver) not in self._told:
                self._told.add((name, record.solver))
                self._observer.warn(f"{record.solver} offers no frames while it solves: no {name} of it is saved")


def _save(store: Results | None, outcome: _Outcome, known: Record | None, observer: Observer) -> Record:
    if store is None:
        return outcome.record
    if known is not None and outcome.record.status != "ok":
        observer.warn(f"{outcome.record.solver} on {outcome.record.operator}: the earlier result is kept")
        return outcome.record
    try:
        store.write(outcome.record, curves=outcome.curves, files=outcome.files)
    except CryobenchError:
        raise  # the results folder itself: going on would lose every cell that follows
    except Exception as error:
        outcome = _failed(outcome.record, error)
        store.write(outcome.record)
    return outcome.record


def _run_cell(
    cell: Cell,
    plan: Plan,
    bench: Bench | Exception | None,
    sizes: BatchSizes,
    observer: Observer,
    save: Collection[str],
) -> _Outcome:
    record = _record(cell, plan)
    default_dtype = torch.get_default_dtype()
    try:
        if not isinstance(bench, Bench):
            raise bench or Skip("nothing was measured")
        _describe_problem(record, cell, bench)
        reconstruction, course = _answer(cell, plan, bench, record, sizes, observer, watched="animation" in save)
        curves = score(plan.metrics, bench.case, reconstruction, record, sizes)
        files, record.unavailable = writers(save, cell, bench.case, reconstruction, course)
    except Skip as skip:
        record.status, record.reason = "skipped", str(skip)
        return _Outcome(record, {}, {})
    except (Exception, SystemExit) as error:  # whatever a plugin raises marks this cell and leaves the others alone
        return _failed(record, error)
    finally:
        torch.set_default_dtype(default_dtype)
    return _Outcome(record, curves, files)


def _answer(
    cell: Cell, plan: Plan, bench: Bench, record: Record, sizes: BatchSizes, observer: Observer, *, watched: bool
) -> tuple[Reconstruction, Recording | None]:
    """The images of a cell, and the course of the first if it is `watched` and there is one."""
    if cell.solver is None:
        return ceiling(cell, bench, sizes), None
    return solve(cell, cell.solver, plan, bench, record, sizes, observer, watched=watched)


def _failed(record: Record, error: BaseException) -> _Outcome:
    nothing: dict[str, Any] = {"values": {}, "columns": [], "solver_info": {}, "unmeasured": {}}
    failed = dataclasses.replace(record, status="failed", reason=describe(error), **nothing)
    return _Outcome(failed, {}, {})


def _record(cell: Cell, plan: Plan) -> Record:
    """The record of a cell before it has run."""
    return Record(
        hash=cell.hash,
        status="ok",
        reason="",
        solver=cell.labels["solver"],
        operator=cell.labels["operator"],
        noise=cell.labels["noise"],
        data=cell.labels["data"],
        seed=cell.seed,
        images=list(cell.dataset.ids),
        floor=cell.floor,
        ceiling=cell.ceiling,
        resolved=cell.resolved,
        problem=_told_of(cell),
        environment=_environment(plan, cell),
    )


def _told_of(cell: Cell) -> dict[str, Any]:
    """What a record says of the images, and of those that its priors were trained on."""
    data = cell.dataset
    told: dict[str, Any] = {"data_digest": data.digest, "image_shape": list(data.shape), "within": cell.within}
    if cell.radii is not None:
        told["within_radius_pixels"] = list(cell.radii)
    if data.origin:
        told["origin"] = dict(data.origin)
    if cell.trained_on:
        told["trained_on"] = cell.trained_on
    return told


def _describe_problem(record: Record, cell: Cell, bench: Bench) -> None:
    operator = bench.operator
    record.compression = operator.effective_compression
    record.problem |= {
        "rank": operator.rank,
        "nominal_compression": operator.nominal_compression,
        "measurement_shape": list(operator.measurement_shape),
        "pixel_size_angstrom": list(cell.dataset.pixel_size),
        "scale": [list(scale) for scale in cell.dataset.scale],
    }
    record.timing["setup_seconds"] = bench.setup_seconds


def _as_exception(error: BaseException) -> Exception:
    """SystemExit as an ordinary exception: a plugin must not end the program."""
    return error if isinstance(error, Exception) else PluginError(describe(error))


def describe(error: BaseException) -> str:
    """An exception as one line: its type, its message and the line that raised it."""
    if isinstance(error, CryobenchError):
        return said(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return told(error) + where


def _environment(plan: Plan, cell: Cell) -> dict[str, Any]:
    device = str(plan.device)
    return {
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "device": device if plan.device.type == "cpu" else f"{device} {torch.cuda.get_device_name(plan.device)}",
        "dtype": plan.request.dtype,
        "version": environment.version(),
        "plugins": cell.plugins,
        "versions": environment.versions(),
        "hardware": environment.hardware(),
        "git_commit": plan.git_commit,
    }
