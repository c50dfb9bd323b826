"""Structures from their projections without noise: steps of `cg`, shell correlation and time.

    uv run python benchmarks/structure.py

Projects the potential of the packaged structure 3mht, which fills 0.65 of the box, along random orientations and solves
for it. The correlation is the least over the shells up to 0.8 of the Nyquist frequency. Seconds are of processor time:
A once, A^T once with the kernel of A^T A, and one step.
"""

from __future__ import annotations

import time

import torch

from cryobench.core import MINMAX, Imaging, Problem, build_operator
from cryobench.metrics.rings import ring_sums
from cryobench.numerics.fft import rfftn
from cryobench.operators.noise import NoNoise
from cryobench.physics.potential import potential
from cryobench.registry import installed
from cryobench.rng import Rng
from cryobench.solvers.cg import Cg
from cryobench.sources.structures import read_structure

CASES = [
    (48, "project:2000"),
    (48, "ctf:12000@project:2000"),
    (48, "fourier:0.5@ctf:12000@project:2000"),
    (48, "sumpool:4@ctf:12000@project:300"),
]
STEPS = (3, 5, 10, 20, 40)


def least_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """The least FSC of two cubes up to 0.8 of the Nyquist frequency."""
    shape = tuple(a.shape[2:])
    x, y = (rfftn(volume.double(), 3) for volume in (a, b))
    cross, *powers = (ring_sums((p * q.conj()).real, shape)[0] for p, q in ((x, y), (x, x), (y, y)))
    return float((cross / (powers[0] * powers[1]).sqrt())[: int(0.4 * shape[0])].min())


def main() -> None:
    atoms = read_structure("3mht")
    print("| volume | operator | " + " | ".join(f"{s} steps" for s in STEPS) + " | A | A^T, kernel | step |")
    print("|---" * (5 + len(STEPS)) + "|")
    for n, spec in CASES:
        pixel = 2 * atoms.radius / 0.65 / n
        x = torch.from_numpy(potential(atoms, n, pixel, 50.0))[None, None]
        operator = build_operator(installed().make("operators", spec), Imaging((n, n, n), (pixel,)), seed=0)
        begin = time.process_time()
        y = operator.A(x)
        projected = time.process_time()
        _ = operator.A_adjoint(y), operator.A_adjoint_A(x)
        prepared = time.process_time()
        operator.A_adjoint_A(x)
        stepped = time.process_time()
        problem = Problem(operator, y, NoNoise(), torch.zeros((1, 1, 1, 1)), MINMAX)
        found = [least_correlation(Cg(steps, tol=0.0).solve(problem, rng=Rng(0, ["0"])).x, x) for steps in STEPS]
        values = " | ".join(f"{value:.4f}" for value in found)
        times = f"{projected - begin:.1f} s | {prepared - projected:.1f} s | {stepped - prepared:.3f} s"
        print(f"| {n}³ | `{spec}` | {values} | {times} |", flush=True)


if __name__ == "__main__":
    main()
