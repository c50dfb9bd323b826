"""Random gaps of volumes: two sections that are R apart, and the R - 1 sections between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from cryobench.core import Examples, Samples, Window
from cryobench.core.source import size_text
from cryobench.errors import DataError
from cryobench.numerics.philox import RowDraws
from cryobench.numerics.symmetry import SYMMETRIES, transformed
from cryobench.training.images import distinct_origins
from cryobench.training.patches import MEASURED, Pair, Scales

AXES = "zyx"
_EXAMPLE, _AXIS, _PLACE, _SYMMETRY, _REVERSED, _SECTION, _BLUR = range(7)


class GapPatches(Samples):
    """An endless sequence of patches of gaps, number 0, 1, ..., from examples [1, D, H, W].

    Sections lie across one of `axes`, drawn uniformly: "zyx" for isotropic volumes, "yx" for the lateral axes of an
    anisotropic one. Stacks are taken in turn; the volume, the axis, the place, the symmetry, the order of the sections
    and the wanted section are drawn from (seed, number) only. All are on the scale on which the whole volume has mean 0
    and deviation 1, measured on sections at equal distances of volumes of more than `MEASURED` voxels.

    joint: the target is all sections between, else one of them, whose index 0 to R - 2 is `Pair.place`. blur: each of
    the two sections is blurred with probability 1/2, by a Gaussian of this standard deviation in pixels.
    """

    def __init__(
        self,
        stacks: Sequence[Examples],
        *,
        gap: int,
        side: int,
        axes: str,
        joint: bool,
        blur: float,
        seed: int,
        turns: bool,
        device: torch.device,
        of: str,
    ):
        self.shape = (side, side)
        self._stacks, self._gap, self._axes, self._joint = stacks, gap, [AXES.index(name) for name in axes], joint
        self._turns, self._blur, self._device = turns, blur, device
        self._draws = RowDraws(seed, "gaps", of)
        self._scales = Scales(stacks, _measured_scale)
        for stack in stacks:
            if len(stack.shape(0)) != 4:
                raise DataError(f"{stack.label} holds images of {size_text(stack.shape(0)[1:])}; gaps between sections "
                                "need volumes: give volume:FILE or tissue:SEED")  # fmt: skip

    @property
    def origins(self) -> list[dict[str, str]]:
        return distinct_origins(self._stacks)

    def facts(self, drawn: int) -> dict[str, Any]:
        return {"image_shape": list(self.shape)}

    def batch(self, step: int, size: int, part: slice = slice(None)) -> Pair:
        """Conditions [n, 2, h, w] and targets [n, R - 1 or 1, h, w]."""
        numbers = step * size + torch.arange(size)[part]
        drawn = {purpose: self._draws.uniform(numbers, purpose, count).tolist()
                 for purpose, count in ((_EXAMPLE, 1), (_AXIS, 1), (_PLACE, 3), (_SYMMETRY, 1), (_REVERSED, 1),
                                        (_SECTION, 1), (_BLUR, 2))}  # fmt: skip
        conditions, targets, places = [], [], []
        for j, number in enumerate(numbers.tolist()):
            stack = number % len(self._stacks)
            index = int(drawn[_EXAMPLE][j][0] * len(self._stacks[stack]))
            axis = self._axes[int(drawn[_AXIS][j][0] * len(self._axes))]
            sections = self._sections(stack, index, axis, drawn[_PLACE][j])
            if self._turns:
                sections = transformed(sections, int(drawn[_SYMMETRY][j][0] * SYMMETRIES))
                sections = sections.flip(0) if drawn[_REVERSED][j][0] < 0.5 else sections
            place = int(drawn[_SECTION][j][0] * (self._gap - 1))
            ends = sections[:: self._gap]
            if self._blur:
                ends = torch.stack([_blurred(end, self._blur) if chance < 0.5 else end
                                    for end, chance in zip(ends, drawn[_BLUR][j], strict=True)])  # fmt: skip
            conditions.append(ends)
            targets.append(sections[1:-1] if self._joint else sections[place + 1 : place + 2])
            places.append(place)
        where = None if self._joint else torch.tensor(places, device=self._device)
        return Pair(torch.stack(conditions), torch.stack(targets), where)

    def _sections(self, stack: int, index: int, axis: int, place: Sequence[float]) -> torch.Tensor:
        """R + 1 neighbouring sections across an axis, [R + 1, h, w]. Raises `DataError` for too small a volume."""
        examples = self._stacks[stack]
        wanted = [self.shape[0]] * 3
        wanted[axis] = self._gap + 1
        sides = examples.shape(index)[1:]
        room = [n - m for n, m in zip(sides, wanted, strict=True)]
        if min(room) < 0:
            raise DataError(
                f"{examples.name(index)} is {size_text(sides)}; a patch of sections across {AXES[axis]} needs "
                f"{size_text(wanted)}: give a smaller patch, or fewer axes"
            )
        starts = [int(fraction * (free + 1)) for fraction, free in zip(place, room, strict=True)]
        window = tuple(slice(start, start + n) for start, n in zip(starts, wanted, strict=True))
        mean, deviation = self._scales.of(stack, index)
        sections = examples.read(index, window)[0].to(self._device).movedim(axis, 0)
        if not sections.sum().isfinite():
            raise DataError(f"a patch of {examples.name(index)} is not finite; train on volumes without it")
        return (sections - mean) / deviation


def _blurred(image: torch.Tensor, width: float) -> torch.Tensor:
    """An image [H, W] convolved with a Gaussian of this standard deviation, its edges repeated."""
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(image.cpu().numpy(), width, mode="nearest")).to(image.device)


def _measured_scale(examples: Examples, index: int) -> tuple[float, float]:
    """Mean and deviation of a volume."""
    _, depth, height, width = examples.shape(index)
    count = min(depth, max(2, MEASURED // (height * width)))
    if count == depth:
        read = [examples.read(index)]
    else:
        places = [i * (depth - 1) // (count - 1) for i in range(count)]
        windows: list[Window] = [(slice(z, z + 1), slice(0, height), slice(0, width)) for z in places]
        read = [examples.read(index, window) for window in windows]
    voxels = torch.cat([each.cpu().double().flatten() for each in read])
    mean, deviation = float(voxels.mean()), float(voxels.std(correction=0))
    if not 0 < deviation < math.inf:
        raise DataError(f"{examples.name(index)} is constant or not finite; train on volumes without it")
    return mean, deviation
