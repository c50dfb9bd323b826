"""Structures from their projections: steps of `cg`, and maps from noisy particles by Fourier inversion.

    uv run python benchmarks/structure.py
    uv run python benchmarks/structure.py --part inversion
    uv run python benchmarks/structure.py --part memory
    uv run --with torch-fourier-slice --with torch-ctf python benchmarks/structure.py --part speed

steps: projects the potential of the packaged structure 3mht, which fills 0.65 of the box, along random orientations and
solves for it, without noise. The correlation is the least over the shells up to 0.8 of the Nyquist frequency. Seconds
are of processor time: A once, A^T once with the kernel of A^T A, and one step.

inversion: 2,000 simulated particles of 64 x 64 with a signal-to-noise ratio of 0.1 and known poses and CTFs; beside it
the exact Wiener filter, with the true spectrum of the signal and the true variance of the noise.

memory: the largest resident set after 2,000 and after 20,000 particles of 64 x 64, of noise.

speed: time for each of 2,000 particles of 64 x 64, beside the insertion of slices by torch-fourier-slice, trilinear, on
the box and on one of twice its sides, as its own reconstruction does. Ours are sums for two halves, with their kernels;
theirs is one sum, with its weights.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import torch

from cryobench.core import MINMAX, Imaging, Problem, build_operator
from cryobench.maps.fsc import resolution_of, shell_correlation
from cryobench.maps.half_maps import HalfMaps, halves_of
from cryobench.maps.inversion import default_mask, density, regularised, wiener
from cryobench.metrics.rings import ring_counts, ring_sums
from cryobench.metrics.spectral import power
from cryobench.numerics.fft import rfftn
from cryobench.numerics.shells import shells
from cryobench.operators.noise import NoNoise
from cryobench.physics.ctf import CtfParameters
from cryobench.physics.poses import Poses
from cryobench.physics.potential import potential
from cryobench.registry import installed
from cryobench.rng import Rng
from cryobench.solvers.cg import Cg
from cryobench.sources.simulate import Simulate
from cryobench.sources.structures import read_structure

CASES = [
    (48, "project:2000"),
    (48, "ctf:12000@project:2000"),
    (48, "fourier:0.5@ctf:12000@project:2000"),
    (48, "sumpool:4@ctf:12000@project:300"),
]
STEPS = (3, 5, 10, 20, 40)
SIDE, PARTICLES = 64, 2000


def least_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """The least FSC of two cubes up to 0.8 of the Nyquist frequency."""
    shape = tuple(a.shape[2:])
    x, y = (rfftn(volume.double(), 3) for volume in (a, b))
    cross, *powers = (ring_sums((p * q.conj()).real, shape)[0] for p, q in ((x, y), (x, x), (y, y)))
    return float((cross / (powers[0] * powers[1]).sqrt())[: int(0.4 * shape[0])].min())


def steps() -> None:
    """Noiseless volumes by `cg`."""
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


def inversion() -> None:
    """2,000 particles, and the exact Wiener filter."""
    stack = Simulate("3mht", snr=0.1, count=PARTICLES, size=SIDE).open()
    images, clean = (torch.from_numpy(read(range(PARTICLES))) for read in (stack.read_block, stack.clean_block))
    table, pixel = stack.table, stack.pixel_size(0)
    truth = torch.from_numpy(potential(read_structure("3mht"), SIDE, pixel, 50.0)).double() * pixel
    begin, processor = time.perf_counter(), time.process_time()
    maps = HalfMaps(SIDE, pixel)
    maps.add(images, Poses.from_table(table), CtfParameters.from_table(table), halves_of(table, PARTICLES))
    found = wiener(maps.sums, maps.kernels)
    seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    print(f"{seconds:.1f} s, {processor:.1f} s of processor time, {torch.get_num_threads()} threads")

    shape = (SIDE,) * 3
    spectrum = power(rfftn(truth, 3))[None, None] / SIDE**3
    signal = (ring_sums(spectrum, shape) / ring_counts(shape, truth.device))[0]
    noise = float((images - clean).double().var())
    beyond = torch.cat([signal[:1], signal, 1e-3 * signal[-1:]])
    prior = noise / beyond[shells(shape).clamp_max(len(signal) + 1)]
    kernel = maps.kernels.sum(0)
    exact = regularised(maps.sums.sum(0), density(kernel), prior, kernel, 100)
    curves = {
        "fourier_inversion": shell_correlation(found.full, truth),
        "exact Wiener": shell_correlation(exact, truth),
    }
    for steps in (0, 1, 2, 3, 5):
        map = wiener(maps.sums, maps.kernels, steps=steps).full
        curves[f"fourier_inversion, steps={steps}"] = shell_correlation(map, truth)
    for name, curve in curves.items():
        resolution = resolution_of(curve, 0.5, SIDE, pixel)
        print(f"{name}: {resolution:.2f} Å at 0.5, shell {SIDE * pixel / resolution:.2f}, mean FSC {curve.mean():.4f}")
    within = shell_correlation(found.full, truth, default_mask(SIDE))
    halves, true = resolution_of(found.fsc, 0.143, SIDE, pixel), resolution_of(within, 0.5, SIDE, pixel)
    print(f"within the largest ball: half maps at 0.143 {halves:.2f} Å, with the truth at 0.5 {true:.2f} Å")


def memory() -> None:
    """The resident set as particles stream."""
    maps, generator = HalfMaps(SIDE, 3.0), torch.Generator().manual_seed(0)
    block = 1000
    for number in range(20):
        poses = Poses.uniform(block, number)
        drawn = torch.rand((8, block), generator=generator, dtype=torch.float64)
        fixed = [torch.full((block,), value, dtype=torch.float64) for value in (300.0, 2.7, 0.1, 0.0, 0.0)]
        ctf = CtfParameters(10000 + 10000 * drawn[0], 10000 + 10000 * drawn[1], 180 * drawn[2], *fixed)
        images = torch.randn((block, SIDE, SIDE), generator=generator)
        maps.add(images, poses, ctf, halves_of(None, block))
        if number in (1, 19):
            wiener(maps.sums, maps.kernels)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{(number + 1) * block} particles: largest resident set {peak:.0f} MiB", flush=True)


def speed() -> None:
    """Ours and torch-fourier-slice in turn, twice each."""
    from torch_fourier_slice.slice_insertion import insert_central_slices_rfft_3d

    images = torch.randn((PARTICLES, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    poses, halves = Poses.uniform(PARTICLES, 0), halves_of(None, PARTICLES)

    def ours() -> None:
        maps = HalfMaps(SIDE, 1.0)
        maps.add(images, poses, None, halves)
        _ = maps.sums, maps.kernels

    def theirs(padding: int, batch: int = 200) -> None:
        side = padding * SIDE
        before = (side - SIDE) // 2
        for start in range(0, PARTICLES, batch):
            padded = torch.nn.functional.pad(images[start : start + batch], [before] * 4)
            half = torch.fft.rfft2(torch.fft.fftshift(padded, dim=(-2, -1)))
            rotations = poses.matrices[start : start + batch].mT
            insert_central_slices_rfft_3d(
                torch.fft.fftshift(half, dim=-2), (side, side, side), rotations, fftfreq_max=0.5
            )

    for name, work in [("ours", ours), ("insertion", lambda: theirs(1)), ("insertion, padded", lambda: theirs(2))] * 2:
        _timed(name, work)


def _timed(name: str, work: Callable[[], None]) -> None:
    begin, processor = time.perf_counter(), time.process_time()
    work()
    wall, processor = time.perf_counter() - begin, time.process_time() - processor
    each = f"{1e3 * wall / PARTICLES:.2f} ms, {1e3 * processor / PARTICLES:.2f} ms of processor time for each particle"
    print(f"{name}: {each}, {torch.get_num_threads()} threads", flush=True)


PARTS = {"steps": steps, "inversion": inversion, "memory": memory, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=PARTS, default="steps")
    PARTS[parser.parse_args().part]()


if __name__ == "__main__":
    main()
