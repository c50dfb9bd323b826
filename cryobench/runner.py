"""Runs the cells of a plan -> records: batching, timing, memory, failures.

A cell that fails or is skipped never stops the others, and each record is saved before the next cell starts.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryobench import environment, meters, results
from cryobench.contract import batches, checked_answer, checked_measurements
from cryobench.core import Case, LinearOperator, Measured, Metric, Problem, Reconstruction
from cryobench.errors import CryobenchError, PluginError, said, told
from cryobench.grid import SAVES, Cell, Plan
from cryobench.hooks import Hooks
from cryobench.linalg import concatenate_curves
from cryobench.record import CLEAN, Record
from cryobench.results import Results
from cryobench.rng import Rng, generator
from cryobench.sources.scaling import undo


class Observer:
    """What a caller may want to be told. Every method may be left as it is."""

    def cell_started(self, cell: Cell) -> None:
        """A cell begins."""

    def cell_progress(self, fraction: float) -> None:
        """The cell under way has come this far, 0 to 1."""

    def cell_finished(self, record: Record, *, reused: bool) -> None:
        """A cell's record is saved, or was found saved."""

    def warn(self, message: str) -> None:
        """Something worth knowing that stops nothing."""


@dataclass
class _Bench:
    """A measured problem, shared by the cells of one (operator, noise, data)."""

    operator: LinearOperator
    case: Case
    setup_seconds: float
    probe: torch.Tensor
    """What the operator makes of a fixed image: a solver that changes the operator is found out by it."""

    def measures_the_same(self) -> bool:
        """Whether the operator still is what it was when it was built."""
        try:
            return torch.equal(_probe(self.operator), self.probe)
        except Exception:  # changed so much that it cannot measure at all
            return False


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

    A cell that is there already, with the files asked for, is reused unless `force`.
    """
    observer = observer or Observer()
    bench: _Bench | Exception | None = None
    bench_key: tuple[int, ...] = ()
    for cell in plan.cells:
        folder = store.find(cell.hash) if store is not None else None
        known, saved = (_known(folder, cell), _saved(folder)) if folder is not None else (None, set())
        if known is not None and not force and saved.issuperset(plan.request.save):
            observer.cell_finished(known, reused=True)
            yield known
            continue
        observer.cell_started(cell)
        if bench_key != (key := (id(cell.dataset), id(cell.operator), id(cell.noise), cell.seed)):
            bench, bench_key = None, key
            try:
                bench = _measure(cell, plan)
            except (Exception, SystemExit) as error:  # a broken operator or noise fails its cells, not the run
                bench = _as_exception(error)
        outcome = _run_cell(cell, plan, bench, observer, saved.union(plan.request.save))
        if isinstance(bench, _Bench) and not bench.measures_the_same():
            outcome = _failed(outcome.record, PluginError("the solver or a metric changed the operator"))
            bench_key = ()  # the next cell gets a new one
        record = _save(store, outcome, known, observer)
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


def _measure(cell: Cell, plan: Plan) -> _Bench:
    """Build the operator and measure the images. Factorisations are done here, and timed as set-up."""
    data = cell.dataset
    with meters.Stopwatch(plan.device) as watch:
        operator = cell.operator.build_for(data.imaging, seed=cell.seed, dtype=plan.dtype, device=plan.device)
        operator.prepare()
    reason = cell.noise.unsupported(operator)
    if reason is not None:
        raise _Skip(reason)
    truth = data.images.to(plan.device, plan.dtype)
    parts = []
    for part in batches(len(truth), plan.request.batch):
        own = operator.select(part)
        exact = own.A(truth[part])
        noisy = cell.noise.apply(exact, own, Rng(cell.seed, data.ids[part]))
        parts.append(checked_measurements(noisy, operator, len(exact)))
    y, sigma = (torch.cat([getattr(part, name) for part in parts]) for name in ("y", "sigma"))
    problem = Problem(meters.CountingOperator(operator), y, cell.noise, sigma)
    clean = None if data.clean is None else data.clean.to(plan.device, plan.dtype)
    case = Case(problem, truth, data.ids, data.pixel_size, clean)
    return _Bench(operator, case, watch.seconds, _probe(operator))


def _probe(operator: LinearOperator) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    image = torch.rand((1, 1, *operator.image_shape), generator=draw, dtype=operator.dtype).to(operator.device)
    return operator.A(image.repeat(operator.images or 1, 1, 1, 1))


def _part(problem: Problem, part: slice) -> Problem:
    """The problem of some of the images. Its tensors are copies: who writes into them harms nobody but itself."""
    return dataclasses.replace(
        problem,
        operator=problem.operator.select(part),
        y=problem.y[part].clone(),
        sigma=problem.sigma[part].clone(),
    )


def _told_of(cell: Cell) -> dict[str, Any]:
    """What a record says of the images, and of those that its priors were trained on."""
    data = cell.dataset
    told: dict[str, Any] = {"data_digest": data.digest, "image_shape": list(data.shape)}
    if data.origin:
        told["origin"] = dict(data.origin)
    if cell.trained_on:
        told["trained_on"] = cell.trained_on
    return told


class _Skip(Exception):
    """This combination makes no sense; the message says why."""


def _run_cell(
    cell: Cell, plan: Plan, bench: _Bench | Exception | None, observer: Observer, save: Iterable[str]
) -> _Outcome:
    record = Record(
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
        resolved=cell.resolved,
        problem=_told_of(cell),
        environment=_environment(plan, cell),
    )
    default_dtype = torch.get_default_dtype()
    try:
        if not isinstance(bench, _Bench):
            raise bench or _Skip("nothing was measured")
        _describe_problem(record, cell, bench)
        reason = cell.solver.unsupported(bench.case.problem)
        if reason is not None:
            raise _Skip(reason)
        reconstruction = _solve(cell, plan, bench, record, observer)
        curves = _score(plan, bench.case, reconstruction, record)
    except _Skip as skip:
        record.status, record.reason = "skipped", str(skip)
        return _Outcome(record, {}, {})
    except (Exception, SystemExit) as error:  # whatever a plugin raises marks this cell and leaves the others alone
        return _failed(record, error)
    finally:
        torch.set_default_dtype(default_dtype)
    return _Outcome(record, curves, _files(save, cell, bench.case, reconstruction))


def _failed(record: Record, error: BaseException) -> _Outcome:
    failed = dataclasses.replace(record, status="failed", reason=describe(error), values={}, columns=[], solver_info={})
    return _Outcome(failed, {}, {})


def _describe_problem(record: Record, cell: Cell, bench: _Bench) -> None:
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


def _solve(cell: Cell, plan: Plan, bench: _Bench, record: Record, observer: Observer) -> Reconstruction:
    """The solver on every batch. Out of memory halves the batch and starts the cell again."""
    batch = min(plan.request.batch, len(cell.dataset.ids))
    while True:
        try:
            return _solve_in_batches(cell, plan, bench, batch, record, observer)
        except Exception as error:
            if batch == 1 or not is_out_of_memory(error):
                raise
            batch //= 2
            observer.warn(f"{cell.labels['solver']} ran out of memory; trying again with batches of {batch}")
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()


def _solve_in_batches(
    cell: Cell, plan: Plan, bench: _Bench, batch: int, record: Record, observer: Observer
) -> Reconstruction:
    case, n = bench.case, len(cell.dataset.ids)
    watch = meters.Stopwatch(plan.device)
    parts: list[Reconstruction] = []
    with meters.PeakMemory(plan.device) as peak, meters.counting() as calls:
        for part in batches(n, batch):
            ids = cell.dataset.ids[part]
            problem = _part(case.problem, part)

            def progress(done: int, total: int, start: int = part.start, size: int = len(ids)) -> None:
                observer.cell_progress((start + size * done / max(total, 1)) / n)

            with torch.random.fork_rng(devices=[plan.device] if plan.device.type == "cuda" else []):
                # for solvers that draw from torch's global state against the contract: at least repeatable
                torch.manual_seed(generator("global state", cell.seed).initial_seed())
                with watch:
                    answer = cell.solver.solve(problem, rng=Rng(cell.seed, ids), progress=progress)
            parts.append(checked_answer(answer, problem))
            observer.cell_progress(part.stop / n)
    record.timing |= {"solver_seconds": watch.seconds, "seconds_per_image": watch.seconds / n}
    record.timing["batch"] = batch
    record.peak_memory_mib = peak.mib
    operator_calls = {name: images / n for name, images in calls.items() if name != meters.NETWORK}
    record.counters = {
        "nfe": calls[meters.NETWORK] / n,
        "operator_calls": sum(operator_calls.values()),
        **operator_calls,
    }
    names = set.intersection(*(set(part.info) for part in parts))
    info = {name: torch.cat([part.info[name] for part in parts]) for name in parts[0].info if name in names}
    curved = set.intersection(*(set(part.curves) for part in parts))
    curves = {name: concatenate_curves([part.curves[name] for part in parts]) for name in curved}
    return Reconstruction(torch.cat([part.x for part in parts]), info, curves)


def _score(plan: Plan, case: Case, reconstruction: Reconstruction, record: Record) -> dict[str, np.ndarray]:
    """Fill in the metric columns and the solver's own per-image numbers; the curves are returned."""
    curves: dict[str, np.ndarray] = {}
    parts_of_all = batches(len(case.truth), plan.request.batch)
    for metric, against, end in _comparisons(plan.metrics, case):
        parts = [_measured(metric, against, reconstruction, part) for part in parts_of_all]
        for column in metric.columns:
            values = [value for part in parts for value in part.values[column.name].tolist()]
            record.values[column.name + end] = values
            record.columns.append(dataclasses.asdict(column) | {"name": column.name + end})
        for name in parts[0].curves:
            if not name.isidentifier() or name == "file":
                raise PluginError(f"the metric {type(metric).__name__} gives a curve {name!r}; use another name")
            curves[name + end] = np.concatenate([part.curves[name].detach().cpu().numpy() for part in parts])
    for name, values in reconstruction.info.items():
        record.solver_info[name] = values.double().tolist()
    solver_curves = {f"solver:{name}": values.cpu().numpy() for name, values in reconstruction.curves.items()}
    return curves | solver_curves


