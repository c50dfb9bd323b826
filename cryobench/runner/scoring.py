"""Scoring: applies metrics to a reconstruction, batch by batch, and returns their results.

Metrics of all images together are given them chunk by chunk, and evaluated at the end (`Together`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from cryobench.core import (
    AnyMetric,
    Case,
    Column,
    Imaging,
    JointMetric,
    Measured,
    MeasuredTogether,
    Metric,
    Reconstruction,
    Structure,
)
from cryobench.errors import PluginError, one_line
from cryobench.record import CLEAN
from cryobench.runner.checks import batches
from cryobench.runner.measured_problem import case_part


@dataclass
class Scores:
    """The results of metrics for a reconstruction.

    columns: direction and unit of each column. values: a number per image by column. unmeasured: why a column has no
    number for some images. curves: [B, L] by name.
    """

    columns: list[Column] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)
    curves: dict[str, np.ndarray] = field(default_factory=dict)


_NO_TRUTH = "the images are the measurement and no truth; psnr_other and others use the other half of each"


def score(
    metrics: Sequence[AnyMetric],
    case: Case,
    reconstruction: Reconstruction,
    *,
    batch: int,
    against_clean: bool = True,
) -> Scores:
    """Evaluate every metric of single images on every image, `batch` at a time, against the truth and the clean image
    if it is known.

    Where the images are the measurement (`NoiseModel.of_image`) they are no truth; numbers against them are missing.
    Raises `PluginError` for a metric that breaks the contract.
    """
    clean = against_clean and case.clean is not None
    of_images = [metric for metric in metrics if isinstance(metric, Metric)]
    without_truth = [m for m in of_images if m.against_truth and case.problem.noise.of_image]
    comparisons = [
        (m, suffix)
        for m in of_images
        for suffix, valid in (("", m not in without_truth), (CLEAN, clean and m.against_truth))
        if valid
    ]
    measured: list[list[Measured]] = [[] for _ in comparisons]
    for part in batches(len(case.truth), batch):
        some, answer = case_part(case, part), _reconstruction_part(reconstruction, part)
        for parts, (metric, suffix) in zip(measured, comparisons, strict=True):
            truth = some.clean if suffix and some.clean is not None else some.truth
            parts.append(_measured(metric, dataclasses.replace(some, truth=truth), answer))
    scores = Scores()
    for column in (column for metric in without_truth for column in metric.columns):
        scores.columns.append(column)
        scores.values[column.name] = [math.nan] * len(case.truth)
        scores.unmeasured[column.name] = _NO_TRUTH
    for parts, (metric, suffix) in zip(measured, comparisons, strict=True):
        for column in metric.columns:
            name = column.name + suffix
            scores.values[name] = [value for part in parts for value in part.values[column.name].tolist()]
            scores.columns.append(dataclasses.replace(column, name=name))
            reasons = [part.unmeasured[column.name] for part in parts if column.name in part.unmeasured]
            if reasons and any(map(math.isnan, scores.values[name])):
                scores.unmeasured[name] = reasons[0]
        for name in parts[0].curves:
            _check_curve(metric, name)
            scores.curves[name + suffix] = np.concatenate([part.curves[name].detach().cpu().numpy() for part in parts])
    return scores


def _check_curve(metric: AnyMetric, name: str) -> None:
    if not name.isidentifier() or name == "file":
        raise PluginError(f"the metric {type(metric).__name__} returned a curve named {name!r}; use another name")


class Together:
    """The metrics of all images together, for the images of a data set.

    imaging: of all of them. structure: makes what is known of the structure that they show.
    """

    def __init__(self, metrics: Sequence[AnyMetric], imaging: Imaging, structure: Callable[[], Structure]):
        own = [metric for metric in metrics if isinstance(metric, JointMetric)]
        known = structure() if own else Structure()
        self._gathered = [(metric, metric.gather(imaging, known)) for metric in own]

    def add(self, case: Case, reconstruction: Reconstruction) -> None:
        """Add the next images."""
        if self._gathered:
            images = case.problem.scale.to_file(reconstruction.x)
            for _, gathering in self._gathered:
                gathering.add(images.clone(), reconstruction)

    def measure(self) -> tuple[list[Column], MeasuredTogether]:
        """The columns and the results of all metrics; numbers that are missing are left out."""
        columns: list[Column] = []
        total = MeasuredTogether({})
        for metric, gathering in self._gathered:
            found, name = gathering.measure(), type(metric).__name__
            if not isinstance(found, MeasuredTogether):
                raise PluginError(f"the metric {name} returned a {type(found).__name__}, not a MeasuredTogether")
            for column in metric.columns:
                if column.name not in found.values:
                    raise PluginError(f"the metric {name} declares a column {column.name!r} and returned no value")
            for curve in found.curves:
                _check_curve(metric, curve)
            columns += metric.columns
            total.values.update({c.name: float(found.values[c.name]) for c in metric.columns})
            total.unmeasured.update({name: one_line(reason) for name, reason in found.unmeasured.items()})
            total.curves.update(found.curves)
            total.volumes.update(found.volumes)
        missing = [name for name, value in total.values.items() if math.isnan(value)]
        for name in missing:
            del total.values[name]
        return columns, total


def joined_scores(parts: Sequence[Scores]) -> Scores:
    """The scores of all images, from those of consecutive parts."""
    first = parts[0]
    values = {name: [value for part in parts for value in part.values[name]] for name in first.values}
    unmeasured = {name: reason for part in reversed(parts) for name, reason in part.unmeasured.items()}
    curves = {name: np.concatenate([part.curves[name] for part in parts]) for name in first.curves}
    return Scores(first.columns, values, {name: unmeasured[name] for name in values if name in unmeasured}, curves)


def _reconstruction_part(reconstruction: Reconstruction, part: slice) -> Reconstruction:
    info = {name: values[part] for name, values in reconstruction.info.items()}
    deviation = None if reconstruction.deviation is None else reconstruction.deviation[part]
    halves = None if reconstruction.halves is None else (reconstruction.halves[0][part], reconstruction.halves[1][part])
    draws = None if reconstruction.draws is None else reconstruction.draws[part]
    return Reconstruction(
        reconstruction.x[part], info, deviation=deviation, halves=halves, samples=reconstruction.samples, draws=draws
    )


def _measured(metric: Metric, case: Case, answer: Reconstruction) -> Measured:
    """The checked result of a metric. The metric is given copies of all tensors, which it may modify."""
    problem = dataclasses.replace(case.problem, y=case.problem.y.clone(), sigma=case.problem.sigma.clone())
    clean, other = (None if image is None else image.clone() for image in (case.clean, case.other))
    own = dataclasses.replace(case, problem=problem, truth=case.truth.clone(), clean=clean, other=other)
    deviation = None if answer.deviation is None else answer.deviation.clone()
    halves = None if answer.halves is None else (answer.halves[0].clone(), answer.halves[1].clone())
    draws = None if answer.draws is None else answer.draws.clone()
    copied = dataclasses.replace(answer, x=answer.x.clone(), deviation=deviation, halves=halves, draws=draws)
    measured = metric.measure(own, copied)
    name = type(metric).__name__
    if not isinstance(measured, Measured):
        raise PluginError(f"the metric {name} returned a {type(measured).__name__}, not a Measured")
    values = {}
    for column in metric.columns:
        if not column.name.isprintable():
            raise PluginError(f"the name of the metric column {column.name!r} has characters that are not printable")
        if column.name not in measured.values:
            raise PluginError(f"the metric {name} declares a column {column.name!r} and returned no values for it")
        values[column.name] = torch.as_tensor(measured.values[column.name]).flatten().double()
        if len(values[column.name]) != len(case.truth):
            raise PluginError(
                f"the metric column {column.name!r} has {len(values[column.name])} values for {len(case.truth)} images"
            )
    reasons = {name: one_line(reason) for name, reason in measured.unmeasured.items()}
    return Measured(values, measured.curves, reasons)
