"""The contract of noise models."""

from __future__ import annotations

from functools import cached_property

import torch

from cryobench.core import MINMAX, LinearOperator, Noisy, build_operator
from cryobench.rng import Rng
from cryobench.runner.checks import checked_measurements
from cryobench.testing.rules import (
    SEED,
    Broken,
    Rules,
    Subject,
    global_state_unchanged,
    particles,
    require,
    unmodified,
)
from cryobench.testing.slices import CentralSlices

RULES = Rules()
_IMAGES, _DRAWS = 4, 16
_SHAPES = {2: (32, 32), 3: (8, 8, 8)}
_IDS = tuple(map(str, range(_IMAGES)))
OPERATORS = {2: ("sumpool:2", "identity", "fourier:0.5"), 3: (CentralSlices(), "identity", "fourier:0.5")}
"""Operators by number of axes. A noise model is tested on the first that it accepts."""
DEVIATION = 0.1
"""Maximum relative difference between the stated deviation and the root mean square of the noise."""


class NoiseSubject(Subject):
    """A noise model on the first of the operators that it accepts."""

    @cached_property
    def operator(self) -> LinearOperator:
        reasons = []
        for spec in OPERATORS[self.dims]:
            recipe = self.registry.make("operators", spec) if isinstance(spec, str) else spec
            live = build_operator(recipe, _SHAPES[self.dims], seed=SEED)
            reason = self.component.unsupported(live, MINMAX)
            if reason is None:
                return live
            reasons.append(f"{spec}: {reason}")
        raise Broken(f"it refuses all usual operators ({'; '.join(reasons)})")

    @cached_property
    def exact(self) -> torch.Tensor:
        return self.operator.A(particles(_SHAPES[self.dims], _IMAGES).float())

    def halves(self, seed: int = SEED) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Measurements of two images of each particle, which are noisy if the noise model is that of the images."""
        if not self.component.of_image:
            return self.exact.clone(), None
        clean = particles(_SHAPES[self.dims], _IMAGES).float()
        draw = torch.Generator().manual_seed(seed)
        first, second = (self.operator.A(clean + torch.randn(clean.shape, generator=draw)) for _ in range(2))
        return first, second

    def apply(self, images: slice = slice(None), seed: int = SEED) -> Noisy:
        y, other = self.halves(seed)
        other = None if other is None else other[images]
        return self.component.apply_to_halves(y[images], other, self.operator, MINMAX, Rng(seed, _IDS[images]))


@RULES(
    "it accepts one of the usual operators",
    "see cryobench.testing.noises.OPERATORS, and what unsupported returns",
    vital=True,
)
def accepts(subject: NoiseSubject) -> None:
    _ = subject.operator


@RULES(
    "y and sigma have the right type and shape",
    "return Noisy(y, sigma) with y [B, M, *s] and sigma [B, 1, ..., 1], finite",
)
def shape(subject: NoiseSubject) -> None:
    checked_measurements(subject.apply(), subject.operator, _IMAGES)


@RULES("sigma is the deviation of the noise", "return the standard deviation of an entry of y, per image")
def deviation(subject: NoiseSubject) -> None:
    draws = [subject.apply(seed=SEED + k) for k in range(_DRAWS)]
    stated = torch.stack([draw.sigma for draw in draws]).square().mean(dim=0).sqrt().flatten()
    added = torch.stack([draw.y - subject.exact for draw in draws]).square().flatten(2).mean(dim=(0, 2)).sqrt()
    for i, (sigma, actual) in enumerate(zip(stated.tolist(), added.tolist(), strict=True)):
        require(
            abs(sigma - actual) <= DEVIATION * actual,
            f"image {i}: sigma is {sigma:.4g}, the noise has RMS {actual:.4g}",
        )


@RULES("the same seed gives the same noise", "take all random numbers from rng.stream(PURPOSE)")
def seeded(subject: NoiseSubject) -> None:
    require(torch.equal(subject.apply().y, subject.apply().y), "a second draw with the same seed gave a different y")


@RULES(
    "it does not change global state",
    "draw from rng.stream(PURPOSE), and do not set global options",
)
def global_state(subject: NoiseSubject) -> None:
    _ = subject.exact
    with global_state_unchanged():
        subject.apply()


@RULES("it does not modify its input", "write `y = y + noise`, not `y += noise`")
def inputs(subject: NoiseSubject) -> None:
    y, other = subject.halves()
    with unmodified(y, *([] if other is None else [other])):
        subject.component.apply_to_halves(y, other, subject.operator, MINMAX, Rng(SEED, _IDS))


@RULES("results do not depend on the batch", "take levels and draws per image: rng.stream has one sequence for each")
def alone(subject: NoiseSubject) -> None:
    batch = subject.apply()
    for i in range(_IMAGES):
        one = subject.apply(slice(i, i + 1))
        same = torch.allclose(one.y[0], batch.y[i], rtol=1e-5, atol=1e-6)
        require(
            same and torch.allclose(one.sigma[0], batch.sigma[i], rtol=1e-5), f"image {i} has different noise alone"
        )
