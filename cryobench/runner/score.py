"""The metrics of a cell: numbers into its record, curves beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from cryobench.core import Case, Measured, Metric, Reconstruction
from cryobench.errors import PluginError
from cryobench.record import CLEAN, Record
from cryobench.runner.bench import AT_ONCE, part_of
from cryobench.runner.checks import batches
from cryobench.runner.memory import BatchSizes


def score(
    metrics: Sequence[Metric], case: Case, reconstruction: Reconstruction, record: Record, sizes: BatchSizes
) -> dict[str, np.ndarray]:
    """Fill in the metric columns and the solver's own per-image numbers; the curves are returned."""
    curves: dict[str, np.ndarray] = {}
    for metric, against, end in _comparisons(metrics, case, against_clean=not record.ceiling):
        parts = _in_batches(metric, against, reconstruction, sizes)
        for column in metric.columns:
            values = [value for part in parts for value in part.values[column.name].tolist()]
            record.values[column.name + end] = values
            record.columns.append(dataclasses.asdict(column) | {"name": column.name + end})
            reasons = [part.unmeasured[column.name] for part in parts if column.name in part.unmeasured]
            if reasons and any(map(math.isnan, values)):
                record.unmeasured[column.name + end] = reasons[0]
        for name in parts[0].curves:
            if not name.isidentifier() or name == "file":
                raise PluginError(f"the metric {type(metric).__name__} gives a curve {name!r}; use another name")
            curves[name + end] = np.concatenate([part.curves[name].detach().cpu().numpy() for part in parts])
    for name, values in reconstruction.info.items():
        record.solver_info[name] = values.double().tolist()
    solver_curves = {f"solver:{name}": values.cpu().numpy() for name, values in reconstruction.curves.items()}
    return curves | solver_curves


def _comparisons(
    metrics: Sequence[Metric], case: Case, *, against_clean: bool
) -> Iterator[tuple[Metric, Case, str]]:  # fmt: skip
    """Each metric with the case, and once more with the clean images for truth where they are known: what ends its
    names then comes with it."""
    for metric in metrics:
        yield metric, case, ""
        if against_clean and case.clean is not None and metric.against_truth:
            yield metric, dataclasses.replace(case, truth=case.clean), CLEAN


def _in_batches(metric: Metric, case: Case, reconstruction: Reconstruction, sizes: BatchSizes) -> list[Measured]:
    def attempt(batch: int) -> list[Measured]:
        return [_measured(metric, case, reconstruction, part) for part in batches(len(case.truth), batch)]

    task = ("score", metric, case.truth.shape[2:])
    return sizes.fit(task, len(case.truth), attempt, lambda batch: None, most=AT_ONCE)


def _measured(metric: Metric, case: Case, reconstruction: Reconstruction, part: slice) -> Measured:
    """A metric on a part of the images. It gets copies: one that writes into them harms nobody but itself."""
    own = dataclasses.replace(
        case,
        problem=part_of(case.problem, part),
        truth=case.truth[part].clone(),
        image_ids=case.image_ids[part],
        pixel_size=case.pixel_size[part],
        clean=None if case.clean is None else case.clean[part].clone(),
        within=None if case.within is None else case.within[part],
        data_range=tuple(end[part] if isinstance(end, torch.Tensor) else end for end in case.data_range),
    )
    info = {name: values[part] for name, values in reconstruction.info.items()}
    deviation = None if reconstruction.deviation is None else reconstruction.deviation[part].clone()
    measured = metric.measure(own, Reconstruction(reconstruction.x[part].clone(), info, deviation=deviation))
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
    reasons = {name: " ".join(str(reason).split()) for name, reason in measured.unmeasured.items()}
    return Measured(values, measured.curves, reasons)
