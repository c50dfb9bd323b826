"""The images of a training run: any of them, in any order, by their number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from cryobench.core import Shape, Stack
from cryobench.errors import DataError
from cryobench.io.streaming import ReadsBlocks
from cryobench.numerics.philox import RowDraws
from cryobench.numerics.symmetry import TURNS, turned

MEASURED = 256
"""Images whose intensities are measured for the card of a prior."""
_INDEX, _TURN, _NOISE, _LEVEL = range(4)


@dataclass(frozen=True)
class Batch:
    """Images x_0 [n, 1, H, W] in [-1, 1], the noise that is put on them, and where in (0, 1) their levels lie [n]."""

    x0: torch.Tensor
    noise: torch.Tensor
    level: torch.Tensor


class _Particles(Protocol):
    """Simulated images [n, H, W], on the device they were made on."""

    image: torch.Tensor
    signal: torch.Tensor


@runtime_checkable
class _Simulates(Protocol):
    """A stack that makes several images at once, on a device of its own."""

    def particles(self, indices: Sequence[int]) -> _Particles: ...


class Images:
    """An endless sequence of images, number 0, 1, ..., drawn with replacement from stacks in turn.

    Which image, how it is turned, its noise and its noise level follow from (seed, number) alone, so that a run that
    was interrupted goes on with what would have come, on any number of processes. clean: give the images without their
    own noise, on the scale that they have with it.
    """

    def __init__(
        self, stacks: Sequence[Stack], *, seed: int, turns: bool, device: torch.device, of: str, clean: bool = False
    ):
        self.shape = _common_shape(stacks)
        self._clean = clean
        self._stacks, self._turns, self._device = stacks, turns, device
        self._draws = RowDraws(seed, "training", of)

    @property
    def origins(self) -> list[dict[str, str]]:
        """What the images are of, each origin once, for stacks that know."""
        known = [dict(stack.origin) for stack in self._stacks if stack.origin]
        return [origin for i, origin in enumerate(known) if origin not in known[:i]]

    def batch(self, step: int, size: int, part: slice = slice(None)) -> Batch:
        """The images step * size to (step + 1) * size - 1, or a part of them; float32 on the device.

        Their levels are spread evenly over a batch, at a random offset: image j has (u + j / size) mod 1, which is
        uniform for each and has less variance for all.
        """
        places = torch.arange(size)[part]
        numbers = step * size + places
        offset = self._draws.uniform(torch.tensor([step]), _LEVEL, 1)[0, 0]
        noise = self._draws.normal(numbers.to(self._device), _NOISE, self.shape[0] * self.shape[1], torch.float32)
        level = ((offset + places / size) % 1).to(self._device)
        return Batch(self._read(numbers, clean=self._clean), noise.reshape(-1, 1, *self.shape), level)

    @cached_property
    def intensity(self) -> dict[str, float]:
        """Mean and deviation over pixels of the first images in [-1, 1], with their noise."""
        images = self._read(torch.arange(MEASURED), clean=False).double()
        deviation = images.flatten(1).var(dim=1, correction=0).mean().sqrt()
        return {"mean": round(float(images.mean()), 4), "deviation": round(float(deviation), 4)}

    def _read(self, numbers: torch.Tensor, *, clean: bool) -> torch.Tensor:
        """These images in [-1, 1], turned, [n, 1, H, W]."""
        where = self._draws.uniform(numbers, _INDEX, 1)[:, 0].tolist()
        of = (numbers % len(self._stacks)).tolist()
        images = torch.empty(len(numbers), *self.shape, device=self._device)
        for k, stack in enumerate(self._stacks):
            places = [j for j, stack_of in enumerate(of) if stack_of == k]
            if places:
                chosen = [int(where[j] * len(stack)) for j in places]
                noisy, target = block(stack, chosen, clean=clean)
                images[places] = scaled(noisy, target, chosen, stack.label).to(self._device)
        if self._turns:
            kinds = (self._draws.uniform(numbers, _TURN, 1)[:, 0] * TURNS).int().tolist()
            images = torch.stack([turned(image, kind) for image, kind in zip(images, kinds, strict=True)])
        return images.unsqueeze(1)


def block(stack: Stack, images: Sequence[int], *, clean: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """These images of a stack, and what to train on: they themselves, or the same without their noise.

    float32 [n, H, W] each, made at once where the stack can and on its own device where it has one. Raises `DataError`
    where the clean images are wanted and not known.
    """
    if isinstance(stack, _Simulates):
        particles = stack.particles(images)
        return particles.image, particles.signal if clean else particles.image
    if isinstance(stack, ReadsBlocks):
        noisy = torch.from_numpy(np.ascontiguousarray(stack.read_block(images), dtype=np.float32))
    else:
        noisy = torch.from_numpy(np.stack([stack.read(image) for image in images]).astype(np.float32, copy=False))
    return noisy, torch.stack([_clean(stack, image) for image in images]) if clean else noisy


def _clean(stack: Stack, image: int) -> torch.Tensor:
    pixels = stack.clean(image)
    if pixels is None:
        raise DataError(f"the clean image {image} of {stack.label} is not known; train on the images as they are")
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))


def scaled(noisy: torch.Tensor, target: torch.Tensor, numbers: Sequence[int], label: str) -> torch.Tensor:
    """Each target [n, H, W] on the scale that takes its noisy image from its own extremes to [-1, 1].

    Raises `DataError` for an image that has no scale.
    """
    low, high = noisy.amin((1, 2), keepdim=True), noisy.amax((1, 2), keepdim=True)
    fine = (low < high) & low.isfinite() & high.isfinite() & target.isfinite().all(2, True).all(1, True)
    if not fine.all():
        number = numbers[int(fine.flatten().int().argmin())]
        raise DataError(f"image {number} of {label} is constant or not finite; train on a stack without it")
    return (target - low) / (high - low) * 2 - 1


def _common_shape(stacks: Sequence[Stack]) -> Shape:
    shapes = {tuple(stack.shape) for stack in stacks}
    if len(shapes) != 1:
        told = ", ".join(f"{stack.label} {stack.shape[0]} x {stack.shape[1]}" for stack in stacks)
        raise DataError(f"the images to train on have different sizes: {told}; resample them to one, with size=")
    height, width = shapes.pop()
    return height, width
