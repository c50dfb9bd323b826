"""Synthetic images of a few spots, as a cryobench data source."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from cryobench.core import Source, Stack


class ExampleStack(Stack):
    """Images that are computed when they are read. Image `index` depends only on (seed, index)."""

    def __init__(self, count: int, size: int, noise: float, seed: int):
        self.shape, self.label = (size, size), "example"
        self._count, self._noise, self._seed = count, noise, seed

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> np.ndarray:
        clean = self.clean(index)
        random = np.random.default_rng((self._seed, index, 1))
        return clean + self._noise * random.standard_normal(self.shape, dtype=np.float32)

    def clean(self, index: int) -> np.ndarray:
        self.check(index)
        random = np.random.default_rng((self._seed, index, 0))
        v, u = np.meshgrid(*(np.linspace(-1, 1, n) for n in self.shape), indexing="ij")
        spots = [np.exp(-((v - y) ** 2 + (u - x) ** 2) / 0.02) for y, x in random.uniform(-0.5, 0.5, (8, 2))]
        return np.sum(spots, axis=0).astype(np.float32)


@dataclass(frozen=True)
class Example(Source):
    """Images of eight Gaussian spots with white noise."""

    count: Annotated[int, "images"] = 100
    size: Annotated[int, "side of an image, in pixels"] = 128
    noise: Annotated[float, "standard deviation of the noise"] = 0.2
    seed: Annotated[int, "random seed"] = 0

    def open(self) -> Stack:
        return ExampleStack(self.count, self.size, self.noise, self.seed)
