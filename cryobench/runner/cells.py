"""Runs the cells of a plan one after the other.

A failed or skipped cell does not stop the others, and each record is saved before the next cell starts.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryobench import environment
from cryobench.core import Case, Reconstruction, Scale, Solver
from cryobench.core.meters import Stopwatch
from cryobench.errors import CryobenchError, PluginError, ResultsError, Unsupported, described, one_line, reason_of
from cryobench.global_state import restored
from cryobench.hooks import Hooks
from cryobench.plan.grid import SAVES, Cell, Plan
from cryobench.record import Record, plain
from cryobench.results.store import Results, read_record
from cryobench.runner.ceiling import ceiling
from cryobench.runner.measured_problem import AT_ONCE, MeasuredProblem, measure
from cryobench.runner.memory import BatchSizes
from cryobench.runner.observer import Observer
from cryobench.runner.saving import writers
from cryobench.runner.scoring import Scores, score
from cryobench.runner.solving import Solved, isolated, solve


@dataclass
class _Outcome:
    """The record of a cell and the files to save with it."""

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
    """`execute`, calling the hooks for each event."""
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
    """Run the cells of a plan, yielding each record once it is saved in `store`, if given.

    A finished cell that has the requested files is reused unless `force`.
    """
    observer = observer or Observer()
    runner = CellRunner(plan, store, observer)
    warnings = MissingFileWarnings(plan.request.save, observer)
    for cell in plan.cells:
        record = None if force else runner.finished(cell)
        reused = record is not None
        if record is None:
            observer.cell_started(cell)
            record = runner.run(cell)
        warnings.check(record)
        observer.cell_finished(record, reused=reused)
        yield record


class CellRunner:
    """Runs single cells of a plan. Consecutive cells of the same problem share its set-up."""

    def __init__(self, plan: Plan, store: Results | None = None, observer: Observer | None = None):
        self._plan, self._store = plan, store
        self._observer = observer or Observer()
        self._sizes = BatchSizes(plan.batch, plan.device)
        self._measured: MeasuredProblem | BaseException | None = None
        self._measured_key: tuple[int, ...] = ()
        self.seconds: dict[str, float] = dict.fromkeys(
            ("setup", "network", "operators", "solver", "metrics", "writing"), 0.0
        )
        """Total time by activity. network: forward passes. solver: time of solvers without network and operators."""

    def finished(self, cell: Cell, *, include_failed: bool = False) -> Record | None:
        """The stored record of a finished cell that has the requested files, or None.

        include_failed: include failed and skipped cells. A file that the solver does not provide (`unavailable` in the
        record) does not count as missing.
        """
        folder = self._folder(cell)
        record = _known(folder, cell) if folder is not None else None
        if record is None or (record.status != "ok" and not include_failed):
            return None
        complete = record.status != "ok" or self._plan.save <= _saved(folder) | set(record.unavailable)
        return record if complete else None

    def run(self, cell: Cell) -> Record:
        """Run a cell and save its record. A failure is recorded; `ResultsError` is raised if saving is impossible."""
        with restored():  # a cell must not affect the next
            return self._run(cell)

    def _run(self, cell: Cell) -> Record:
        folder = self._folder(cell)
        known = _known(folder, cell) if folder is not None else None
        if known is None and self._store is not None and self._store.has_other_code(_record(cell, self._plan)):
            self._observer.warn(f"{cell.labels['solver']} on {cell.labels['operator']}: its code has changed since the "
                                "last run, so it is run again")  # fmt: skip
        save = self._plan.save | _saved(folder) | set(known.unavailable if known is not None else ())
        measured = self._measured_problem(cell)
        outcome = _run_cell(cell, self._plan, measured, self._sizes, self._observer, save)
        if isinstance(measured, MeasuredProblem) and not _is_unchanged(measured, cell.seed):
            outcome = _failed(outcome.record, PluginError("the solver or a metric changed the operator"))
            self._measured_key = ()  # rebuild the operator for the next cell
        start = time.perf_counter()
        record = _save(self._store, outcome, known, self._observer)
        self._add(record, writing=time.perf_counter() - start)
        return record

    def _add(self, record: Record, writing: float) -> None:
        timing = {name.removesuffix("_seconds"): seconds for name, seconds in record.timing.items()}
        network, operators = timing.get("network", 0.0), timing.get("operator", 0.0)
        self.seconds["network"] += network
        self.seconds["operators"] += operators
        self.seconds["solver"] += timing.get("solver", 0.0) - network - operators
        self.seconds["metrics"] += timing.get("score", 0.0)
        self.seconds["writing"] += writing

    def _folder(self, cell: Cell) -> Path | None:
        return self._store.find(cell.hash) if self._store is not None else None

    def _measured_problem(self, cell: Cell) -> MeasuredProblem | BaseException | None:
        """The measured problem of a cell, reused from the last cell if it is the same, or the exception."""
        key = (id(cell.dataset), id(cell.operator), id(cell.noise), cell.seed)
        if self._measured_key != key:
            self._measured, self._measured_key = None, key
            start = time.perf_counter()
            try:
                with isolated(cell.seed):
                    self._measured = measure(cell, self._plan, self._sizes)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a broken operator or noise fails its cells, not the run
                self._measured = error
            self.seconds["setup"] += time.perf_counter() - start
        return self._measured


def _is_unchanged(measured: MeasuredProblem, seed: int) -> bool:
    with isolated(seed):
        return measured.is_unchanged()


def _known(folder: Path, cell: Cell) -> Record | None:
    """The stored record of this cell, with the labels of this run."""
    try:
        record = read_record(folder)
    except CryobenchError:
        return None  # damaged: the cell is run again and replaced
    return dataclasses.replace(record, **cell.labels) if record.hash == cell.hash else None


def _saved(folder: Path | None) -> set[str]:
    """Which of the optional files (`--save`) exist in a cell's folder, if it has one."""
    return set() if folder is None else {name for name, file in SAVES.items() if (folder / file).exists()}


