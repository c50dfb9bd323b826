"""docs/metrics.md against the metrics: every column with its direction and unit, and the example as printed there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import case_of, images, measure

from cryobench.core import AnyMetric, Case, Column, Measured, Metric, Reconstruction
from cryobench.maps import heterogeneity
from cryobench.maps import metric as map_metric
from cryobench.metrics import (
    cones,
    determined,
    fidelity,
    halves,
    missing_sections,
    p95,
    perceptual,
    spectral,
    texture,
    uncertainty,
)
from cryobench.posteriors import density, distance, gap, stein

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
METRICS = [
    made
    for module in (
        cones,
        density,
        distance,
        gap,
        stein,
        determined,
        fidelity,
        halves,
        heterogeneity,
        map_metric,
        missing_sections,
        p95,
        perceptual,
        spectral,
        texture,
        uncertainty,
    )
    for made in vars(module).values()
    if isinstance(made, type) and issubclass(made, AnyMetric) and made.__module__ == module.__name__
]


def test_the_table_has_every_column():
    rows = re.findall(r"^\| (`.+?`) \| (\w*) ?\| (\w*) ?\| .+ \|$", PAGE, re.MULTILINE)
    documented = {name: (better, unit) for names, better, unit in rows for name in re.findall(r"`(\w+)`", names)}
    columns = [column for metric in METRICS for column in metric.columns]
    assert documented == {c.name: (c.direction.replace("none", ""), c.unit) for c in columns}


def test_every_metric_has_a_docstring():
    assert len(METRICS) == 33
    made_up = [metric for metric in METRICS if (metric.__doc__ or "").startswith(f"{metric.__name__}(")]
    assert not made_up  # what a dataclass without a docstring is given


def test_the_example_runs():
    (code,) = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
    given = {"dataclass": dataclass, "Metric": Metric, "Column": Column, "Case": Case, "Measured": Measured,
             "Reconstruction": Reconstruction}  # fmt: skip
    exec(code, given)
    truth = images(2, (16, 16))
    x = truth.clone()
    x[1, 0, 3, 4] -= 0.5
    assert measure(given["Worst"](), case_of(truth), x).values["worst"].tolist() == [0, 0.25]
    assert torch.equal(truth[0], x[0])
