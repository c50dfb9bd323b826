"""Runs the cells of a plan -> records: batching, timing, memory, failures.

A cell that fails or is skipped never stops the others, and each record is saved before the next cell starts.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryobench import environment, meters, results
from cryobench.core import Case, LinearOperator, Problem, Reconstruction
from cryobench.errors import CryobenchError, PluginError
from cryobench.grid import SAVES, Cell, Plan
from cryobench.record import Record
from cryobench.results import Results
from cryobench.rng import Rng
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


def execute(
    plan: Plan, *, store: Results | None = None, force: bool = False, observer: Observer | None = None
) -> Iterator[Record]:
    """Run the cells of a plan, yielding each record once it is saved in `store` (when there is one).

    A cell that is there already, with the files asked for, is reused unless `force`.
    """
    observer = observer or Observer()
    bench: _Bench | CryobenchError | Exception | None = None
    bench_key: tuple[int, ...] = ()
    for cell in plan.cells:
        if store is not None and not force:
            record = _reusable(store, cell, plan.request.save)
            if record is not None:
                observer.cell_finished(record, reused=True)
                yield record
                continue
        observer.cell_started(cell)
        if bench_key != (key := (id(cell.dataset), id(cell.operator), id(cell.noise))):
            bench, bench_key = None, key
            try:
                bench = _measure(cell, plan)
            except Exception as error:  # an operator or noise plugin that raises fails its cells, not the run
                bench = error
        record, curves, files = _run_cell(cell, plan, bench, observer)
        if store is not None:
            store.write(record, curves=curves, files=files)
        observer.cell_finished(record, reused=False)
        yield record


def _reusable(store: Results, cell: Cell, save: Sequence[str]) -> Record | None:
    folder = store.find(cell.hash)
    if folder is None or not all((folder / SAVES[name]).exists() for name in save):
        return None
    try:
        record = results.read_record(folder)
    except CryobenchError:
        return None  # damaged: run it again, which replaces it
    return record if record.hash == cell.hash and record.status == "ok" else None


def _measure(cell: Cell, plan: Plan) -> _Bench:
    """Build the operator and measure the images. Factorisations are done here, and timed as set-up."""
    data = cell.dataset
    with meters.Stopwatch(plan.device) as watch:
        operator = cell.operator.build(data.shape, seed=plan.request.seed, dtype=plan.dtype, device=plan.device)
        operator.prepare()
    truth = data.images.to(plan.device, plan.dtype)
    reason = cell.noise.unsupported(operator)
    if reason is not None:
        raise _Skip(reason)
    exact = torch.cat([operator.A(part) for part in truth.split(plan.request.batch)])
    noisy = cell.noise.apply(exact, operator, Rng(plan.request.seed, data.ids))
    problem = Problem(meters.CountingOperator(operator), noisy.y, cell.noise, noisy.sigma)
    return _Bench(operator, Case(problem, truth, data.ids, data.pixel_size), watch.seconds)


class _Skip(Exception):
    """This combination makes no sense; the message says why."""


def _run_cell(
    cell: Cell, plan: Plan, bench: _Bench | Exception | None, observer: Observer
) -> tuple[Record, dict[str, np.ndarray], dict[str, Callable[[Path], None]]]:
    record = Record(
        hash=cell.hash,
        status="ok",
        reason="",
        solver=cell.labels["solver"],
        operator=cell.labels["operator"],
        noise=cell.labels["noise"],
        data=cell.labels["data"],
        seed=plan.request.seed,
        images=list(cell.dataset.ids),
        floor=cell.floor,
        resolved=cell.resolved,
        problem={"data_digest": cell.dataset.digest, "image_shape": list(cell.dataset.shape)},
        environment=_environment(plan),
    )
    try:
        if isinstance(bench, Exception):
            raise bench
        assert bench is not None
        record.compression = bench.operator.effective_compression
        record.problem |= {
            "rank": bench.operator.rank,
            "nominal_compression": bench.operator.nominal_compression,
            "measurement_shape": list(bench.operator.measurement_shape),
            "pixel_size_angstrom": list(cell.dataset.pixel_size),
            "scale": [list(scale) for scale in cell.dataset.scale],
        }
        record.timing["setup_seconds"] = bench.setup_seconds
        reason = cell.solver.unsupported(bench.case.problem)
        if reason is not None:
            raise _Skip(reason)
        reconstruction = _solve(cell, plan, bench, record, observer)
        curves = _score(plan, bench.case, reconstruction, record)
    except _Skip as skip:
        record.status, record.reason = "skipped", str(skip)
    except Exception as error:  # whatever a plugin raises marks this cell and leaves the others alone
        record.status, record.reason = "failed", describe(error)
    else:
        return record, curves, _files(plan.request.save, cell, bench.case, reconstruction)
    return record, {}, {}


def _solve(cell: Cell, plan: Plan, bench: _Bench, record: Record, observer: Observer) -> Reconstruction:
    """The solver on every batch. Out of memory halves the batch and starts the cell again."""
    batch = min(plan.request.batch, len(cell.dataset.ids))
    while True:
        try:
            return _solve_in_batches(cell, plan, bench, batch, record, observer)
        except Exception as error:
            if batch == 1 or not _is_out_of_memory(error):
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
        for start in range(0, n, batch):
            ids = cell.dataset.ids[start : start + batch]
            part = slice(start, start + len(ids))
            # copies, so that a solver that writes into y harms nobody but itself
            problem = dataclasses.replace(
                case.problem, y=case.problem.y[part].clone(), sigma=case.problem.sigma[part].clone()
            )

            def progress(done: int, total: int, start: int = start, size: int = len(ids)) -> None:
                observer.cell_progress((start + size * done / max(total, 1)) / n)

            with torch.random.fork_rng(devices=[plan.device] if plan.device.type == "cuda" else []):
                # for solvers that draw from torch's global state against the contract: at least repeatable
                torch.manual_seed(plan.request.seed)
                with watch:
                    answer = cell.solver.solve(problem, rng=Rng(plan.request.seed, ids), progress=progress)
            parts.append(_checked(answer, problem))
            observer.cell_progress((start + len(ids)) / n)
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
    info = {name: torch.cat([part.info[name].flatten() for part in parts]) for name in parts[0].info if name in names}
    return Reconstruction(torch.cat([part.x for part in parts]), info)


def _checked(answer: Any, problem: Problem) -> Reconstruction:
    """The solver's answer, or an error that says in which way it broke the contract."""
    if not isinstance(answer, Reconstruction):
        raise PluginError(f"the solver returned a {type(answer).__name__}, not a Reconstruction")
    x = answer.x.detach()
    if tuple(x.shape) != problem.image_batch_shape:
        raise PluginError(f"the solver returned shape {list(x.shape)}, wanted {list(problem.image_batch_shape)}")
    if x.dtype != problem.y.dtype:
        raise PluginError(f"the solver returned {x.dtype}, wanted {problem.y.dtype}")
    if x.device != problem.y.device:
        raise PluginError(f"the solver returned an image on {x.device}, wanted {problem.y.device}")
    if not x.isfinite().all():
        raise PluginError("the solver returned values that are not finite (NaN or infinity)")
    for name, values in answer.info.items():
        if values.numel() != problem.batch:
            raise PluginError(f"the solver's info {name!r} has {values.numel()} values for {problem.batch} images")
    return Reconstruction(x, answer.info)


