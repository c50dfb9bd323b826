"""The result of a metric that cannot be computed: NaN and the reason."""

from __future__ import annotations

import torch

from cryobench.core import Case, Measured, Metric


def not_measured(metric: Metric, case: Case, reason: str) -> Measured:
    """NaN in every column of a metric for every image, with the reason."""
    values = torch.full((len(case.truth),), torch.nan, dtype=torch.float64)
    names = [column.name for column in metric.columns]
    return Measured(dict.fromkeys(names, values), unmeasured=dict.fromkeys(names, reason))