def _comparisons(metrics: Iterable[Metric], case: Case) -> Iterator[tuple[Metric, Case, str]]:
    """Each metric with the case, and once more with the clean images for truth where they are known: what ends its
    names then comes with it."""
    for metric in metrics:
        yield metric, case, ""
        if case.clean is not None and metric.against_truth:
            yield metric, dataclasses.replace(case, truth=case.clean), CLEAN


def _measured(metric: Metric, case: Case, reconstruction: Reconstruction, part: slice) -> Measured:
    """A metric on a part of the images. It gets copies: one that writes into them harms nobody but itself."""
    own = dataclasses.replace(
        case,
        problem=_part(case.problem, part),
        truth=case.truth[part].clone(),
        image_ids=case.image_ids[part],
        pixel_size=case.pixel_size[part],
        clean=None if case.clean is None else case.clean[part].clone(),
    )
    info = {name: values[part] for name, values in reconstruction.info.items()}
    measured = metric.measure(own, Reconstruction(reconstruction.x[part].clone(), info))
    name = type(metric).__name__
    if not isinstance(measured, Measured):
        raise PluginError(f"the metric {name} returned a {type(measured).__name__}, not a Measured")
    values = {}
    for column in metric.columns:
        if column.name not in measured.values:
            raise PluginError(f"the metric {name} states a column {column.name!r} and gave none")
        values[column.name] = torch.as_tensor(measured.values[column.name]).flatten().double()
        if len(values[column.name]) != len(own.truth):
            raise PluginError(
                f"the metric column {column.name!r} has {len(values[column.name])} values for {len(own.truth)} images"
            )
    return Measured(values, measured.curves)


