"""The contract of encoders."""

from __future__ import annotations

from functools import cached_property

import torch

from cryobench.core import Shape
from cryobench.errors import CryobenchError
from cryobench.testing.rules import SEED, Rules, Subject, global_state_unchanged, particles, require, unmodified

RULES = Rules()
_COUNT, _PIXEL_SIZE = 6, 2.0
_TOLERANCE = 1e-3
"""Largest difference of features that rounding may make, relative to the largest of them."""


class EncoderSubject(Subject):
    """An encoder, on noisy images of the first shape that it accepts."""

    @cached_property
    def shape(self) -> Shape:
        return self.smallest_shape(self.component.check)

    @cached_property
    def images(self) -> torch.Tensor:
        clean = particles(self.shape, _COUNT)[:, 0].float()
        return clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(SEED))

    @cached_property
    def transfer(self) -> torch.Tensor:
        """Oscillating functions of the radius, a different one for each image, as CTFs are."""
        rows, columns = (torch.fft.fftfreq(n) for n in self.shape)
        radius = (rows[:, None] ** 2 + columns[: self.shape[1] // 2 + 1].abs() ** 2).sqrt()
        return -torch.cos(radius[None] * torch.linspace(8, 20, _COUNT)[:, None, None])

    def features(self, rows: slice | list[int] = slice(None)) -> torch.Tensor:
        """Those of some of the images, by another object of the component."""
        return self.make_another().features(self.images[rows].clone(), self.transfer[rows].clone(), _PIXEL_SIZE)

    @cached_property
    def expected(self) -> torch.Tensor:
        return self.features()


@RULES(
    "it accepts a common image size, and refuses others in one line",
    "raise a CryobenchError in check(shape), with a message of one line, where it cannot be used",
    vital=True,
)
def accepts(subject: EncoderSubject) -> None:
    _ = subject.shape
    try:
        subject.component.check((1, 2))
    except CryobenchError as error:
        require("\n" not in str(error), "the message of its error is more than one line")


@RULES("a row of finite features for each image", "return float64 [N, f] from features(images, transfer, pixel_size)")
def rows(subject: EncoderSubject) -> None:
    got = subject.expected
    require(isinstance(got, torch.Tensor), f"features() is a {type(got).__name__}, expected a torch.Tensor")
    good = got.ndim == 2 and len(got) == _COUNT and got.shape[1] > 0 and got.dtype == torch.float64
    require(good, f"it gave {got.dtype} {list(got.shape)}, expected torch.float64 [{_COUNT}, f]")
    require(got.isfinite().all(), "it gave features that are NaN or infinite")


@RULES("images without a CTF have features too", "treat transfer=None as images without a CTF")
def without_ctf(subject: EncoderSubject) -> None:
    got = subject.make_another().features(subject.images.clone(), None, _PIXEL_SIZE)
    require(len(got) == _COUNT and got.isfinite().all(), "without a CTF it gave no finite features")


@RULES("the same images have the same features", "draw nothing, or from numbers that are keyed by a parameter")
def repeatable(subject: EncoderSubject) -> None:
    first = subject.features()
    torch.rand(1)
    require(torch.equal(subject.features(), first), "a second call with the same images gave different features")


@RULES(
    "the features of an image do not depend on the others, or state that they do",
    "set joint = True if they depend on the other images, but not on their order",
)
def independent(subject: EncoderSubject) -> None:
    whole = subject.expected
    order = [*range(1, _COUNT), 0]
    turned = subject.features(order)
    _require_same(turned, whole[order], "in another order")
    if not subject.component.joint:
        parts = torch.cat([subject.features(slice(0, 2)), subject.features(slice(2, None))])
        _require_same(parts, whole, "in two batches")


def _require_same(got: torch.Tensor, expected: torch.Tensor, how: str) -> None:
    require(got.shape == expected.shape, f"{how}, features are {list(got.shape)}, expected {list(expected.shape)}")
    off = (got - expected).abs().max().item() / max(expected.abs().max().item(), 1e-30)
    require(off <= _TOLERANCE, f"{how}, features differ by {off:.2g} of the largest")


@RULES("it does not modify its input", "work on copies of images and transfer")
def no_side_effects(subject: EncoderSubject) -> None:
    images, transfer = subject.images.clone(), subject.transfer.clone()
    with unmodified(images, transfer):
        subject.make_another().features(images, transfer, _PIXEL_SIZE)


@RULES("it does not change global state", "draw from generators of your own, not from the global states")
def global_state(subject: EncoderSubject) -> None:
    with global_state_unchanged():
        subject.features()


@RULES("its weights have a digest", "return a fixed text for fixed weights from weights_digest(), '' without weights")
def digest(subject: EncoderSubject) -> None:
    first, again = subject.component.weights_digest(), subject.make_another().weights_digest()
    require(isinstance(first, str), f"weights_digest() is a {type(first).__name__}, expected a str")
    require(first == again, f"weights_digest() is {first!r}, and {again!r} for an equal encoder")
