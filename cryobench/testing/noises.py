"""The contract of noise models."""

from __future__ import annotations

from functools import cached_property

import torch

from cryobench.core import MINMAX, LinearOperator, Noisy, build_operator
from cryobench.rng import Rng
from cryobench.runner.checks import checked_measurements
from cryobench.testing.rules import SEED, Broken, Rules, Subject, no_trace, particles, require, untouched

RULES = Rules()
_SIDE, _IMAGES, _DRAWS = 32, 4, 16
_IDS = tuple(map(str, range(_IMAGES)))
OPERATORS = ("sumpool:2", "identity", "fourier:0.5")
DEVIATION = 0.1
"""How far the stated deviation may be from the root mean square of what was added, relative to it."""


class NoiseSubject(Subject):
    """A noise model on the first of the usual operators that it takes."""

    @cached_property
    def operator(self) -> LinearOperator:
        reason = None
        for spec in OPERATORS:
            recipe = self.registry.make("operators", spec)
            live = build_operator(recipe, (_SIDE, _SIDE), seed=SEED)
            reason = self.component.unsupported(live, MINMAX)
            if reason is None:
                return live
        raise Broken(f"it takes none of {', '.join(OPERATORS)}: {reason}")

    @cached_property
    def exact(self) -> torch.Tensor:
        return self.operator.A(particles((_SIDE, _SIDE), _IMAGES).float())

    def apply(self, images: slice = slice(None), seed: int = SEED) -> Noisy:
        return self.component.apply(self.exact[images].clone(), self.operator, MINMAX, Rng(seed, _IDS[images]))


@RULES(
    "it takes one of the usual operators",
    "see cryobench.testing.noises.OPERATORS, and what unsupported says",
    vital=True,
)
def takes(subject: NoiseSubject) -> None:
    _ = subject.operator


@RULES(
    "it gives y and sigma as the contract has them",
    "return Noisy(y, sigma) with y [B, M, *s] and sigma [B, 1, ..., 1], finite",
)
def shape(subject: NoiseSubject) -> None:
    checked_measurements(subject.apply(), subject.operator, _IMAGES)


@RULES("sigma is the deviation of what was added", "state the standard deviation of an entry of y, per image")
def deviation(subject: NoiseSubject) -> None:
    draws = [subject.apply(seed=SEED + k) for k in range(_DRAWS)]
    said = torch.stack([draw.sigma for draw in draws]).square().mean(dim=0).sqrt().flatten()
    added = torch.stack([draw.y - subject.exact for draw in draws]).square().mean(dim=(0, 2, 3, 4)).sqrt()
    for i, (stated, actual) in enumerate(zip(said.tolist(), added.tolist(), strict=True)):
        require(
            abs(stated - actual) <= DEVIATION * actual, f"image {i}: it says {stated:.4g}, and added {actual:.4g} RMS"
        )


@RULES("the same seed gives the same noise", "take all random numbers from rng.stream(PURPOSE)")
def seeded(subject: NoiseSubject) -> None:
    require(torch.equal(subject.apply().y, subject.apply().y), "a second draw with the same seed gave another y")


@RULES(
    "it leaves global state as it was",
    "draw from rng.stream(PURPOSE), and set nothing that belongs to the whole program",
)
def global_state(subject: NoiseSubject) -> None:
    _ = subject.exact
    with no_trace():
        subject.apply()


@RULES("it leaves what it is given as it was", "write `y = y + noise`, not `y += noise`")
def inputs(subject: NoiseSubject) -> None:
    y = subject.exact.clone()
    with untouched(y):
        subject.component.apply(y, subject.operator, MINMAX, Rng(SEED, _IDS))


@RULES("an image alone is the image in a batch", "take levels and draws per image: rng.stream gives each its own")
def alone(subject: NoiseSubject) -> None:
    batch = subject.apply()
    for i in range(_IMAGES):
        one = subject.apply(slice(i, i + 1))
        same = torch.allclose(one.y[0], batch.y[i], rtol=1e-5, atol=1e-6)
        require(same and torch.allclose(one.sigma[0], batch.sigma[i], rtol=1e-5), f"image {i} alone has another noise")