class MissingFileWarnings:
    """Warns once per solver about requested files that it does not provide."""

    def __init__(self, requested: Collection[str], observer: Observer):
        self._requested, self._observer = requested, observer
        self._reported: set[tuple[str, str]] = set()

    def check(self, record: Record) -> None:
        for name in record.unavailable:
            reported = (name, record.solver) in self._reported
            if name in self._requested and not (record.floor or record.ceiling or reported):
                self._reported.add((name, record.solver))
                self._observer.warn(f"{record.solver} does not record its iterates: its {name} is not saved")


def _save(store: Results | None, outcome: _Outcome, known: Record | None, observer: Observer) -> Record:
    if store is None:
        return outcome.record
    if known is not None and known.status == "ok" != outcome.record.status:
        observer.warn(f"{outcome.record.solver} on {outcome.record.operator}: the earlier result is kept")
        return outcome.record
    try:
        with restored():
            store.write(outcome.record, curves=outcome.curves, files=outcome.files)
    except (ResultsError, KeyboardInterrupt):
        raise  # the results folder is unusable: all further cells would be lost
    except BaseException as error:  # of the operator, which figures apply
        outcome = _failed(outcome.record, error)
        store.write(outcome.record)
    return outcome.record


def _run_cell(
    cell: Cell,
    plan: Plan,
    measured: MeasuredProblem | BaseException | None,
    sizes: BatchSizes,
    observer: Observer,
    save: Collection[str],
) -> _Outcome:
    record = _record(cell, plan)
    try:
        if not isinstance(measured, MeasuredProblem):
            raise measured or Unsupported("nothing was measured")
        _describe_problem(record, cell, measured)
        if cell.solver is None:
            with isolated(cell.seed):
                reconstruction, iterates = ceiling(cell, measured, sizes), None
        else:
            solved = _solved(cell, cell.solver, measured, sizes, observer, record_iterates="animation" in save)
            _describe_costs(record, solved)
            reconstruction, iterates = solved.reconstruction, solved.iterates
        with Stopwatch(plan.device) as watch, isolated(cell.seed):
            scores = _scored(plan, measured, reconstruction, sizes, against_clean=cell.solver is not None)
        record.timing["score_seconds"] = watch.seconds
        record.values, record.unmeasured = scores.values, scores.unmeasured
        record.columns = [plain(dataclasses.asdict(column)) for column in scores.columns]
        record.solver_info = {name: values.double().tolist() for name, values in reconstruction.info.items()}
        curves = scores.curves | {f"solver:{name}": c.cpu().numpy() for name, c in reconstruction.curves.items()}
        files, record.unavailable = writers(save, cell, measured.case, reconstruction, iterates, curves)
    except Unsupported as reason:
        return _Outcome(dataclasses.replace(record, status="skipped", reason=reason_of(reason)), {}, {})
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # any exception of a plugin fails this cell and not the others
        return _failed(record, error)
    return _Outcome(record, curves, files)


def _solved(
    cell: Cell,
    solver: Solver,
    measured: MeasuredProblem,
    sizes: BatchSizes,
    observer: Observer,
    *,
    record_iterates: bool,
) -> Solved:
    """The solver's result for every image. If memory runs out, the batch is halved and the cell restarted."""

    def attempt(batch: int) -> Solved:
        return solve(solver, measured.case.problem, cell.dataset.ids, seed=cell.seed, batch=batch,
                     record_iterates=record_iterates, progress=observer.cell_progress)  # fmt: skip

    def report(batch: int) -> None:
        observer.warn(f"{cell.labels['solver']} ran out of memory; trying again with batches of {batch}")

    task = ("solve", cell.resolved["solver"], cell.resolved["operator"], cell.dataset.shape)
    return sizes.fit(task, len(cell.dataset.ids), attempt, report)


