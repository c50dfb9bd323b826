"""Mixtures of structures ab initio: agreement of latents with the true classes.

    python benchmarks/abinitio_classes.py --structure 6zu5-large+3o21 --count 600 --size 32 --solver abinitio:classes=2

ari: the adjusted Rand index of the clusters of latents (k-means++, as many as classes) with the true classes.
corr: correlation of the voxels of the map at the mean latent of each class with its truth, after alignment.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from cryobench.core import HeterogeneitySolver, Imaging, Problem, Scale, build_operator
from cryobench.maps.alignment import align_volumes
from cryobench.maps.latents import agreement, clusters
from cryobench.operators.identity import Identity
from cryobench.operators.noise import NoNoise
from cryobench.registry import installed
from cryobench.rng import Rng
from cryobench.sources.heterogeneous import Heterogeneous


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structure", default="6zu5-large+3o21")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--snr", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--solver", action="append")
    asked = parser.parse_args()
    for seed in range(asked.seeds):
        stack = Heterogeneous("mixture", structure=asked.structure, size=asked.size, count=asked.count, snr=asked.snr,
                              seed=seed).open()  # fmt: skip
        hidden = [name for name in stack.table if name.startswith(("true", "rlnAngle", "rlnOrigin", "rlnClass"))]
        imaging = Imaging(stack.shape, (stack.pixel_size(0),) * asked.count, stack.table.drop(columns=hidden))
        operator = build_operator(Identity(), imaging, seed=0, dtype=torch.float32)
        y = torch.from_numpy(stack.read_block(range(asked.count)))[:, None]
        scale = Scale(torch.zeros(1).double(), torch.ones(1).double())
        problem = Problem(operator, y, NoNoise(), torch.zeros((asked.count, 1, 1, 1)), scale, imaging)
        for spec in asked.solver or ["abinitio:classes=2"]:
            report(spec, problem, stack, seed)


def report(spec: str, problem: Problem, stack, seed: int) -> None:
    solver = installed().make("solvers", spec)
    assert isinstance(solver, HeterogeneitySolver)
    began, cpu = time.perf_counter(), time.process_time()
    many = solver.solve(problem, rng=Rng(seed, [str(i) for i in range(problem.batch)])).heterogeneity
    assert many is not None
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    true = np.asarray(stack.table["trueClass"], dtype=int)
    found = clusters(many.latents.numpy(), len(set(true)))
    scores = []
    for number in sorted(set(true)):
        volume = torch.from_numpy(stack.volume(int(np.argmax(true == number)))[0])
        latent = many.latents[torch.from_numpy(true == number)].mean(dim=0, keepdim=True)
        own = many.model.volumes(latent)[0]
        own = align_volumes(own, volume).apply(own)
        scores.append(f"{np.corrcoef(own.flatten(), volume.flatten())[0, 1]:.3f}")
    print(
        f"seed {seed} {spec}: ari {agreement(found, true)[0]:.3f}, corr {' '.join(scores)}, {seconds:.0f} s, "
        f"{cpu:.0f} s of processor time, starts {' '.join(f'{value:.0f}' for value in many.starts)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
