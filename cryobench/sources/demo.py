"""The source `demo`: simulated images for trying out the package without data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.core import Source, Stack
from cryobench.files import cache_folder, whole_file
from cryobench.sources.simulate import Simulate, SimulatedStack

if TYPE_CHECKING:
    import pandas as pd

RECIPE = Simulate("6zu5+6zu5-large+6zu5-small+3o21", snr=2.0, count=32)
_INPUTS = (
    "sources/simulate.py",
    "sources/particle_imaging.py",
    "sources/specimen.py",
    "sources/microscope.json",
    "sources/structures/catalogue.json",
    "physics/projection.py",
    "physics/potential.py",
)
"""The files that determine the images, besides the recipe: when one changes, the images are computed again."""


@dataclass(frozen=True)
class Demo(Source):
    """32 simulated particle images, 128 x 128: a ribosome, its two subunits and a small elongated protein in turn.

    The images of `simulate:6zu5+6zu5-large+6zu5-small+3o21,snr=2,count=32`: the CTF of a 300 kV microscope at defoci
    as measured on real particles, and white noise. Real images have twenty times the noise variance. The noise is part
    of the images, as in a file; the clean images are known, and metrics are also computed against them. The images are
    computed at first use and kept in the cache folder ($CRYOBENCH_CACHE, else ~/.cache/cryobench).
    """

    def open(self) -> DemoStack:
        """Open the images in the cache, or compute them."""
        return DemoStack()


class DemoStack(Stack):
    """The demo images, V Å, with clean images, CTF and poses."""

    label = "demo"

    def __init__(self) -> None:
        self._simulated: SimulatedStack = RECIPE.open()
        self._images, self._clean = _cached(self._simulated)
        self.shape = self._simulated.shape

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> np.ndarray:
        """Image `index` with its noise, float32 [128, 128], V Å."""
        self.check(index)
        return self._images[index].copy()

    def clean(self, index: int) -> np.ndarray:
        """Image `index` without noise, float32 [128, 128], V Å."""
        self.check(index)
        return self._clean[index].copy()

    def pixel_size(self, index: int) -> float:
        """Å per pixel of image `index`; it differs between the structures."""
        return self._simulated.pixel_size(index)

    def particle_radius(self, index: int) -> float:
        """Radius of the particle: Å from the centre of the structure to its farthest atom."""
        return self._simulated.particle_radius(index)

    def volume(self, index: int) -> tuple[np.ndarray, float]:
        """The potential of the structure in image `index` in volts, float32 [128, 128, 128], and Å per voxel."""
        return self._simulated.volume(index)

    @property
    def white_noise(self) -> bool:
        """Whether the noise is white."""
        return self._simulated.white_noise

    @property
    def table(self) -> pd.DataFrame:
        """CTF, pose, shift and structure (as class), a row per image, in RELION's columns."""
        return self._simulated.table

    @property
    def origin(self) -> dict[str, str]:
        """Structures, split and seed."""
        return self._simulated.origin


def _cached(stack: SimulatedStack) -> tuple[np.ndarray, np.ndarray]:
    """(images, clean images), each float32 [n, H, W]: from the cache, or computed and written to it."""
    path = cache_folder() / f"demo-{_digest()}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["images"], arrays["clean"]
    except Exception:  # missing, truncated or another format: numpy raises many kinds of errors
        made = stack.particles(range(len(stack)))
    images, clean = made.image.numpy(), made.signal.numpy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, images=images, clean=clean)
    except OSError:
        return images, clean  # the cache cannot be written: they are computed again next time
    return images, clean


def _digest() -> str:
    """Digest of everything that determines the images."""
    digest = hashlib.sha256(repr(RECIPE).encode())
    for name in _INPUTS:
        digest.update((Path(__file__).parents[1] / name).read_bytes())
    return digest.hexdigest()[:12]
