"""Noise2Noise trained on a data set of its own, beside linear filters that know the truth.

    uv run python benchmarks/n2n_training.py FOLDER          # three seeds, each less than two processor minutes
    uv run python benchmarks/n2n_training.py FOLDER --seeds 1 --steps 2000
    uv run python benchmarks/n2n_training.py FOLDER --seeds 1 --micrographs 4 --scored 2   # a quick look

Simulated micrographs of one structure are divided: `cryobench train --objective noise2noise` trains a network for each
seed on both halves of some, without their truth, in one thread; the others are denoised from their first half. FOLDER
keeps micrographs and networks: the same command continues, and processor time is that of all parts of a training. Other
options need another FOLDER. The scores are means over the micrographs, relative to the range of the noisy image, in dB:

    psnr         10 log10(range^2 / <(f - s)^2>), s the image without noise
    psnr_other   10 log10(range^2 / <f^2 - 2 f b + a b>), b the second half, which needs no truth

The oracles are fitted to s, for each micrograph by itself: the Gaussian of the width with the least error, and of all
filters that are constant on rings of frequencies the one with the least error, h = Re <S, A*> / <|A|^2> on each ring.
`wiener` and `gaussian` are blind; they are told the deviation of the noise that the halves give.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar

import cryobench as cb
from cryobench.core import Solver
from cryobench.files import whole_files
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.shells import shell_sums, shells
from cryobench.priors.denoiser import Denoiser
from cryobench.solvers.gaussian import GaussianFilter
from cryobench.solvers.n2n import N2n
from cryobench.solvers.wiener import Wiener
from cryobench.sources.simulate_movies import SimulateMovies

Denoise = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From the halves a and b and the truth s, [H, W] each, to the denoised a."""
ODD, EVEN, TRUTH = "odd", "even", "truth"
TURNS = {False: "", True: ", eight turns"}
RECIPE = ("--network", "tiny", "--patch", 256, "--batch", 4, "--lr", 2e-3, "--warmup", 50, "--ema", 0.995, "--bfloat16",
          "--checkpoint-every", 250, "--sample-every", 10**6)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--structure", default="6zu5", help="not in the split `train` of the packaged network")
    parser.add_argument("--dose", type=float, default=SimulateMovies.dose, help="electrons per Å^2 and frame")
    parser.add_argument("--micrographs", type=int, default=32, help="to train on")
    parser.add_argument("--scored", type=int, default=8, help="further micrographs, for the scores")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    given = parser.parse_args()
    torch.set_num_threads(1)
    count = given.micrographs + given.scored
    data = SimulateMovies(given.structure, count=count, dose=given.dose, seed=1)
    training, scored = given.folder / "training", given.folder / "scored"
    simulate(data, range(given.micrographs), training)
    simulate(data, range(given.micrographs, count), scored)
    networks = [given.folder / f"network_{seed}" for seed in range(given.seeds)]
    for seed, out in enumerate(networks):
        seconds = train(training, out, seed, given.steps)
        print(f"seed {seed}: {seconds / 60:.1f} processor minutes", flush=True)
    report(scored, networks)


def simulate(data: SimulateMovies, numbers: range, folder: Path) -> None:
    """Write halves and truth of micrographs as FOLDER/odd/NAME.npy and so on, those that are missing."""
    stack = data.open()
    for name in (ODD, EVEN, TRUTH):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in numbers:
        paths = [folder / name / f"{stack.name(i)}.npy" for name in (ODD, EVEN, TRUTH)]
        if not all(path.exists() for path in paths):
            with whole_files(*paths) as temporary:
                for path, image in zip(temporary, (*stack.halves(i), stack.clean(i)), strict=True):
                    with path.open("wb") as file:
                        np.save(file, image)


