"""Peak memory and time of solvers on an image of the size of a micrograph, and the seams of `tiled`.

    uv run python benchmarks/micrograph.py            # 7420 x 7676 pixels, 15 minutes on two cores
    uv run python benchmarks/micrograph.py --quick    # 1484 x 1536 pixels, few steps

The image is synthetic: the particles of `demo` at random places with white noise, in [-1, 1]. Each case runs in a
process of its own through `cb.solve`; "peak" is the largest resident set of that process, which includes torch, the
operator, the measurement and the result. The iterative solvers take `--steps` steps.

Seams: on 1024 x 1024 pixels the result of `tiled` is compared with that of its solver on the whole image, both with up
to 1000 steps. The root mean square difference of the pixels within 128 pixels of the middle of an overlap is given
beside that of the other pixels, in dB relative to the range of the images, 2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import subprocess
import sys
import time

import torch

import cryobench as cb
from cryobench.registry import installed
from cryobench.rng import generator
from cryobench.solvers.tiled import Tiled

SHAPE, QUICK = (7420, 7676), (1484, 1536)
NOISE = 0.1
CASES = {
    "pinv, sumpool:4": ("pinv", "sumpool:4"),
    "dct, sumpool:4": ("dct:steps={steps}", "sumpool:4"),
    "tiled:dct, sumpool:4": ("tiled:dct,solver.steps={steps}", "sumpool:4"),
    "tiled:tv, identity": ("tiled:tv,solver.steps={steps}", "identity"),
    "tiled:wavelet, identity": ("tiled:wavelet,solver.steps={steps}", "identity"),
}
SEAMS = {
    "tv, lam=0.1": ("tv", "lam=0.1"),
    "tv, lam=auto": ("tv", ""),
    "wavelet, lam=0.1": ("wavelet", "lam=0.1"),
    "wavelet, lam=auto": ("wavelet", ""),
}


def micrograph(shape: tuple[int, int]) -> torch.Tensor:
    """[1, 1, *shape] float32 in [-1, 1]: one particle of `demo` for each square of 128 pixels, and white noise."""
    stack = installed().make("sources", "demo").open()
    particles = torch.stack([torch.from_numpy(stack.clean(i)) for i in range(len(stack))])
    particles = particles / particles.abs().amax()
    draw = generator("micrograph", shape)
    image = torch.randn(shape, generator=draw).mul_(0.1)
    n = particles.shape[-1]
    for _ in range(shape[0] * shape[1] // n**2):
        i, j, which = (int(torch.randint(high, (), generator=draw)) for high in (shape[0] - n, shape[1] - n, 32))
        image[i : i + n, j : j + n] += particles[which]
    return image.clamp_(-1, 1)[None, None]


def case(solver: str, operator: str, shape: tuple[int, int]) -> dict[str, float]:
    """Seconds of the set-up and of `cb.solve`, of the latter also CPU seconds, and the largest resident set, GiB."""
    x = micrograph(shape)
    A = cb.operator(operator, shape=shape)
    start = time.perf_counter()
    A.prepare()
    prepared = time.perf_counter() - start
    y = A.A(x)
    del x
    sigma = 0.0
    if operator == "identity":
        sigma = NOISE
        y += NOISE * torch.randn(y.shape, generator=generator("noise"))
    start, busy = time.perf_counter(), time.process_time()
    found = cb.solve(solver, A, y, noise=f"gaussian:{NOISE}" if sigma else "none", sigma=sigma)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    assert found.shape[2:] == shape
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"setup": prepared, "seconds": seconds, "cpu": busy, "peak": peak}


def seams(solver: str, parameters: str, steps: int) -> tuple[float, float]:
    """RMS difference of the tiled result to the whole one, near seams and elsewhere, in dB of the range."""
    shape = (1024, 1024)
    x = micrograph(shape)
    y = x + NOISE * torch.randn(x.shape, generator=generator("noise"))
    A = cb.operator("identity", shape=shape)
    given = [part for part in (parameters, f"steps={steps}") if part]
    inner = ",".join(f"solver.{part}" for part in given)
    whole, tiled = (
        cb.solve(spec, A, y, noise=f"gaussian:{NOISE}", sigma=NOISE)
        for spec in (f"{solver}:{','.join(given)}", f"tiled:{solver},{inner}")
    )
    tile = cb.solver(f"tiled:{solver}")
    assert isinstance(tile, Tiled)
    starts = sorted({window[0].start for window in tile.windows(A)})
    middles = [(first + tile.side + second) / 2 for first, second in itertools.pairwise(starts)]
    near = torch.zeros(shape, dtype=torch.bool)
    for middle in map(round, middles):
        near[middle - 128 : middle + 128] = near[:, middle - 128 : middle + 128] = True
    squares = (whole - tiled).double()[0, 0].square()
    inside, outside = (10 * math.log10(squares[part].mean().item() / 4) for part in (near, ~near))
    return inside, outside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=None, help="of the iterative solvers; default 10, with --quick 2")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--no-seams", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape, steps = QUICK if given.quick else SHAPE, given.steps or (2 if given.quick else 10)
    if given.alone:
        solver, operator = CASES[given.case[0]]
        print(json.dumps(case(solver.format(steps=steps), operator, shape)))
        return
    print(f"{shape[0]} x {shape[1]} pixels, float32, {steps} steps, {torch.get_num_threads()} threads")
    print(f"{'':26}{'set-up, s':>10}{'solve, s':>10}{'CPU, s':>10}{'peak, GiB':>11}")
    for name in given.case or CASES:
        command = [sys.executable, __file__, "--alone", "--case", name, "--steps", str(steps)]
        done = subprocess.run(command + ["--quick"] * given.quick, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout)
        times = "".join(f"{found[key]:10.1f}" for key in ("setup", "seconds", "cpu"))
        print(f"{name:26}{times}{found['peak']:11.2f}", flush=True)
    if given.no_seams:
        return
    print(f"\n{'seams, 1024 x 1024':26}{'near, dB':>10}{'elsewhere':>11}")
    for name, (solver, parameters) in SEAMS.items():
        near, elsewhere = seams(solver, parameters, 20 if given.quick else 1000)
        print(f"{name:26}{near:10.1f}{elsewhere:11.1f}", flush=True)


if __name__ == "__main__":
    main()
