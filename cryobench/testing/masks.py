"""The contract of mask generators: pixel masks and Fourier masks."""

from __future__ import annotations

from functools import cached_property

import torch

from cryobench.core import FourierMask, PixelMask, Shape
from cryobench.testing.rules import SEED, DoesNotApply, Rules, Subject, global_state_unchanged, require

RULES = Rules()
_COUNT, _RHO = 4, 0.4
NOMINAL = 0.1
"""Maximum difference between the kept and the requested fraction of a Fourier mask, on 64 x 64 or 16 x 16 x 16."""


class MaskSubject(Subject):
    """A mask generator, on the first shape that it accepts."""

    @cached_property
    def shape(self) -> Shape:
        return self.smallest_shape(lambda shape: self._draw(1, shape, SEED))

    def draw(self, seed: int = SEED, count: int = _COUNT, shape: Shape | None = None) -> torch.Tensor:
        return self._draw(count, shape or self.shape, seed)

    def _draw(self, count: int, shape: Shape, seed: int) -> torch.Tensor:
        generator = self.make_another()
        if isinstance(generator, PixelMask):
            return generator.draw(count, shape, seed)
        return generator.draw(_RHO, shape, seed)


@RULES(
    "it accepts a common image size", "raise IncompatibleError in draw only for shapes that it cannot mask", vital=True
)
def accepts(subject: MaskSubject) -> None:
    _ = subject.shape


@RULES(
    "its masks have the right shape and dtype",
    "return float32 [count, *shape] from a PixelMask, bool [*shape] from a FourierMask",
)
def shape(subject: MaskSubject) -> None:
    pixel = isinstance(subject.component, PixelMask)
    expected = ((_COUNT, *subject.shape), torch.float32) if pixel else (subject.shape, torch.bool)
    got = subject.draw()
    require(
        (tuple(got.shape), got.dtype) == expected,
        f"it gave {got.dtype} {list(got.shape)}, expected {expected[1]} {list(expected[0])}",
    )
    require(got.isfinite().all(), "it gave values that are NaN or infinite")


@RULES(
    "the same seed gives the same masks",
    "draw all random numbers from cryobench.rng.generator(seed, self, shape, index)",
)
def seeded(subject: MaskSubject) -> None:
    first = subject.draw()
    torch.rand(1)
    require(torch.equal(subject.draw(), first), "a second draw with the same seed gave different masks")


@RULES("it does not change global state", "draw from cryobench.rng.generator(seed, self, shape, index)")
def global_state(subject: MaskSubject) -> None:
    with global_state_unchanged():
        subject.draw()


@RULES("the first masks of a longer draw are the same", "draw each mask from its own generator, by its index")
def prefix(subject: MaskSubject) -> None:
    if isinstance(subject.component, FourierMask):
        raise DoesNotApply("a Fourier mask is one mask")
    require(
        torch.equal(subject.draw(count=_COUNT + 2)[:_COUNT], subject.draw()),
        "the first masks of a longer draw are different",
    )


@RULES("it is non-negative if it states so", "set nonnegative = False if a mask may have negative pixels")
def nonnegative(subject: MaskSubject) -> None:
    if isinstance(subject.component, FourierMask) or not subject.component.nonnegative:
        raise DoesNotApply("it does not state so")
    least = subject.draw().min().item()
    require(least >= 0, f"it states so, but has a pixel of {least:.3g}")


@RULES(
    "it keeps the requested fraction",
    "keep round(rho N) of the N coefficients, or as close to it as the structure allows",
)
def fraction(subject: MaskSubject) -> None:
    if isinstance(subject.component, PixelMask):
        raise DoesNotApply("pixel masks are requested by number")
    kept = subject.draw(shape={2: (64, 64), 3: (16, 16, 16)}[subject.dims]).float().mean().item()
    require(abs(kept - _RHO) <= NOMINAL, f"it kept {kept:.3f} of the coefficients, expected {_RHO}")
