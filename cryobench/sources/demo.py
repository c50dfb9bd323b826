"""Packaged images for trying things out without any data of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.core import Source, Stack
from cryobench.errors import DataError, SelectionError

if TYPE_CHECKING:
    import pandas as pd

_ARRAYS = Path(__file__).with_name("demo.npz")


@dataclass(frozen=True)
class Demo(Source):
    """24 simulated particle images, 128 x 128 at 3 Å per pixel: a stand-in for data, for examples and quick checks.

    They look like cryo-EM particles and are not: four made-up assemblies of Gaussian blobs (none from a real
    structure) in random orientations, dark protein, with the CTF of a 300 kV microscope at 0.8 to 2.5 µm underfocus
    and white noise at a signal-to-noise ratio of 2 inside the particle, which is cleaner than real single images.
    The noise is part of the images, as it is in a file: no clean version is given. Conclusions about solvers need
    real data. Made by tools/make_demo.py.
    """

    def open(self) -> DemoStack:
        """Open the packaged images. Raises `DataError` where the installation lacks them."""
        return DemoStack()


class DemoStack(Stack):
    """The demo images, in arbitrary units 0 to 255 (each image spans them)."""

    label = "demo"

    def __init__(self) -> None:
        try:
            with np.load(_ARRAYS, allow_pickle=False) as arrays:
                self._images = arrays["images"]
                self._pixel_size = float(arrays["pixel_size_A"])
                self._optics = {name: arrays[name] for name in arrays.files if name != "images"}
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"the packaged demo images {_ARRAYS} cannot be read; install cryobench again") from error
        self.shape = (int(self._images.shape[1]), int(self._images.shape[2]))

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> np.ndarray:
        """Image `index` as float32 [128, 128], 0 to 255."""
        if not 0 <= index < len(self):
            raise SelectionError(f"image {index} of demo does not exist; it has {len(self)}, from 0")
        return self._images[index].astype(np.float32)

    def pixel_size(self, index: int) -> float:
        """3.0 Å per pixel."""
        return self._pixel_size

    @property
    def table(self) -> pd.DataFrame:
        """The CTF that each image was made with, a row per image, in RELION's columns (Å, degrees, kV, mm)."""
        import pandas as pd

        u, v, angle = self._optics["defocus_u_v_A_angle_deg"].T
        return pd.DataFrame(
            {
                "rlnDefocusU": u,
                "rlnDefocusV": v,
                "rlnDefocusAngle": angle,
                "rlnVoltage": float(self._optics["voltage_kV"]),
                "rlnSphericalAberration": float(self._optics["cs_mm"]),
                "rlnAmplitudeContrast": float(self._optics["amplitude_contrast"]),
            }
        )
