"""`cryodrgn`: cryoDRGN's variational autoencoder, trained on the particles of a problem."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from cryobench.core import (
    Heterogeneity,
    HeterogeneitySolver,
    Problem,
    Progress,
    Reconstruction,
    VolumeModel,
    saved_arrays,
)
from cryobench.errors import CryobenchError, ParameterError, reason_of
from cryobench.maps.particle_images import particle_images
from cryobench.rng import Rng
from cryobench.solvers.consensus import projections, unsupported_particles
from cryobench_cryodrgn.program import found, trained, volumes

_PER_MAP = 32
"""Neighbours in the space of latents whose images are made from one map."""


@dataclass(frozen=True)
class CryoDrgn(HeterogeneitySolver):
    """cryoDRGN (Zhong et al. 2021, Nat. Methods 18:176), run as a program on what we write.

    The image of a particle is the projection of the map of one of its neighbours in the space of latents, since a map
    for every particle would take longer than the training.
    """

    dimensions: Annotated[int, "numbers of a latent (zdim)"] = 8
    epochs: Annotated[int, "passes over the images"] = 20
    width: Annotated[int, "of the layers of encoder and decoder"] = 1024
    layers: Annotated[int, "hidden layers of encoder and decoder"] = 3
    rate: Annotated[float, "learning rate of Adam"] = 1e-4
    batch: Annotated[int, "particles of a step"] = 16
    program: Annotated[str, "cryoDRGN's program, by name or path"] = "cryodrgn"

    def __post_init__(self) -> None:
        for name in ("dimensions", "epochs", "width", "layers", "batch"):
            if getattr(self, name) < 1:
                raise ParameterError(f"cryodrgn: {name} must be at least 1, got {getattr(self, name)}")
        if not self.rate > 0:
            raise ParameterError(f"cryodrgn: rate must be positive, got {self.rate:g}")

    def unsupported(self, problem: Problem) -> str | None:
        reason = unsupported_particles(problem, "cryodrgn", 200, 1200)
        if reason is not None:
            return reason
        try:
            found(self.program)
            if particle_images(problem, "cryodrgn").particles.ctf is None:
                return "cryodrgn needs the CTFs of the particles, and the images have none"
        except CryobenchError as error:
            return reason_of(error)
        side = problem.operator.image_shape[-1]
        return f"cryodrgn needs images of an even side, got {side}; give another --size" if side % 2 else None

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        images = particle_images(problem, "cryodrgn")
        options = [
            "--zdim",
            str(self.dimensions),
            "-n",
            str(self.epochs),
            "-b",
            str(self.batch),
            "--lr",
            str(self.rate),
        ]
        for part in ("enc", "dec"):
            options += [f"--{part}-dim", str(self.width), f"--{part}-layers", str(self.layers)]
        options += ["--seed", str(rng.seed % 2**31)]
        if not torch.cuda.is_available():
            options.append("--no-amp")
        with tempfile.TemporaryDirectory(prefix="cryodrgn-") as folder:
            result = trained(self.program, images, options, Path(folder))
        model = CryoDrgnVolumes(images.side, self.dimensions, self.program, result.weights, result.config)
        many = Heterogeneity(result.latents, model)
        x = torch.empty((len(images), images.side, images.side))
        groups = neighbourhoods(result.latents, _PER_MAP)
        maps = model.volumes(torch.stack([result.latents[rows[len(rows) // 2]] for rows in groups]))
        for rows, volume in zip(groups, maps, strict=True):
            x[rows] = projections(images, volume[None], rows)[0]
        if progress is not None:
            progress(1, 1)
        return Reconstruction(problem.scale.from_file(x[:, None]).to(problem.y), heterogeneity=many)

    def volume_model(self, arrays: Mapping[str, torch.Tensor]) -> VolumeModel:
        *files, shape = saved_arrays(arrays, "weights", "config", "shape")
        side, dimensions = shape.tolist()
        weights, config = (bytes(array.numpy().tobytes()) for array in files)
        return CryoDrgnVolumes(side, dimensions, self.program, weights, config)


@dataclass(frozen=True, eq=False)
class CryoDrgnVolumes(VolumeModel):
    """Maps by cryoDRGN's own decoder. weights, config: the content of its files."""

    side: int
    dimensions: int
    program: str
    weights: bytes
    config: bytes

    def volumes(self, latents: torch.Tensor) -> torch.Tensor:
        if not len(latents):
            return torch.zeros((0, *(self.side,) * 3))
        with tempfile.TemporaryDirectory(prefix="cryodrgn-") as folder:
            return volumes(self.program, self.weights, self.config, latents.cpu(), Path(folder))

    def arrays(self) -> dict[str, torch.Tensor]:
        contents = {name: torch.frombuffer(bytearray(getattr(self, name)), dtype=torch.uint8)
                    for name in ("weights", "config")}  # fmt: skip
        return {**contents, "shape": torch.tensor([self.side, self.dimensions])}


def neighbourhoods(latents: torch.Tensor, size: int) -> list[torch.Tensor]:
    """The numbers of the particles in groups of at most `size` neighbours, by halving along the widest axis."""
    waiting, groups = [torch.arange(len(latents))], []
    while waiting:
        rows = waiting.pop()
        points = latents[rows]
        axis = int((points.amax(0) - points.amin(0)).argmax())
        rows = rows[points[:, axis].argsort(stable=True)]
        if len(rows) <= size:
            groups.append(rows)
        else:
            waiting += [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
    return groups
