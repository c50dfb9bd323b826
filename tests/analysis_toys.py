"""A solver whose maps are known for every latent, and saved results of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cryobench.core import Heterogeneity
from cryobench.physics.poses import Poses
from cryobench.registry import Registry, installed
from cryobench.results.heterogeneity import FOLDER, write_heterogeneity
from cryobench.spec import parse

SIDE, PIXEL = 16, 2.5

SOURCE = '''
from dataclasses import dataclass

import torch

from cryobench.core import HeterogeneitySolver, VolumeModel


class BlobModel(VolumeModel):
    """A blob at x = 2 z1, y = 2 z2 (voxels from the centre)."""

    def __init__(self, side, dimensions, width):
        self.side, self.dimensions, self.width = side, dimensions, width

    def volumes(self, latents):
        r = torch.arange(self.side, dtype=torch.float64) - self.side // 2
        at = torch.zeros(len(latents), 2, dtype=torch.float64)
        at[:, : min(self.dimensions, 2)] = 2 * latents.double()[:, :2]
        square = (
            r[None, :, None, None] ** 2
            + (r[None, None, :, None] - at[:, 1, None, None, None]) ** 2
            + (r[None, None, None, :] - at[:, 0, None, None, None]) ** 2
        )
        return (-square / (2 * self.width**2)).exp().float()

    def arrays(self):
        return {"width": torch.tensor([self.width]), "dimensions": torch.tensor([self.dimensions]),
                "side": torch.tensor([self.side])}


@dataclass(frozen=True)
class Blobs(HeterogeneitySolver):
    """Not to be solved with."""

    factor: float = 1.0

    def solve(self, problem, *, rng, progress=None):
        raise NotImplementedError

    def volume_model(self, arrays):
        return BlobModel(int(arrays["side"]), int(arrays["dimensions"]), float(arrays["width"]))


@dataclass(frozen=True)
class Seeking(Blobs):
    """The same; finds poses."""

    seeks_poses = True
'''


def install(install_plugin) -> Registry:
    """The solvers `blobs` and `seeking`."""
    points = {"blobs": "blob_solvers:Blobs", "seeking": "blob_solvers:Seeking"}
    install_plugin("cryobench-blobs", {"cryobench.solvers": points}, blob_solvers=SOURCE)
    return installed()


def model(dimensions: int = 2, side: int = SIDE):
    import blob_solvers

    return blob_solvers.BlobModel(side, dimensions, 1.5)


def latents(count: int, dimensions: int = 2) -> np.ndarray:
    """Three groups of 1/2, 1/3 and 1/6 of the particles, at (-2, 0), (2, 0) and (2, 2) with deviation 0.1, shuffled."""
    rng = np.random.default_rng(3)
    of = np.repeat([0, 1, 2], [count // 2, count // 3, count - count // 2 - count // 3])
    rng.shuffle(of)
    z = np.array([[-2.0, 0, 0], [2, 0, 0], [2, 2, 0]])[of] + 0.1 * rng.normal(size=(count, 3))
    return z[:, :dimensions]


def save(
    run: Path,
    registry: Registry,
    source: str,
    table: pd.DataFrame | None,
    *,
    count: int = 60,
    dimensions: int = 2,
    found: Poses | None = None,
    images: list[int] | None = None,
    pixel_size: float | None = PIXEL,
) -> np.ndarray:
    """Write run/heterogeneity. Returns the latents [count, dimensions]."""
    run.mkdir()
    z = latents(count, dimensions)
    poses = {} if found is None else {"rotations": found.matrices, "shift": found.shift}
    write_heterogeneity(
        run / FOLDER, Heterogeneity(torch.from_numpy(z), model(dimensions), **poses, starts=(-3.0, -2.5)),
        solver="blobs:2" if found is None else "seeking", seeks_poses=found is not None,
        versions={"cryobench-blobs": "1.0"}, source=parse(source),
        images=range(count) if images is None else images, pixel_size=pixel_size, table=table,
    )  # fmt: skip
    return z


def particle_table(count: int) -> pd.DataFrame:
    """Poses, shifts and CTFs of particles in RELION's columns, in a star file's number of digits."""
    rng = np.random.default_rng(5)
    columns = {"rlnAngleRot": rng.uniform(-180, 180, count), "rlnAngleTilt": rng.uniform(0, 180, count),
               "rlnAnglePsi": rng.uniform(-180, 180, count), "rlnOriginXAngst": rng.normal(size=count),
               "rlnOriginYAngst": rng.normal(size=count), "rlnDefocusU": rng.uniform(1e4, 2e4, count),
               "rlnDefocusV": rng.uniform(1e4, 2e4, count), "rlnDefocusAngle": rng.uniform(0, 90, count),
               "rlnVoltage": 300.0, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}  # fmt: skip
    return pd.DataFrame(columns).assign(rlnMicrographName=[f"mic {number % 3}.mrc" for number in range(count)])


def stack(folder: Path, count: int = 60, side: int = SIDE) -> np.ndarray:
    """Images of which each is told by its values, [count, side, side]."""
    return np.random.default_rng(9).normal(size=(count, side, side)).astype(np.float32)
