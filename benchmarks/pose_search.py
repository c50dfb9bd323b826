"""Poses of simulated particles against their known map: errors and time.

python benchmarks/pose_search.py --size 64 --count 1000 --snr 0.1
"""

from __future__ import annotations

import argparse
import time

import torch

from cryobench.maps.particle_images import ParticleImages
from cryobench.maps.particles import Particles
from cryobench.maps.pose_search import Settings, search
from cryobench.maps.rotations import angle_between
from cryobench.physics.ctf import CtfParameters
from cryobench.physics.poses import Poses
from cryobench.sources.simulate import Simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structure", default="6zu5")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    for name in ("order", "refinements", "kept"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Settings, name))
    for name in ("lowest", "highest", "shift"):
        parser.add_argument(f"--{name}", type=float)
    asked = parser.parse_args()
    stack = Simulate(asked.structure, size=asked.size, count=asked.count, snr=asked.snr, seed=asked.seed).open()
    volume, pixel_size = stack.volume(0)
    poses = Poses.from_table(stack.table)
    known = Particles(asked.size, poses, CtfParameters.from_table(stack.table), pixel_size)
    images = ParticleImages(torch.from_numpy(stack.read_block(list(range(asked.count)))).to(asked.device), known)
    settings = Settings(asked.order, asked.refinements, asked.kept, asked.lowest, asked.highest, asked.shift)
    print(settings.for_side(asked.size), f"{pixel_size:.2f} Å per pixel")
    began, cpu = time.perf_counter(), time.process_time()
    found = search(images, torch.from_numpy(volume) * pixel_size, settings)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    angles = angle_between(found.rotations[:, 0].cpu(), poses.matrices)
    pixels = (found.shift[:, 0].cpu() - poses.shift / pixel_size).norm(dim=1)
    print(
        f"{asked.count} particles of {asked.size} pixels, snr {asked.snr:g}: median {angles.median():.2f} degrees and "
        f"{pixels.median():.2f} pixels, {float((angles < 10).double().mean()):.0%} within 10 degrees, "
        f"{seconds:.0f} s, {cpu:.0f} s of processor time"
    )


if __name__ == "__main__":
    main()
