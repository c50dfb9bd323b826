"""The noisy images of `ddpm`, each determined by the seed and its number in the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from cryobench.core import Examples, Samples, Shape
from cryobench.core.source import size_text
from cryobench.errors import DataError
from cryobench.numerics.philox import RowDraws
from cryobench.numerics.symmetry import SYMMETRIES, transformed

MEASURED = 256
"""Number of images used for the mean and standard deviation in the card of a prior."""
_INDEX, _SYMMETRY, _NOISE, _LEVEL = range(4)


@dataclass(frozen=True)
class Batch:
    """Images x_0 [n, 1, H, W] in [-1, 1], the noise to add to them, and their noise levels in (0, 1) [n]."""

    x0: torch.Tensor
    noise: torch.Tensor
    level: torch.Tensor


class Images(Samples):
    """An endless sequence of 2-D images, number 0, 1, ..., drawn with replacement from stacks in turn.

    The choice of an image, its symmetry operation, noise and noise level depend on (seed, number) only, so that a run
    can be interrupted and continued on any number of processes. stacks: the images [1, H, W] of each, or the images and
    the same without their own noise [2, H, W], which are then the sequence, on the scale of the noisy images.
    """

    def __init__(self, stacks: Sequence[Examples], *, seed: int, turns: bool, device: torch.device, of: str):
        self.shape = _common_shape(stacks)
        self._stacks, self._turns, self._device = stacks, turns, device
        self._draws = RowDraws(seed, "training", of)

    @property
    def origins(self) -> list[dict[str, str]]:
        return distinct_origins(self._stacks)

    def facts(self, drawn: int) -> dict[str, object]:
        return {"image_shape": list(self.shape), "intensity": self.intensity}

    def batch(self, step: int, size: int, part: slice = slice(None)) -> Batch:
        """The images step * size to (step + 1) * size - 1, or a part of them; float32 on the device.

        Their levels are stratified: image j has (u + j / size) mod 1 with one random u per batch, which is uniform
        for each image and has less variance over the batch.
        """
        places = torch.arange(size)[part]
        numbers = step * size + places
        offset = self._draws.uniform(torch.tensor([step]), _LEVEL, 1)[0, 0]
        noise = self._draws.normal(numbers.to(self._device), _NOISE, self.shape[0] * self.shape[1], torch.float32)
        level = ((offset + places / size) % 1).to(self._device)
        return Batch(self._read(numbers, -1), noise.reshape(-1, 1, *self.shape), level)

    @cached_property
    def intensity(self) -> dict[str, float]:
        """Mean and standard deviation over pixels of the first images in [-1, 1], with their noise."""
        images = self._read(torch.arange(MEASURED), 0).double()
        deviation = images.flatten(1).var(dim=1, correction=0).mean().sqrt()
        return {"mean": round(float(images.mean()), 4), "deviation": round(float(deviation), 4)}

    def _read(self, numbers: torch.Tensor, which: int) -> torch.Tensor:
        """These images in [-1, 1], transformed by their symmetry, [n, 1, H, W]. which: of the images of an example."""
        where = self._draws.uniform(numbers, _INDEX, 1)[:, 0].tolist()
        of = (numbers % len(self._stacks)).tolist()
        found, names, order = [], [], []
        for k, stack in enumerate(self._stacks):
            places = [j for j, stack_of in enumerate(of) if stack_of == k]
            if places:
                chosen = [int(where[j] * len(stack)) for j in places]
                found.append(stack.read_block(chosen).to(self._device))
                names += [stack.name(index) for index in chosen]
                order += places
        # together, because each check of the values waits for the device
        together = torch.cat(found)
        images = torch.empty(len(numbers), *self.shape, device=self._device)
        images[torch.tensor(order, device=self._device)] = scaled(together[:, 0], together[:, which], names)
        if self._turns:
            kinds = (self._draws.uniform(numbers, _SYMMETRY, 1)[:, 0] * SYMMETRIES).int()
            for kind in range(SYMMETRIES):
                places = (kinds == kind).nonzero()[:, 0].to(self._device)
                images[places] = transformed(images[places], kind)
        return images.unsqueeze(1)


def scaled(noisy: torch.Tensor, target: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """Each target [n, H, W] on the scale that maps the minimum and maximum of its noisy image to -1 and 1.

    names: of the images, for messages. Raises `DataError` for an image that is constant or not finite.
    """
    low, high = noisy.amin((1, 2), keepdim=True), noisy.amax((1, 2), keepdim=True)
    fine = (low < high) & low.isfinite() & high.isfinite() & target.isfinite().all(2, True).all(1, True)
    if not fine.all():
        name = names[int(fine.flatten().int().argmin())]
        raise DataError(f"{name} is constant or not finite; train on a stack without it")
    return (target - low) / (high - low) * 2 - 1


def distinct_origins(stacks: Sequence[Examples]) -> list[dict[str, str]]:
    """The distinct origins of the stacks that have one."""
    known = [dict(stack.origin) for stack in stacks if stack.origin]
    return [origin for i, origin in enumerate(known) if origin not in known[:i]]


def _common_shape(stacks: Sequence[Examples]) -> Shape:
    shapes = [stack.shape(0)[1:] for stack in stacks]
    sizes = ", ".join(f"{stack.label} {size_text(shape)}" for stack, shape in zip(stacks, shapes, strict=True))
    if any(len(shape) != 2 for shape in shapes):
        raise DataError(f"a network is trained on 2-D images, got {sizes}; give other data")
    if len(set(shapes)) != 1:
        raise DataError(f"the images to train on have different sizes: {sizes}; resample them to one, with size=")
    height, width = shapes[0]
    return height, width
