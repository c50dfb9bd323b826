"""The solver of a cell on all of its images, batch by batch, and what that cost."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from cryobench.core import Prior, Reconstruction, Solver, meters, unsupported_dims
from cryobench.core.recording import Recording, recording
from cryobench.numerics.linalg import concatenate_curves, item_axes
from cryobench.plan.grid import Cell, Plan, with_nested
from cryobench.record import Record
from cryobench.rng import Rng, generator
from cryobench.runner.bench import Bench, Skip, part_of
from cryobench.runner.checks import DEVIATION, batches, checked_answer
from cryobench.runner.memory import BatchSizes
from cryobench.runner.observer import Observer


def solve(
    cell: Cell, solver: Solver, plan: Plan, bench: Bench, record: Record, sizes: BatchSizes, observer: Observer,
    *, watched: bool,
) -> tuple[Reconstruction, Recording | None]:  # fmt: skip
    """The solver's answer for every image, and its course on the first if it is `watched`. What it cost goes into
    the record. Out of memory halves the batch and starts the cell again. Raises `Skip` for what it cannot take."""
    reason = unsupported_dims(solver, cell.dataset.shape) or solver.unsupported(bench.case.problem)
    if reason is not None:
        raise Skip(reason)
    with meters.Stopwatch(plan.device) as watch:
        for part in with_nested(solver):
            if isinstance(part, Prior):
                part.prepare(plan.device)
    record.timing["setup_seconds"] += watch.seconds

    def attempt(batch: int) -> tuple[Reconstruction, Recording | None]:
        return _in_batches(cell, solver, plan, bench, batch, record, observer, watched=watched)

    def tell(batch: int) -> None:
        observer.warn(f"{cell.labels['solver']} ran out of memory; trying again with batches of {batch}")

    task = ("solve", cell.resolved["solver"], cell.resolved["operator"], cell.dataset.shape)
    return sizes.fit(task, len(cell.dataset.ids), attempt, tell)


def _in_batches(
    cell: Cell, solver: Solver, plan: Plan, bench: Bench, batch: int, record: Record, observer: Observer,
    *, watched: bool,
) -> tuple[Reconstruction, Recording | None]:  # fmt: skip
    n = len(cell.dataset.ids)
    watch = meters.Stopwatch(plan.device)
    parts: list[Reconstruction] = []
    course: Recording | None = None
    with meters.PeakMemory(plan.device) as peak, meters.counting() as calls:
        for part in batches(n, batch):
            ids = cell.dataset.ids[part]
            problem = part_of(bench.case.problem, part)

            def progress(done: int, total: int, start: int = part.start, size: int = len(ids)) -> None:
                observer.cell_progress((start + size * done / max(total, 1)) / n)

            with torch.random.fork_rng(devices=[plan.device] if plan.device.type == "cuda" else []):
                # for solvers that draw from torch's global state against the contract: at least repeatable
                torch.manual_seed(generator("global state", cell.seed).initial_seed())
                with _course(course, start=watched and not parts) as course, watch:
                    answer = solver.solve(problem, rng=Rng(cell.seed, ids), progress=progress)
            parts.append(checked_answer(answer, problem))
            observer.cell_progress(part.stop / n)
    record.timing |= {"solver_seconds": watch.seconds, "seconds_per_image": watch.seconds / n, "batch": batch}
    record.peak_memory_mib = peak.mib
    seconds = calls.seconds
    network_seconds = seconds.pop(meters.NETWORK, 0.0)
    record.timing |= {"network_seconds": network_seconds, "operator_seconds": sum(seconds.values())}
    operator_calls = {name: images / n for name, images in calls.images.items() if name != meters.NETWORK}
    record.counters = {
        "nfe": calls.images[meters.NETWORK] / n,
        "operator_calls": sum(operator_calls.values()),
        **operator_calls,
    }
    return _joined(parts), course


def _course(course: Recording | None, *, start: bool) -> AbstractContextManager[Recording | None]:
    """A recording that starts here, or the one there is, untouched."""
    return recording() if start else nullcontext(course)


def _joined(parts: Sequence[Reconstruction]) -> Reconstruction:
    """The answers for the batches as one. What only some of them tell is left out."""
    names = set.intersection(*(set(part.info) for part in parts))
    info = {name: torch.cat([part.info[name] for part in parts]) for name in parts[0].info if name in names}
    curved = set.intersection(*(set(part.curves) for part in parts))
    curves = {name: concatenate_curves([part.curves[name] for part in parts]) for name in curved}
    deviations = [part.deviation for part in parts if part.deviation is not None]
    deviation = torch.cat(deviations) if len(deviations) == len(parts) else None
    if deviation is not None:
        info[DEVIATION] = deviation.double().square().mean(dim=item_axes(deviation)).sqrt()
    return Reconstruction(torch.cat([part.x for part in parts]), info, curves, deviation)
