"""Ab initio maps of simulated particles against their truth, one line a seed.

    python benchmarks/abinitio.py --structure 6zu5 --count 800 --size 48 --snr 0.5 --seeds 5

Each seed has its own poses, noise and starts. corr: correlation of the voxels of the map with the truth, after the
best rotation, shift and hand (`maps.alignment`). at 0.5: the last shell before the correlation of shells falls below
0.5, as a part of Nyquist's frequency. Beside it, of the same images: the spherical mean of the truth, and Fourier
inversion with random poses and with true ones. angle, pixels: median errors of poses in the frame of the truth.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from cryobench.maps.abinitio import Plan, solve
from cryobench.maps.alignment import align_poses, align_volumes
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.half_maps import HalfMaps
from cryobench.maps.inversion import wiener
from cryobench.maps.particle_images import ParticleImages
from cryobench.maps.particles import Particles
from cryobench.maps.rotations import random_rotations
from cryobench.physics.ctf import CtfParameters
from cryobench.physics.poses import Poses
from cryobench.rng import generator
from cryobench.sources.simulate import Simulate


def particles(
    structure: str, size: int, count: int, snr: float | None, seed: int
) -> tuple[ParticleImages, torch.Tensor]:
    """Particles and the map that they are projections of."""
    stack = Simulate(structure, size=size, count=count, snr=snr, seed=seed).open()
    volume, pixel_size = stack.volume(0)
    known = Particles(size, Poses.from_table(stack.table), CtfParameters.from_table(stack.table), pixel_size)
    images = torch.from_numpy(stack.read_block(list(range(count))))
    return ParticleImages(images, known), torch.from_numpy(volume) * pixel_size


def inverted(images: ParticleImages, poses: Poses) -> torch.Tensor:
    """The map of given poses."""
    sums = HalfMaps(images.side, images.pixel_size)
    sums.add(images.images, poses, images.particles.ctf, torch.arange(len(images)) % 2)
    return wiener(sums.sums, sums.kernels).full


def spherical_mean(volume: torch.Tensor) -> torch.Tensor:
    """The mean over all rotations about the centre: of each voxel those at the same distance."""
    D = len(volume)
    along = (torch.arange(D) - D // 2).double()
    shell = (along[:, None, None] ** 2 + along[:, None] ** 2 + along**2).sqrt().round().long().flatten()
    sums = torch.zeros(int(shell.max()) + 1).double().index_add(0, shell, volume.double().flatten())
    return (sums / torch.bincount(shell))[shell].view(D, D, D).float()


def against(found: torch.Tensor, true: torch.Tensor) -> tuple[float, float]:
    """Correlation of the voxels, and the part of Nyquist's frequency up to which that of shells is at least 0.5."""
    fsc = shell_correlation(found, true)
    below = (fsc < 0.5).nonzero()[:, 0]
    last = int(below[0]) if len(below) else len(fsc)
    return float(np.corrcoef(found.flatten(), true.flatten())[0, 1]), last / len(fsc)


def text(found: tuple[float, float]) -> str:
    return f"{found[0]:.3f} {found[1]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structure", default="6zu5")
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--count", type=int, default=800)
    parser.add_argument("--snr", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--starts", type=int, default=Plan.starts)
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    asked = parser.parse_args()
    print("seed | corr, at 0.5 | spherical mean | random poses | true poses | angle, pixels | seconds, cpu | starts")
    for seed in range(asked.first, asked.first + asked.seeds):
        images, true = particles(asked.structure, asked.size, asked.count, asked.snr, seed)
        began, cpu = time.perf_counter(), time.process_time()
        found = solve(images, Plan(asked.starts, rounds=asked.rounds), seed)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        own = align_volumes(found.maps[0].full, true).apply(found.maps[0].full)
        known = images.particles.poses
        rotations = random_rotations(len(images), generator(seed, "random poses"))
        random = inverted(images, Poses.of_matrices(rotations, known.shift))
        best = found.found
        errors = align_poses(best.rotations[:, 0], known.matrices, best.shift[:, 0] * images.pixel_size, known.shift,
                             images.pixel_size)  # fmt: skip
        print(
            f"{seed} | {text(against(own, true))} | {text(against(spherical_mean(true), true))}"
            f" | {text(against(random, true))} | {text(against(inverted(images, known), true))}"
            f" | {errors.angle_errors.median():.1f} {errors.shift_errors.median():.2f} | {seconds:.0f} {cpu:.0f}"
            f" | {' '.join(f'{value:.0f}' for value in found.starts)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
