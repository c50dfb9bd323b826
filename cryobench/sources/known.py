"""Sources of images of a known distribution: `gaussian_field`, `gaussian_mixture`, `sparse_blocks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from cryobench.core import Source, Stack
from cryobench.distributions.blocks import BlocksParameters
from cryobench.distributions.distribution import Distribution
from cryobench.distributions.field import FieldParameters
from cryobench.distributions.mixture import MixtureParameters
from cryobench.errors import ParameterError
from cryobench.rng import generator


class KnownStack(Stack):
    """Independent images of a distribution, float32, without unit. Image i depends on the seed and on i alone.

    files: finds the files that the distribution depends on; None if they are not known.
    """

    def __init__(
        self,
        label: str,
        distribution: Distribution,
        number: int,
        seed: int,
        files: Callable[[], Sequence[Path] | None] = tuple,
    ):
        self.label, self.distribution, self._number, self._seed = label, distribution, number, seed
        self.shape, self._files = distribution.shape, files

    def __len__(self) -> int:
        return self._number

    def read(self, index: int) -> np.ndarray:
        """Image `index`, float32 [size, size]."""
        self.check(index)
        image = self.distribution.sample(generator(self._seed, self.label, index))[0, 0]
        return image.float().numpy()

    @property
    def white_noise(self) -> bool:
        """True: there is no noise."""
        return True

    def files(self, images: Sequence[int]) -> Sequence[Path] | None:
        """Those of the distribution, whatever the images; none if parameters determine it."""
        return self._files()


@dataclass(frozen=True)
class _Drawn(Source):
    """The parameters of the draws."""

    size: Annotated[int, "side of the images, pixels"] = 32
    number: Annotated[int, "of images"] = 64
    seed: Annotated[int, "of the draws"] = 0

    def _stack(self, label: str, distribution: Distribution, files: Callable[[], Sequence[Path] | None]) -> KnownStack:
        if self.number < 1:
            raise ParameterError(f"{label}: number must be at least 1, got {self.number}")
        return KnownStack(label, distribution, self.number, self.seed, files)

    @property
    def _shape(self) -> tuple[int, int]:
        if self.size < 2:
            raise ParameterError(f"size must be at least 2 pixels, got {self.size}")
        return self.size, self.size


@dataclass(frozen=True)
class GaussianField(FieldParameters, _Drawn):
    """Draws of the prior `gaussian_field`; with `--scaling none` it is the prior of exactly these images."""

    def open(self) -> KnownStack:
        """The images."""
        return self._stack("gaussian_field", self.distribution(self._shape), self.files)


@dataclass(frozen=True)
class GaussianMixture(MixtureParameters, _Drawn):
    """Draws of the prior `gaussian_mixture`; with `--scaling none` it is the prior of exactly these images."""

    def open(self) -> KnownStack:
        """The images."""
        return self._stack("gaussian_mixture", self.distribution(self._shape), self.files)


@dataclass(frozen=True)
class SparseBlocks(BlocksParameters, _Drawn):
    """Draws of the prior `sparse_blocks`; with `--scaling none` it is the prior of exactly these images."""

    def open(self) -> KnownStack:
        """The images."""
        return self._stack("sparse_blocks", self.distribution(self._shape), self.files)
