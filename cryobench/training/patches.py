"""Random patches of large images, each determined by the seed and its number in the sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

import torch

from cryobench.core import Examples, Samples, Window
from cryobench.core.source import size_text
from cryobench.errors import DataError
from cryobench.numerics.philox import RowDraws
from cryobench.numerics.symmetry import SYMMETRIES, transformed
from cryobench.training.images import distinct_origins

Scale = TypeVar("Scale")
_EXAMPLE, _PLACE, _SYMMETRY, _SWAP = range(4)
MEASURED = 2**22
"""Pixels of an image from which its mean and deviation are computed; smaller images are used whole."""
_STRIP = 16
"""Rows read together for them."""


@dataclass(frozen=True)
class Pair:
    """Patches [n, c, h, w] and what they should become, on the same scale. place: the index [n] of the wanted section
    of a gap between two."""

    input: torch.Tensor
    target: torch.Tensor
    place: torch.Tensor | None = None


class Scales(Generic[Scale]):
    """What is measured of whole examples, each once and when it is needed. measure(examples, index) measures it."""

    def __init__(self, stacks: Sequence[Examples], measure: Callable[[Examples, int], Scale]):
        self._stacks, self._measure = stacks, measure
        self._found: dict[tuple[int, int], Scale] = {}
        self._locks: dict[tuple[int, int], Lock] = {}

    def of(self, stack: int, index: int) -> Scale:
        """That of example `index` of a stack, computed on the processor wherever the data are."""
        with self._locks.setdefault((stack, index), Lock()):
            if (stack, index) not in self._found:
                self._found[stack, index] = self._measure(self._stacks[stack], index)
        return self._found[stack, index]


class Patches(Samples):
    """An endless sequence of pairs of patches, number 0, 1, ..., at random places of examples [2, H, W].

    Stacks are taken in turn; the example, the place, the symmetry and the exchange of the two images are drawn with
    replacement, from (seed, number) only. Both patches are on the scale on which the whole input image has mean 0 and
    deviation 1, as it has when the network is applied; nothing is clipped. Of an image of more than `MEASURED` pixels,
    mean and deviation are those of that many, in strips of rows at equal distances, so that a sample of a micrograph
    does not cost reading all of it.

    swap: exchange the two images in half of the samples.
    """

    def __init__(
        self,
        stacks: Sequence[Examples],
        *,
        side: int,
        seed: int,
        turns: bool,
        swap: bool,
        device: torch.device,
        of: str,
    ):
        self.shape = (side, side)
        self._stacks, self._turns, self._swap, self._device = stacks, turns, swap, device
        self._draws = RowDraws(seed, "training", of)
        self._scales = Scales(stacks, _measured_scale)

    @property
    def origins(self) -> list[dict[str, str]]:
        return distinct_origins(self._stacks)

    def facts(self, drawn: int) -> dict[str, Any]:
        """The digests of the images from which the first `drawn` patches were taken."""
        used = {chosen for start in range(0, drawn, 2**16) for chosen in self._chosen(start, min(start + 2**16, drawn))}
        digests = {digest for stack, index in sorted(used) for digest in self._stacks[stack].digests(index)}
        return {"image_shape": list(self.shape)} | ({"halves": sorted(digests)} if digests else {})

    def batch(self, step: int, size: int, part: slice = slice(None)) -> Pair:
        numbers = step * size + torch.arange(size)[part]
        places = self._draws.uniform(numbers, _PLACE, 2).tolist()
        kinds = (self._draws.uniform(numbers, _SYMMETRY, 1)[:, 0] * SYMMETRIES).int().tolist()
        swapped = (self._draws.uniform(numbers, _SWAP, 1)[:, 0] < 0.5).tolist()
        chosen = self._chosen_of(numbers)
        both = torch.empty((2, len(numbers), 1, *self.shape), device=self._device)
        for j, (stack, index) in enumerate(chosen):
            window = self._window(self._stacks[stack], index, places[j])
            pair = self._stacks[stack].read(index, window).to(self._device)
            first = 1 if self._swap and swapped[j] else 0
            mean, deviation = self._scales.of(stack, index)[first]
            offset = torch.tensor(-mean / deviation, device=self._device)
            for k, image in enumerate((pair[first], pair[1 - first])):
                turned = transformed(image, kinds[j]) if self._turns else image
                torch.add(offset, turned, alpha=1 / deviation, out=both[k, j, 0])
        if not both.sum().isfinite():  # in one pass; a value that is not finite makes the sum so
            names = sorted({self._stacks[stack].name(index) for stack, index in chosen})
            raise DataError(f"a patch of {' or '.join(names)} is not finite; train on images without it")
        return Pair(both[0], both[1])

    def _chosen(self, start: int, stop: int) -> list[tuple[int, int]]:
        return self._chosen_of(torch.arange(start, stop))

    def _chosen_of(self, numbers: torch.Tensor) -> list[tuple[int, int]]:
        """The stack and the example of each sample."""
        where = self._draws.uniform(numbers, _EXAMPLE, 1)[:, 0].tolist()
        of = (numbers % len(self._stacks)).tolist()
        return [(k, int(place * len(self._stacks[k]))) for k, place in zip(of, where, strict=True)]

    def _window(self, stack: Examples, index: int, place: Sequence[float]) -> Window:
        """The window of a patch, uniform over all places. Raises `DataError` for an image smaller than a patch."""
        _, *sides = stack.shape(index)
        room = [n - side for n, side in zip(sides, self.shape, strict=True)]
        if min(room) < 0:
            raise DataError(f"{stack.name(index)} is {size_text(sides)}, smaller than a patch of "
                            f"{size_text(self.shape)}; give a smaller patch")  # fmt: skip
        starts = [int(fraction * (free + 1)) for fraction, free in zip(place, room, strict=True)]
        return tuple(slice(start, start + side) for start, side in zip(starts, self.shape, strict=True))


def _measured_scale(examples: Examples, index: int) -> list[tuple[float, float]]:
    """Mean and deviation of both images of an example."""
    _, height, width = examples.shape(index)
    strips = [examples.read(index, (rows, slice(0, width))).cpu().double() for rows in measured_rows(height, width)]
    found = []
    for pixels in torch.cat(strips, dim=1).flatten(1):
        mean, deviation = float(pixels.mean()), float(pixels.std(correction=0))
        if not 0 < deviation < float("inf"):
            raise DataError(f"{examples.name(index)} is constant or not finite; train on images without it")
        found.append((mean, deviation))
    return found


def measured_rows(height: int, width: int) -> list[slice]:
    """The rows of an image from which mean and deviation are computed: all, or strips at equal distances."""
    strips = MEASURED // (_STRIP * width)
    if height * width <= MEASURED or strips < 2:
        return [slice(0, height)]
    starts = [i * (height - _STRIP) // (strips - 1) for i in range(strips)]
    return [slice(start, start + _STRIP) for start in starts]
