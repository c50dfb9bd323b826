"""Masks of random rows, as a cryobench mask generator."""

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import PixelMask, Shape
from cryobench.rng import generator


@dataclass(frozen=True)
class Example(PixelMask):
    """Masks whose rows are 1 with probability `prob`, else 0."""

    prob: Annotated[float, "probability that a row is 1"] = 0.5

    def draw(self, count: int, shape: Shape, seed: int) -> torch.Tensor:
        masks = []
        for index in range(count):  # one generator per mask: the first masks of a longer draw are the same
            g = generator(seed, self, shape, index)
            masks.append((torch.rand((shape[0], 1), generator=g) < self.prob).float().expand(shape))
        return torch.stack(masks)
