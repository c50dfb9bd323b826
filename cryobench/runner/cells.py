"""Runs the cells of a plan one after the other.

A failed or skipped cell does not stop the others, and each record is saved before the next cell starts.
"""

from __future__ import annotations

import dataclasses
import math
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryobench import environment
from cryobench.core import AnyMetric, Case, HeterogeneitySolver, Reconstruction, Scale
from cryobench.core.checkpoints import checkpointing
from cryobench.core.meters import Stopwatch
from cryobench.errors import CryobenchError, PluginError, ResultsError, Unsupported, described, one_line, reason_of
from cryobench.global_state import restored
from cryobench.hooks import Hooks
from cryobench.plan.dataset import AVERAGE, Dataset
from cryobench.plan.grid import SAVES, Cell, Plan
from cryobench.record import Record, plain
from cryobench.results.store import Results, read_record
from cryobench.runner.ceiling import ceiling, ceiling_with_maps, needs_all
from cryobench.runner.imaging import seen_by
from cryobench.runner.measured_problem import AT_ONCE, MeasuredProblem
from cryobench.runner.memory import BatchSizes
from cryobench.runner.observer import Observer
from cryobench.runner.saving import FilesToSave, folder_for
from cryobench.runner.scoring import Scores, Together, joined_scores, score
from cryobench.runner.solving import Costs, Solved, averaged, isolated, joined, solve, without_pixels