def _files(save: Iterable[str], cell: Cell, case: Case, reconstruction: Reconstruction) -> dict[str, Any]:
    writers = {"reconstructions": _write_stack, "panel": _write_panel}
    return {SAVES[name]: lambda path, w=writers[name]: w(path, cell, case, reconstruction) for name in save}


def _write_stack(path: Path, cell: Cell, case: Case, reconstruction: Reconstruction) -> None:
    import mrcfile

    images = reconstruction.x[:, 0].double().cpu().numpy()
    images = np.stack([undo(image, low, high) for image, (low, high) in zip(images, cell.dataset.scale, strict=True)])
    with mrcfile.new(path, data=images.astype(np.float32)) as file:
        file.set_image_stack()
        file.voxel_size = cell.dataset.pixel_size[0] or 0.0


def _write_panel(path: Path, cell: Cell, case: Case, reconstruction: Reconstruction) -> None:
    from cryobench import figures

    figures.panel(
        case.truth[:, 0].cpu().numpy(),
        case.problem.operator.A_adjoint(case.problem.y)[:, 0].cpu().numpy(),
        reconstruction.x[:, 0].cpu().numpy(),
        titles=[f"image {image}" for image in cell.dataset.ids],
        pixel_size=cell.dataset.pixel_size,
        path=path,
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the device or in the machine, by whichever library noticed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)


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
