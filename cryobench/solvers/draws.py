"""The mean and the standard deviation of several draws of a sampler."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cryobench.core import Progress


def averaged(
    draw: Callable[[int, Progress], torch.Tensor], samples: int, progress: Progress | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The mean of draws and, of two or more, their standard deviation with samples - 1, float64.

    draw: makes draw number 0, 1, ..., and reports its steps. progress: of all draws.
    """

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(number * total + done, samples * total)

    total = square = torch.zeros((), dtype=torch.float64)
    for number in range(samples):
        x = draw(number, report).double()
        total, square = total + x, square + x.square()
    mean = total / samples
    if samples == 1:
        return mean, None
    return mean, ((square - samples * mean.square()).clamp_min(0) / (samples - 1)).sqrt()
