"""`cross_spectrum`: the mean power spectra of specimen and noise, measured on micrographs in two halves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import torch

from cryobench.core import Pairs, Prior, Shape, Source, Window
from cryobench.errors import DataError
from cryobench.file_state import FileState
from cryobench.io.selection import parse_images
from cryobench.numerics.fft import rfftn
from cryobench.numerics.shells import radial_frequency, shell_sums, shells
from cryobench.spec import Component

_SIDE = 2048
"""Largest side of the window of a micrograph from which its spectra are computed: 4 million coefficients are enough."""

_ROUNDING = 1e-5
"""Noise of at most this part of the power may be rounding in single precision."""


@dataclass(frozen=True, eq=False)
class Spectra:
    """Mean squares of a coefficient of the orthonormal transform, by its frequency, in the units of the files squared.

    signal: of the specimen. noise: of the noise in the first half. Both float64 [n], at least 0; entry i is at
    i / `per_cycle` cycles per pixel, and lies between its neighbours linearly. The mean of an image (entry 0) is not
    part of the signal; both have the values of the next entry there.
    """

    signal: torch.Tensor
    noise: torch.Tensor
    per_cycle: int

    def at(self, shape: Shape, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Signal and noise of each coefficient of the half spectrum of images of this shape, float64."""
        place = radial_frequency(shape, device) * self.per_cycle
        below = place.floor().long().clamp_max(len(self.signal) - 2)
        share = (place - below).clamp_max(1)
        signal, noise = (
            (1 - share) * values[below] + share * values[below + 1]
            for values in (self.signal.to(device), self.noise.to(device))
        )
        return signal, noise


@dataclass(frozen=True)
class CrossSpectrum(Prior):
    """Power spectra of specimen S and noise N from micrographs in two halves a and b, averaged over shells.

        S = <Re A B*>,    N = <|A|^2> - S

    A and B are the transforms of the halves, whose noise is independent. The average is over all coefficients of a
    shell of all micrographs. They should be of the same pixel size, dose and defocus range as those that are denoised,
    and others than those: a metric that uses the other half is empty for micrographs that are among them.
    """

    location_fields = ("pairs", "images")

    pairs: Annotated[Source, Component("sources", folder="sums"), "micrographs in two halves, such as pairs=./FOLDER"]
    images: Annotated[str | None, "which of them, such as 4:8; none: all"] = None

    def check(self, shape: Shape) -> None:
        self.selected()

    def prepare(self, device: torch.device) -> None:
        self.load()

    def load(self) -> Spectra:
        """The spectra, computed once in a process. Raises `DataError` for data without halves."""
        return _spectra(self, _stamp(*self.selected()))

    def weights_digest(self) -> str:
        """SHA-256 of the digests of the halves."""
        return hashlib.sha256(repr(self._digests()).encode()).hexdigest()

    def trained_on(self) -> Sequence[Mapping[str, str]]:
        """The digest of each half as `half`, and the structures of simulated micrographs; without split and seed, as
        the digests tell micrographs of one simulation apart."""
        structure = self.pairs.open().origin.get("structure")
        halves = [{"half": digest} for both in self._digests() for digest in both]
        return halves if structure is None else [{"structure": structure}, *halves]

    def details(self) -> Mapping[str, Any]:
        return {"cross_spectrum": {"micrographs": len(self._digests()), "halves": self.weights_digest()}}

    def selected(self) -> tuple[Pairs, list[int]]:
        """The opened pairs, and the numbers of those to measure. Raises `DataError` for data without halves."""
        stack = self.pairs.open()
        pairs = stack.pairs
        if pairs is None:
            raise DataError(f"cross_spectrum: {stack.label} has no second half of each image; give a source of movies "
                            "or halves")  # fmt: skip
        return pairs, parse_images(self.images, len(pairs), len(pairs), label=pairs.label)

    def _digests(self) -> tuple[tuple[str, str], ...]:
        return _digests(self, _stamp(*self.selected()))


def _stamp(pairs: Pairs, chosen: Sequence[int]) -> tuple[FileState, ...]:
    """What changes when a file of these micrographs is edited or replaced."""
    files = {path for index in chosen for path in pairs.files(index) or ()}
    return tuple(FileState.of(path, "micrograph") for path in sorted(files))


@lru_cache(maxsize=8)
def _digests(prior: CrossSpectrum, stamp: object) -> tuple[tuple[str, str], ...]:
    """`stamp` is a cache key, see `_stamp`."""
    pairs, chosen = prior.selected()
    return tuple(pairs.digests(index) for index in chosen)


@lru_cache(maxsize=8)
def _spectra(prior: CrossSpectrum, stamp: object) -> Spectra:
    """`stamp` is a cache key, see `_stamp`."""
    pairs, chosen = prior.selected()
    windows = [_middle(pairs.shape(index)) for index in chosen]
    shapes = [tuple(part.stop - part.start for part in window) for window in windows]
    per_cycle = min(min(shape) for shape in shapes)
    cross, power, counts = (torch.zeros(per_cycle + 1, dtype=torch.float64) for _ in range(3))
    for index, window, shape in zip(chosen, windows, shapes, strict=True):
        shell = shells(shape, per_cycle=per_cycle)
        first, second = (_transform(half) for half in pairs.read(index, window))
        for sums, values in ((cross, (first * second.conj()).real), (power, first.abs().square()),
                             (counts, torch.ones_like(first.real))):  # fmt: skip
            found = shell_sums(values[None, None].double(), shell, shape)[0]
            sums[: len(found)] += found
    kept = int(counts.nonzero().max()) + 1
    if kept < 3:
        raise DataError(f"cross_spectrum: the micrographs of {pairs.label} are too small; give larger ones")
    signal, noise = (cross / counts)[:kept], ((power - cross) / counts)[:kept]
    if not (noise > _ROUNDING * (power / counts)[:kept]).any():
        raise DataError(f"cross_spectrum: the halves of {pairs.label} have no independent noise; give sums of other "
                        "frames")  # fmt: skip
    signal[0], noise[0] = signal[1], noise[1]
    return Spectra(signal.clamp_min(0), noise.clamp_min(0), per_cycle)


def _middle(shape: Sequence[int]) -> Window:
    """The window in the middle of a micrograph from which its spectra are computed."""
    return tuple(slice((n - min(n, _SIDE)) // 2, (n + min(n, _SIDE)) // 2) for n in shape)


def _transform(half: np.ndarray) -> torch.Tensor:
    """The orthonormal transform of an image minus its mean, complex64 [H, W // 2 + 1]."""
    return rfftn(torch.from_numpy(half - half.mean(dtype=np.float64).astype(np.float32)), norm="ortho")
