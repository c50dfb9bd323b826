"""The mean and the standard deviation of several draws of a sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from cryobench.core import Progress, kept_draws


class Drawn(NamedTuple):
    """mean, deviation: float64 [B, C, *S]; no deviation of one draw. draws: [B, K, C, *S] if they are wanted."""

    mean: torch.Tensor
    deviation: torch.Tensor | None
    draws: torch.Tensor | None


def averaged(draw: Callable[[int, Progress], torch.Tensor], samples: int, progress: Progress | None) -> Drawn:
    """The mean of draws and, of two or more, their standard deviation with samples - 1, float64.

    draw: makes draw number 0, 1, ..., and reports its steps. progress: of all draws.
    """

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(number * total + done, samples * total)

    total = square = torch.zeros((), dtype=torch.float64)
    kept: list[torch.Tensor] = []
    for number in range(samples):
        drawn = draw(number, report)
        if kept_draws.wanted():
            kept.append(drawn)
        x = drawn.double()
        total, square = total + x, square + x.square()
    draws = torch.stack(kept, dim=1) if kept else None
    mean = total / samples
    if samples == 1:
        return Drawn(mean, None, draws)
    return Drawn(mean, ((square - samples * mean.square()).clamp_min(0) / (samples - 1)).sqrt(), draws)