def train(data: Path, out: Path, seed: int, steps: int) -> float:
    """Train a network, or continue. Returns the processor seconds of all parts of the training."""
    record = out.with_suffix(".json")
    spent = json.loads(record.read_text())["processor_seconds"] if record.exists() else 0.0
    command = [sys.executable, "-m", "cryobench", "train", "--quiet", "--out", out, "--objective", "noise2noise",
               "--data", f"pairs:{data / ODD},even={data / EVEN}", "--preload", "ram", "--seed", seed,
               "--steps", steps, *RECIPE]  # fmt: skip
    before = children_seconds()
    try:
        subprocess.run([str(part) for part in command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    finally:
        spent += children_seconds() - before
        record.write_text(json.dumps({"processor_seconds": spent}))
    return spent


def children_seconds() -> float:
    """Processor seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(scored: Path, networks: Sequence[Path]) -> None:
    """Print the scores of filters and networks."""
    names = sorted(path.name for path in (scored / TRUTH).glob("*.npy"))
    images = [[torch.from_numpy(np.load(scored / of / name)) for of in (ODD, EVEN, TRUTH)] for name in names]
    filters: dict[str, Denoise] = {
        "raw": lambda a, b, s: a,
        "gaussian, least estimated risk": lambda a, b, s: solved(GaussianFilter(), a, b),
        "gaussian, oracle width": lambda a, b, s: oracle_gaussian(a, s),
        "wiener, blind": lambda a, b, s: solved(Wiener(), a, b),
        "rings, oracle": lambda a, b, s: oracle_rings(a, s),
    }
    print(f"\n{len(images)} micrographs that no network here was trained on\n")
    print(f"{'':36}{'psnr':>8}{'psnr_other':>12}")
    rows = {name: scores(each, images) for name, each in filters.items()}
    rows |= {f"n2n, packaged{text}": scores(network(Denoiser(), turns), images) for turns, text in TURNS.items()}
    for name, row in rows.items():
        print(f"{name:36}{row[0]:8.2f}{row[1]:12.2f}", flush=True)
    for turns, text in TURNS.items():
        trained = np.array([scores(network(Denoiser(str(folder)), turns), images) for folder in networks])
        mean, deviation = trained.mean(axis=0), trained.std(axis=0, ddof=min(1, len(trained) - 1))
        each = ", ".join(f"{value:.2f}" for value in trained[:, 0])
        print(f"{f'n2n, trained here{text}':36}{mean[0]:8.2f}{mean[1]:12.2f}   "
              f"deviation over seeds {deviation[0]:.3f} {deviation[1]:.3f}; psnr of each {each}")  # fmt: skip
        for name in filters:
            print(f"    above {name:26}{mean[0] - rows[name][0]:+8.2f}{mean[1] - rows[name][1]:+12.2f}", flush=True)


def network(model: Denoiser, turns: bool) -> Denoise:
    solver = N2n(model, turns=turns)
    return lambda a, b, s: solved(solver, a, b)


def scores(denoise: Denoise, images: list[list[torch.Tensor]]) -> tuple[float, float]:
    """The means of psnr and psnr_other over micrographs, dB."""
    found = []
    for a, b, s in images:
        middle = (a + b).double().mean() / 2
        f = denoise(a, b, s).double() - middle
        a, b, s = (image.double() - middle for image in (a, b, s))
        errors = (f - s).square().mean(), (f.square() - 2 * f * b + a * b).mean()
        found.append([float(10 * ((a.amax() - a.amin()).square() / error).log10()) for error in errors])
    first, second = np.mean(found, axis=0)
    return float(first), float(second)


def solved(solver: Solver, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The result of a solver for a, told the deviation of the noise, sqrt(<a^2 - a b>) with both centred."""
    x, y = (image.double() - image.double().mean() for image in (a, b))
    sigma = float((x.square() - x * y).mean().clamp_min(0).sqrt())
    return cb.solve(solver, "identity", a[None, None], shape=tuple(a.shape), sigma=sigma)[0, 0]


def oracle_gaussian(a: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """The Gaussian filter of the width in pixels, up to 30, with the least error to s."""

    def filtered(width: float) -> torch.Tensor:
        return cb.solve(GaussianFilter(width), "identity", a[None, None], shape=tuple(a.shape))[0, 0]

    def error(width: float) -> float:
        return float((filtered(width) - s).double().square().mean())

    return filtered(minimize_scalar(error, bounds=(0.1, 30), method="bounded").x)


def oracle_rings(a: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """The filter that is constant on rings of frequencies with the least error to s: Re <S, A*> / <|A|^2> on each.

    The mean of a is kept.
    """
    mean, shape = a.double().mean(), a.shape
    A, S = (rfftn(image[None, None].double() - mean, 2) for image in (a, s))
    ring = shells(shape, a.device)
    with_truth, power = (shell_sums((A * other.conj()).real, ring, shape) for other in (S, A))
    h = (with_truth / power).nan_to_num(0.0)
    return irfftn(h[:, ring].unsqueeze(1) * A, shape)[0, 0] + mean


if __name__ == "__main__":
    main()
