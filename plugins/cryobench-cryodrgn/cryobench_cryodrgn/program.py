"""cryoDRGN's programs, and the files that they read and write.

Images are written as they are, with `--uninvert-data`. cryoDRGN's CTF is the negative of ours at all frequencies, and
so are its maps.
"""

from __future__ import annotations

import pickle
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import torch

from cryobench.errors import DependencyError, ResultsError
from cryobench.io.cryodrgn import DrgnTables, write_drgn_tables
from cryobench.maps.particle_images import ParticleImages

INSTALL = "install it (pip install cryodrgn), or give program=/path/to/bin/cryodrgn"
SIGN = -1.0
"""Of our maps and those of cryoDRGN."""
_LINES = 3
"""Last lines of the output that a message of failure states."""


@dataclass(frozen=True)
class Trained:
    """What `train_vae` wrote. latents: float64 [N, d]. weights, config: the content of its files."""

    latents: torch.Tensor
    weights: bytes
    config: bytes


def found(program: str) -> str:
    """The path of the program. Raises `DependencyError` where it is not installed."""
    path = shutil.which(program)
    if path is None:
        raise DependencyError(f"cryodrgn: the program {program!r} is not here; {INSTALL}")
    return path


def tables_of(images: ParticleImages) -> DrgnTables:
    """Poses and CTFs as cryoDRGN takes them. The images must have CTFs."""
    particles = images.particles
    ctf = particles.ctf
    assert ctf is not None
    side, count = images.side, len(images)
    names = ("defocus_u", "defocus_v", "angle", "voltage", "cs", "amplitude_contrast", "phase_shift")
    columns = [np.full(count, side), np.full(count, images.pixel_size), *(getattr(ctf, name).numpy() for name in names)]
    return DrgnTables(
        particles.poses.matrices.numpy().astype(np.float32),
        (-particles.poses.shift.numpy() / (images.pixel_size * side)).astype(np.float32),
        np.stack(columns, axis=1).astype(np.float32),
    )


def write_inputs(images: ParticleImages, folder: Path) -> None:
    """`particles.mrcs`, `poses.pkl` and `ctf.pkl`."""
    write_drgn_tables(tables_of(images), folder)
    with mrcfile.new(folder / "particles.mrcs") as file:
        file.set_data(images.images.cpu().numpy())
        file.set_image_stack()
        file.voxel_size = images.pixel_size


def run(program: str, arguments: list[str], folder: Path) -> None:
    """Run cryoDRGN in a folder. Raises `ResultsError` with its last lines where it fails."""
    done = subprocess.run([found(program), *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = " | ".join((done.stderr or done.stdout).strip().splitlines()[-_LINES:])
        raise ResultsError(f"cryodrgn {arguments[0]} failed with exit code {done.returncode}: {last}")


def trained(program: str, images: ParticleImages, options: list[str], folder: Path) -> Trained:
    """Train on particles; `options` of `train_vae` beside its files."""
    write_inputs(images, folder)
    files = ["particles.mrcs", "--poses", "poses.pkl", "--ctf", "ctf.pkl", "-o", "out"]
    run(program, ["train_vae", *files, "--uninvert-data", "--no-analysis", *options], folder)
    out = folder / "out"
    with (out / "z.pkl").open("rb") as file:
        latents = np.asarray(pickle.load(file), dtype=np.float64)
    if latents.shape[0] != len(images) or not np.isfinite(latents).all():
        raise ResultsError(f"cryodrgn gave latents of shape {list(latents.shape)} for {len(images)} particles, or not "
                           "finite ones; train with other settings")  # fmt: skip
    return Trained(torch.from_numpy(latents), (out / "weights.pkl").read_bytes(), (out / "config.yaml").read_bytes())


def volumes(program: str, weights: bytes, config: bytes, latents: torch.Tensor, folder: Path) -> torch.Tensor:
    """The maps of latents [m, d] by `eval_vol`, float32 [m, D, D, D]."""
    (folder / "weights.pkl").write_bytes(weights)
    (folder / "config.yaml").write_bytes(config)
    np.savetxt(folder / "z.txt", latents.double().numpy())
    run(program, ["eval_vol", "weights.pkl", "-c", "config.yaml", "--zfile", "z.txt", "-o", "maps"], folder)
    files = sorted((folder / "maps").glob("*.mrc"))
    if len(files) != len(latents):
        raise ResultsError(f"cryodrgn eval_vol wrote {len(files)} maps for {len(latents)} latents")
    return torch.stack([torch.from_numpy(SIGN * mrcfile.read(path).astype(np.float32)) for path in files])