_CHUNK_BYTES = 2**26
"""Size in float32 of the images that are measured, solved and scored before the next, unless one batch is larger."""


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
            record = runner.run(cell, force=force)
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
            ("setup", "network", "operators", "solver", "metrics", "reading", "writing"), 0.0
        )
        """Total time by activity. network: forward passes. solver: time of solvers without network and operators.
        reading: images, and all of them once more where their digest is not known."""

    def finished(self, cell: Cell, *, include_failed: bool = False) -> Record | None:
        """The stored record of a finished cell that has the requested files, or None.

        include_failed: include failed and skipped cells. A file that the solver does not provide (`unavailable` in the
        record) does not count as missing.
        """
        folder, record = self._stored(cell)
        if record is None or (record.status != "ok" and not include_failed):
            return None
        complete = record.status != "ok" or self._plan.save <= _saved(folder) | set(record.unavailable)
        return record if complete else None

    def run(self, cell: Cell, *, force: bool = False) -> Record:
        """Run a cell and save its record. A failure is recorded; `ResultsError` is raised if saving is impossible.

        Where the digest of the images is not known, the cell may turn out to be finished when they have been read; then
        that record is returned, unless `force`.
        """
        with restored():  # a cell must not affect the next
            return self._run(cell, force)

    def _run(self, cell: Cell, force: bool) -> Record:
        folder, known = self._stored(cell)
        name = cell.hash if cell.dataset.recall() else None
        if known is None and name is not None and self._has_other_code(cell):
            self._observer.warn(f"{_title(cell)}: its code has changed since the last run, so it is run again")
        save = self._plan.save | _saved(folder) | set(known.unavailable if known is not None else ())
        with folder_for(save, self._store) as stacks, checkpointing(self._state(cell, force=force)) as state:
            measured = self._measured_problem(cell)
            before = _seconds_of(measured)
            outcome = _run_cell(cell, self._plan, measured, self._sizes, self._observer, save, stacks)
            if isinstance(measured, MeasuredProblem) and not measured.is_unchanged():
                outcome = _failed(outcome.record, PluginError("the solver or a metric changed the operator"))
                self._measured_key = ()  # rebuild the operator for the next cell
            self._add_times(outcome.record, before, _seconds_of(measured))
            outcome = self._identified(cell, outcome)
            if outcome.record.hash not in (name, cell.key):  # it was not known before
                _, known = self._stored(cell)
                if known is not None and known.status == "ok" and not force:
                    return self._found(cell)
            start = time.perf_counter()
            record = _save(self._store, outcome, known, self._observer)
            self.seconds["writing"] += time.perf_counter() - start
            if record.status == "ok":
                state.remove()
        return record

    def _has_other_code(self, cell: Cell) -> bool:
        return self._store is not None and self._store.has_other_code(_named(_record(cell, self._plan), cell))

    def _found(self, cell: Cell) -> Record:
        """The record of a cell that was found to be finished after it had been run; run again if it lacks files."""
        record = self.finished(cell)
        if record is None:
            self._observer.warn(f"{_title(cell)}: an earlier result on the same images lacks files that were asked "
                                "for, so it is run again")  # fmt: skip
            return self._run(cell, force=True)
        self._observer.warn(f"{_title(cell)}: an earlier result on the same images was found, and is used")
        return record

    def _identified(self, cell: Cell, outcome: _Outcome) -> _Outcome:
        """The outcome under the hash of its cell. It fails if its files have changed or cannot be read."""
        start = time.perf_counter()
        try:
            cell.check_files()
            return dataclasses.replace(outcome, record=_named(outcome.record, cell))
        except CryobenchError as error:
            return outcome if outcome.record.status == "failed" else _failed(outcome.record, error)
        finally:
            self.seconds["reading"] += time.perf_counter() - start

    def _add_times(self, record: Record, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        timing = {name.removesuffix("_seconds"): seconds for name, seconds in record.timing.items()}
        network, operators = timing.get("network", 0.0), timing.get("operator", 0.0)
        spent = {name: seconds - before[name] for name, seconds in after.items()}
        self.seconds["setup"] += spent["setup"] + spent["measuring"]
        self.seconds["reading"] += spent["reading"]
        self.seconds["network"] += network
        self.seconds["operators"] += operators
        self.seconds["solver"] += timing.get("solver", 0.0) - network - operators
        self.seconds["metrics"] += timing.get("score", 0.0)

    def _stored(self, cell: Cell) -> tuple[Path | None, Record | None]:
        """The stored folder of a cell and its record, with the labels of this run.

        Where the digest of the images is not known, they are read only if there are results that may be of this cell.
        """
        if self._store is None:
            return None, None
        if not cell.dataset.recall() and not self._store.has_similar(_record(cell, self._plan)):
            return None, None
        start = time.perf_counter()
        name = result_name(cell)
        self.seconds["reading"] += time.perf_counter() - start
        folder = self._store.find(name)
        if folder is None:
            return None, None
        try:
            record = read_record(folder)
        except CryobenchError:
            return folder, None  # damaged: the cell is run again and replaced
        same = record.hash == name
        return folder, dataclasses.replace(record, **cell.labels, floor=cell.floor) if same else None

    def _state(self, cell: Cell, *, force: bool) -> Path | None:
        """The file for the state of a solver that may run for long, so that a killed cell goes on from there; None for
        others. A forced run begins anew."""
        if self._store is None or not isinstance(cell.solver, HeterogeneitySolver):
            return None
        path = self._store.root / f".unfinished-{result_name(cell)[:12]}.pt"
        if force:
            path.unlink(missing_ok=True)
        return path

    def _measured_problem(self, cell: Cell) -> MeasuredProblem | BaseException | None:
        """The measured problem of a cell, reused from the last cell if it is the same, or the exception."""
        key = (id(cell.dataset), id(cell.operator), id(cell.noise), cell.seed)
        if self._measured_key != key:
            self._measured, self._measured_key = None, key
            start = time.perf_counter()
            try:
                self._measured = MeasuredProblem(cell, self._plan, self._sizes)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a broken operator or noise fails its cells, not the run
                self._measured = error
            self.seconds["setup"] += time.perf_counter() - start
        return self._measured


def _seconds_of(measured: object) -> dict[str, float]:
    """The time that a measured problem took so far; zeros for a failed one."""
    return measured.seconds if isinstance(measured, MeasuredProblem) else {"setup": 0, "reading": 0, "measuring": 0}


def _title(cell: Cell) -> str:
    return f"{cell.labels['solver']} on {cell.labels['operator']}"


def result_name(cell: Cell) -> str:
    """The hash of a cell; its key where the images cannot be read or have changed, so that it fails.

    Reads all images where their digest is not known.
    """
    try:
        return cell.hash
    except CryobenchError:
        return cell.key


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
                why = "gives no map" if name == "maps" else "does not record its iterates"
                self._observer.warn(f"{record.solver} {why}: its {name} is not saved")


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
    folder: Path | None,
) -> _Outcome:
    """Measure, solve and score a cell chunk by chunk. folder: for the stacks of `save`."""
    record = _record(cell, plan)
    watch, costs, iterates = Stopwatch(plan.device), Costs(), None
    scores: list[Scores] = []
    answers: list[Reconstruction] = []
    try:
        if not isinstance(measured, MeasuredProblem):
            raise measured or Unsupported("nothing was measured")
        _describe_problem(record, cell, measured)
        setup = measured.seconds["setup"]
        with isolated(cell.seed), watch:
            together = Together(plan.metrics, cell.dataset.imaging, cell.dataset.structure)
        with FilesToSave(save, cell, folder) as files:
            for case, solved in _chunks(
                cell, measured, sizes, observer, metrics=plan.metrics, record_iterates="animation" in save
            ):
                with isolated(cell.seed):
                    with watch:
                        scores.append(_scored(plan, case, solved.reconstruction, sizes, cell.solver is not None))
                        together.add(case, solved.reconstruction)
                    files.add(case, solved.reconstruction, scores[-1].curves)
                answers.append(without_pixels(solved.reconstruction))
                costs, iterates = costs + solved.costs, iterates or solved.iterates
        record.timing["setup_seconds"] += measured.seconds["setup"] - setup
        if cell.solver is not None:
            size = sizes.of(_task(cell), len(cell.dataset))
            _describe_costs(record, costs, size)
        with isolated(cell.seed), watch:
            columns, of_all = together.measure()
        record.timing["score_seconds"] = watch.seconds
        scored, answer = _without_seen_halves(joined_scores(scores), plan, cell), joined(answers)
        record.values, record.together = scored.values, of_all.values
        record.unmeasured = scored.unmeasured | of_all.unmeasured
        record.columns = [plain(dataclasses.asdict(column)) for column in [*scored.columns, *columns]]
        record.solver_info = {name: values.double().tolist() for name, values in answer.info.items()}
        curves = scored.curves | {f"solver:{name}": curve.numpy() for name, curve in answer.curves.items()}
        curves |= {name: curve.detach().cpu().numpy()[None] for name, curve in of_all.curves.items()}
        paths, record.unavailable = files.writers(iterates, curves, of_all.volumes)
    except Unsupported as reason:
        return _Outcome(dataclasses.replace(record, status="skipped", reason=reason_of(reason)), {}, {})
    except (KeyboardInterrupt, ResultsError):
        raise
    except BaseException as error:  # any exception of a plugin fails this cell and not the others
        return _failed(record, error)
    return _Outcome(record, curves, paths)


