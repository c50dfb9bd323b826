"""The contract of mask generators, of the image (pixel masks) and of its spectrum (Fourier masks)."""

from __future__ import annotations

from functools import cached_property

import torch

from cryobench.core import FourierMask, PixelMask, Shape
from cryobench.testing.rules import SEED, DoesNotApply, Rules, Subject, no_trace, require, smallest_shape

RULES = Rules()
_COUNT, _RHO = 4, 0.4
NOMINAL = 0.1
"""How far the kept fraction of a Fourier mask may be from what was asked for, on images of 64 pixels."""


class MaskSubject(Subject):
    """A mask generator, on the first images that it takes."""

    @cached_property
    def shape(self) -> Shape:
        return smallest_shape(lambda shape: self._draw(1, shape, SEED))

    def draw(self, seed: int = SEED, count: int = _COUNT, side: int | None = None) -> torch.Tensor:
        return self._draw(count, self.shape if side is None else (side, side), seed)

    def _draw(self, count: int, shape: Shape, seed: int) -> torch.Tensor:
        generator = self.made_again()
        if isinstance(generator, PixelMask):
            return generator.draw(count, shape, seed)
        return generator.draw(_RHO, shape, seed)


@RULES(
    "it masks images of a usual size", "raise IncompatibleError in draw for what it cannot mask, no more", vital=True
)
def takes(subject: MaskSubject) -> None:
    _ = subject.shape


@RULES(
    "it gives masks of the right shape and dtype",
    "give float32 [count, H, W] from a PixelMask, bool [H, W] from a FourierMask",
)
def shape(subject: MaskSubject) -> None:
    pixel = isinstance(subject.component, PixelMask)
    wanted = ((_COUNT, *subject.shape), torch.float32) if pixel else (subject.shape, torch.bool)
    got = subject.draw()
    require(
        (tuple(got.shape), got.dtype) == wanted,
        f"it gave {got.dtype} {list(got.shape)}, wanted {wanted[1]} {list(wanted[0])}",
    )
    require(got.isfinite().all(), "it gave values that are NaN or infinite")


@RULES(
    "the same seed gives the same masks",
    "draw from cryobench.rng.generator(seed, self, shape, index), and from nothing else",
)
def seeded(subject: MaskSubject) -> None:
    first = subject.draw()
    torch.rand(1)
    require(torch.equal(subject.draw(), first), "a second draw with the same seed gave other masks")


@RULES("it leaves global state as it was", "draw from cryobench.rng.generator(seed, self, shape, index)")
def global_state(subject: MaskSubject) -> None:
    with no_trace():
        subject.draw()


@RULES("the first masks of a longer draw are the same", "give every mask a stream of its own, by its index")
def prefix(subject: MaskSubject) -> None:
    if isinstance(subject.component, FourierMask):
        raise DoesNotApply("a Fourier mask is one mask")
    require(
        torch.equal(subject.draw(count=_COUNT + 2)[:_COUNT], subject.draw()), "a longer draw starts with other masks"
    )


@RULES("it is non-negative where it says so", "set nonnegative = False where a mask may have negative pixels")
def nonnegative(subject: MaskSubject) -> None:
    if isinstance(subject.component, FourierMask) or not subject.component.nonnegative:
        raise DoesNotApply("it does not say so")
    least = subject.draw().min().item()
    require(least >= 0, f"it says so, and has a pixel of {least:.3g}")


@RULES(
    "it keeps the fraction that was asked for",
    "choose round(rho H W) coefficients, or as nearly as the structure allows",
)
def fraction(subject: MaskSubject) -> None:
    if isinstance(subject.component, PixelMask):
        raise DoesNotApply("pixel masks are asked for by number")
    kept = subject.draw(side=64).float().mean().item()
    require(abs(kept - _RHO) <= NOMINAL, f"it kept {kept:.3f} of the coefficients, wanted {_RHO}")
