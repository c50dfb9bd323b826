"""Micrographs in two halves with a known truth, for tests of training and denoising."""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.ndimage import gaussian_filter

from cryobench.core import Pairs, Stack


class Halves(Pairs):
    """`count` micrographs of about `side` pixels: smooth truth of deviation 1, plus white noise of deviations `noise`,
    in counts: 50 + 4 (truth + noise). read_pixels: how many have been read of each half."""

    def __init__(self, count: int = 3, side: int = 96, noise: tuple[float, float] = (1.0, 1.0), seed: int = 0):
        self.label, self.read_pixels, self.digested = "halves", 0, []
        self._noise, self._seed = noise, seed
        self._wholes: dict[int, np.ndarray] = {}
        self._shapes = [(side + 8 * i, side + 16 - 4 * i) for i in range(count)]

    def __len__(self) -> int:
        return len(self._shapes)

    def name(self, index: int) -> str:
        return f"mic{index:03d}"

    def shape(self, index: int) -> tuple[int, int]:
        return self._shapes[index]

    def truth(self, index: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, index, 0))
        smooth = gaussian_filter(rng.normal(size=self._shapes[index]), 3, mode="wrap")
        return (50 + 4 * (smooth - smooth.mean()) / smooth.std()).astype(np.float32)

    def whole(self, index: int) -> np.ndarray:
        if index not in self._wholes:
            rng = np.random.default_rng((self._seed, index, 1))
            noise = [4 * level * rng.normal(size=self._shapes[index]) for level in self._noise]
            self._wholes[index] = (self.truth(index) + np.stack(noise)).astype(np.float32)
        return self._wholes[index]

    def read(self, index: int, window=None) -> np.ndarray:
        pixels = self.whole(index)
        pixels = pixels if window is None else pixels[(slice(None), *window)]
        self.read_pixels += pixels[0].size
        return pixels

    def digests(self, index: int) -> tuple[str, str]:
        self.digested.append(index)
        first, second = (hashlib.sha256(half.tobytes()).hexdigest() for half in self.whole(index))
        return first, second

    def pixel_size(self, index: int) -> float | None:
        return 1.5


class Micrographs(Stack):
    """A stack with these halves: an image is the first half."""

    def __init__(self, halves: Halves):
        self._halves, self.label, self.shape = halves, halves.label, halves.shape(0)

    def __len__(self) -> int:
        return len(self._halves)

    def read(self, index: int) -> np.ndarray:
        return self._halves.whole(index)[0]

    def clean(self, index: int) -> np.ndarray:
        return self._halves.truth(index)

    @property
    def pairs(self) -> Halves:
        return self._halves