def _task(cell: Cell) -> tuple[object, ...]:
    """The key of the batch size."""
    return "solve", cell.resolved["solver"], cell.resolved["operator"], cell.dataset.shape


def _chunks(
    cell: Cell,
    measured: MeasuredProblem,
    sizes: BatchSizes,
    observer: Observer,
    *,
    metrics: Sequence[AnyMetric],
    record_iterates: bool,
) -> Iterator[tuple[Case, Solved]]:
    """The case and the solver's result, or the ceiling, for consecutive images. If memory runs out, the batch is halved
    and the chunk restarted."""
    data, solver = cell.dataset, cell.solver
    n = len(data)
    together = needs_all(cell, metrics) if solver is None else solver.joint
    keep_draws = any(metric.uses_draws for metric in metrics)

    def attempt(part: slice, batch: int) -> tuple[Case, Solved]:
        case = measured.case(part)
        if solver is None:
            with isolated(cell.seed):
                make = ceiling_with_maps if together else ceiling
                return case, Solved(make(cell, case, min(batch, AT_ONCE)), None, Costs())

        def report(fraction: float) -> None:
            observer.cell_progress((part.start + fraction * len(case.truth)) / n)

        problem = case.problem
        if solver.joint:
            problem = dataclasses.replace(problem, imaging=seen_by(solver, data.imaging))
        solved = solve(solver, problem, case.image_ids, seed=cell.seed, batch=batch, prepared=part.start > 0,
                       record_iterates=record_iterates and part.start == 0, keep_draws=keep_draws,
                       progress=report)  # fmt: skip
        if data.halves == AVERAGE:
            other = solve(solver, measured.problem_of_other(case), case.image_ids, seed=cell.seed, batch=batch,
                          prepared=True)  # fmt: skip
            solved = averaged(solved, other)
        return case, solved

    def warn(batch: int) -> None:
        if solver is not None:
            observer.warn(f"{cell.labels['solver']} ran out of memory; trying again with batches of {batch}")

    if together:
        return iter([attempt(slice(0, n), n)])
    most = min(AT_ONCE, _CHUNK_BYTES // (4 * math.prod(data.shape)))
    return sizes.chunks(_task(cell), n, attempt, warn, most)


def _without_seen_halves(scores: Scores, plan: Plan, cell: Cell) -> Scores:
    """The scores without the numbers that use halves on which a prior of the cell was trained."""
    trained = {origin["half"] for origin in cell.trained_on if "half" in origin}
    seen = [bool(trained & set(halves)) for halves in cell.dataset.half_digests] if trained else []
    if any(seen):
        reason = "a prior of the solver was trained on this half; use other micrographs"
        for column in (column for metric in plan.metrics if metric.uses_other for column in metric.columns):
            values = scores.values[column.name]
            scores.values[column.name] = [math.nan if s else v for s, v in zip(seen, values, strict=True)]
            scores.unmeasured[column.name] = reason
    return scores


def _scored(plan: Plan, case: Case, reconstruction: Reconstruction, sizes: BatchSizes, against_clean: bool) -> Scores:
    def attempt(batch: int) -> Scores:
        return score(plan.metrics, case, reconstruction, batch=batch, against_clean=against_clean)

    images = len(case.truth)
    return sizes.fit(("score", case.truth.shape[1:]), images, attempt, lambda batch: None, maximum=AT_ONCE)


def _failed(record: Record, error: BaseException) -> _Outcome:
    empty: dict[str, Any] = {"values": {}, "together": {}, "columns": [], "solver_info": {}, "unmeasured": {}}
    failed = dataclasses.replace(record, status="failed", reason=describe(error), **empty)
    return _Outcome(failed, {}, {})


def failed_record(plan: Plan, cell: Cell, reason: str) -> Record:
    """The record of a cell that failed outside the runner, such as in a worker that died."""
    record = dataclasses.replace(_record(cell, plan), status="failed", reason=reason)
    try:
        return _named(record, cell)
    except CryobenchError:  # the images cannot be read
        return record


def _record(cell: Cell, plan: Plan) -> Record:
    """The record of a cell before it has run, under its key."""
    return Record(
        hash=cell.key,
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


def _named(record: Record, cell: Cell) -> Record:
    """The record under the hash of the cell, with what is known when all images have been read.

    Raises a `CryobenchError` if they cannot be read or have changed.
    """
    data = cell.dataset
    problem = {"data_digest": data.digest} | record.problem
    if data.halves_note is not None:
        problem["halves"] = data.halves_note
    if "rank" in problem:  # the images were measured
        problem |= {"scale": _recorded(data.scale), "data_range": _data_range(data)}
    environment = record.environment | {"hash_without_code": cell.hash_without_code}
    return dataclasses.replace(record, hash=cell.hash, problem=problem, environment=environment)


def _described_data(cell: Cell) -> dict[str, Any]:
    """The fields of a record that describe the images and the priors."""
    data = cell.dataset
    fields: dict[str, Any] = {"image_shape": list(data.shape), "within": cell.within}
    if cell.radii is not None:
        fields["within_radius_pixels"] = list(cell.radii)
    if data.origin:
        fields["origin"] = dict(data.origin)
    if data.half_digests:
        fields["half_digests"] = [digest for halves in data.half_digests for digest in halves]
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
        }
        record.compression = float(operator.effective_compression)
    record.problem |= described
    record.timing["setup_seconds"] = measured.build_seconds


def _describe_costs(record: Record, costs: Costs, batch: int) -> None:
    record.timing["setup_seconds"] += costs.setup_seconds
    record.timing |= {
        "solver_seconds": costs.solver_seconds,
        "seconds_per_image": costs.solver_seconds / costs.images,
        "batch": batch,
        "network_seconds": costs.network_seconds,
        "operator_seconds": costs.operator_seconds,
    }
    record.peak_memory_mib, record.counters = costs.peak_memory_mib, costs.counters


def _recorded(scale: Scale) -> dict[str, Any]:
    """The fields of a record for image = offset + factor x."""
    limits = None if scale.range is None else list(scale.range)
    return {"name": scale.name, "offset": scale.offset.tolist(), "factor": scale.factor.tolist(), "range": limits}


def _data_range(data: Dataset) -> dict[str, Any]:
    """The data range that metrics used (`measured_problem.data_range`), for all images or for each, and its origin."""
    limits = data.scale_without_images.range
    low, high = (end.tolist() for end in data.extremes) if limits is None else limits
    return {"from": "image" if limits is None else "scale", "low": low, "high": high}


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
        "versions": environment.versions(),
        "hardware": environment.hardware(),
        "git_commit": plan.git_commit,
    }