def _scored(
    plan: Plan, measured: MeasuredProblem, reconstruction: Reconstruction, sizes: BatchSizes, *, against_clean: bool
) -> Scores:
    def attempt(batch: int) -> Scores:
        return score(plan.metrics, measured.case, reconstruction, batch=batch, against_clean=against_clean)

    images = len(measured.case.truth)
    return sizes.fit(("score", measured.case.truth.shape[1:]), images, attempt, lambda batch: None, maximum=AT_ONCE)


def _failed(record: Record, error: BaseException) -> _Outcome:
    empty: dict[str, Any] = {"values": {}, "columns": [], "solver_info": {}, "unmeasured": {}}
    failed = dataclasses.replace(record, status="failed", reason=describe(error), **empty)
    return _Outcome(failed, {}, {})


def failed_record(plan: Plan, cell: Cell, reason: str) -> Record:
    """The record of a cell that failed outside the runner, such as in a worker that died."""
    return dataclasses.replace(_record(cell, plan), status="failed", reason=reason)


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
        problem=_described_data(cell),
        environment=_environment(plan, cell),
    )


def _described_data(cell: Cell) -> dict[str, Any]:
    """The fields of a record that describe the images and the priors."""
    data = cell.dataset
    fields: dict[str, Any] = {"data_digest": data.digest, "image_shape": list(data.shape), "within": cell.within}
    if cell.radii is not None:
        fields["within_radius_pixels"] = list(cell.radii)
    if data.origin:
        fields["origin"] = dict(data.origin)
    if cell.trained_on:
        fields["trained_on"] = cell.trained_on
    if cell.priors:
        fields["priors"] = cell.priors
    return fields


def _describe_problem(record: Record, cell: Cell, measured: MeasuredProblem) -> None:
    operator = measured.operator
    with isolated(cell.seed):
        described = {
            "rank": int(operator.rank),
            "nominal_compression": float(operator.nominal_compression),
            "measurement_shape": [int(side) for side in operator.measurement_shape],
            "pixel_size_angstrom": list(cell.dataset.pixel_size),
            "scale": _recorded(cell.dataset.scale),
            "data_range": _data_range(measured.case),
        }
        record.compression = float(operator.effective_compression)
    record.problem |= described
    record.timing["setup_seconds"] = measured.setup_seconds


def _describe_costs(record: Record, solved: Solved) -> None:
    record.timing["setup_seconds"] += solved.setup_seconds
    record.timing |= {
        "solver_seconds": solved.solver_seconds,
        "seconds_per_image": solved.solver_seconds / len(solved.reconstruction.x),
        "batch": solved.batch,
        "network_seconds": solved.network_seconds,
        "operator_seconds": solved.operator_seconds,
    }
    record.peak_memory_mib, record.counters = solved.peak_memory_mib, solved.counters


def _recorded(scale: Scale) -> dict[str, Any]:
    """The fields of a record for image = offset + factor x."""
    limits = None if scale.range is None else list(scale.range)
    return {"name": scale.name, "offset": scale.offset.tolist(), "factor": scale.factor.tolist(), "range": limits}


def _data_range(case: Case) -> dict[str, Any]:
    """The data range that metrics used, for all images or for each, and its origin."""
    low, high = (end.tolist() if isinstance(end, torch.Tensor) else end for end in case.data_range)
    return {"from": "image" if case.problem.scale.range is None else "scale", "low": low, "high": high}


def describe(error: BaseException) -> str:
    """An exception as one line: its type, its message and the line that raised it."""
    if isinstance(error, CryobenchError):
        return reason_of(error)
    frames = traceback.extract_tb(BaseException.__traceback__.__get__(error))  # type: ignore[attr-defined]
    where = f" ({one_line(Path(frames[-1].filename).name, 200)}:{frames[-1].lineno})" if frames else ""
    return described(error) + where


def _environment(plan: Plan, cell: Cell) -> dict[str, Any]:
    device = str(plan.device)
    return {
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "device": device if plan.device.type == "cpu" else f"{device} {torch.cuda.get_device_name(plan.device)}",
        "dtype": plan.request.dtype,
        "version": environment.version(),
        "plugins": cell.plugins,
        "code": {name: digest[:12] for name, digest in cell.code.items()},
        "hash_without_code": cell.hash_without_code,
        "versions": environment.versions(),
        "hardware": environment.hardware(),
        "git_commit": plan.git_commit,
    }