def _score(plan: Plan, case: Case, reconstruction: Reconstruction, record: Record) -> dict[str, np.ndarray]:
    """Fill in the metric columns and the solver's own per-image numbers; the curves are returned."""
    curves: dict[str, np.ndarray] = {}
    for metric in plan.metrics:
        measured = metric.measure(case, reconstruction)
        for column in metric.columns:
            if column.name not in measured.values:
                raise PluginError(f"the metric {type(metric).__name__} states a column {column.name!r} and gave none")
            values = measured.values[column.name].flatten().double().tolist()
            if len(values) != len(record.images):
                raise PluginError(
                    f"the metric column {column.name!r} has {len(values)} values for {len(record.images)} images"
                )
            record.values[column.name] = values
            record.columns.append(dataclasses.asdict(column))
        curves |= {name: curve.detach().cpu().numpy() for name, curve in measured.curves.items()}
    for name, values in reconstruction.info.items():
        record.solver_info[name] = values.double().tolist()
    return curves


def _files(save: Sequence[str], cell: Cell, case: Case, reconstruction: Reconstruction) -> dict[str, Any]:
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


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)


def describe(error: Exception) -> str:
    """An exception as one line: its type, its message and the line that raised it."""
    message = " ".join(str(error).split())
    if isinstance(error, CryobenchError):
        return message
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {message}{where}"


def _environment(plan: Plan) -> dict[str, Any]:
    device = str(plan.device)
    return {
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "device": device if plan.device.type == "cpu" else f"{device} {torch.cuda.get_device_name(plan.device)}",
        "dtype": plan.request.dtype,
        "version": environment.version(),
        "plugins": plan.plugin_versions,
        "versions": environment.versions(),
        "hardware": environment.hardware(),
        "git_commit": plan.git_commit,
    }
