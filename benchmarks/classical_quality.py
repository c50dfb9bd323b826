"""Quality of `dct`, `wavelet` and `tv` with default settings, compared with the floor and the published recipe.

    uv run python benchmarks/classical_quality.py --data particle.pt --images 0
    uv run python benchmarks/classical_quality.py                          # the packaged demo

PSNR in dB (data range 1) to the measured image, mean over images: the floor; the published recipe (200 steps of Adam,
rate 0.1, each followed by shrinkage by 0.01, from noise) with DCT / wavelet / TV; our defaults (constraint form if y
is exact); ours in the penalty form; ours with the plain norms (cut=1, at most 500 steps). The last column is the best
of our three defaults minus the floor.
"""

from __future__ import annotations

import argparse

import torch
from classical import SHRINK

from cryobench.core import MINMAX, NoiseModel, OperatorRecipe, Problem, build_operator
from cryobench.io.scaling import minmax
from cryobench.io.selection import parse_images
from cryobench.operators.fourier import Fourier
from cryobench.operators.noise import Gaussian, NoNoise
from cryobench.operators.sumpool import SumPool
from cryobench.rng import Rng
from cryobench.solvers.classical import Dct, Tv, Wavelet
from cryobench.solvers.pinv import Pinv
from cryobench.sources.demo import Demo
from cryobench.sources.stacks import File

CELLS = (*(SumPool(K, K * K // C) for K in (2, 4, 8, 16) for C in (4, 2, 1)), Fourier(0.25), Fourier(0.5))
NOISES = (NoNoise(), Gaussian(rel=0.05))
SOLVERS = (Dct, Wavelet, Tv)


def psnr(x: torch.Tensor, truth: torch.Tensor) -> float:
    return float((-10 * torch.log10(((x - truth) / 2).square().mean(dim=(1, 2, 3)))).mean())


def images(data: str | None, chosen: str | None) -> torch.Tensor:
    """[B, 1, H, W] float32 in [-1, 1]."""
    stack = (File(data) if data else Demo()).open()
    numbers = parse_images(chosen, len(stack)) if chosen else range(len(stack))
    scaled = [minmax(image, stack.label).apply(image) for image in map(stack.read, numbers)]
    return torch.stack([torch.from_numpy(image) for image in scaled]).unsqueeze(1)


def measured(recipe: OperatorRecipe, noise: NoiseModel, truth: torch.Tensor, rng: Rng) -> Problem:
    operator = build_operator(recipe, (truth.shape[2], truth.shape[3]), seed=0, dtype=truth.dtype, device=truth.device)
    noisy = noise.apply(operator.A(truth), operator, MINMAX, rng)
    return Problem(operator, noisy.y, noise, noisy.sigma)


def published(problem: Problem, solver: type, rng: Rng) -> torch.Tensor:
    """The published recipe, with the gradient by autograd through the operator."""
    x = rng.stream("start").normal(problem.image_batch_shape[1:]).requires_grad_()
    adam = torch.optim.Adam([x], lr=0.1)
    for _ in range(200):
        adam.zero_grad()
        (problem.operator.A(x) - problem.y).square().sum().backward()
        adam.step()
        with torch.no_grad():
            shrunk = [torch.from_numpy(SHRINK[solver](image)) for image in x[:, 0].detach().numpy()]
            x.copy_(torch.stack(shrunk).unsqueeze(1))
    return x.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a stack of images; default: the packaged demo")
    parser.add_argument("--images", help="the images to use, as in cryobench run")
    arguments = parser.parse_args()
    truth = images(arguments.data, arguments.images)
    rng = Rng(0, [str(i) for i in range(len(truth))])
    print("| operator | noise | C | pinv | recipe | default | penalty | cut=1 | best - pinv |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for recipe in CELLS:
        for noise in NOISES:
            problem = measured(recipe, noise, truth, rng)

            def scores(problem: Problem = problem, **parameters) -> list[float]:
                return [psnr(make(**parameters).solve(problem, rng=rng).x, truth) for make in SOLVERS]

            floor = psnr(Pinv().solve(problem, rng=rng).x, truth)
            recipes = [psnr(published(problem, solver, rng), truth) for solver in SOLVERS]
            default = scores()
            rows = (recipes, default, scores(form="penalty"), scores(cut=1.0, steps=500))
            cells = [" / ".join(f"{value:.2f}" for value in row) for row in rows]
            name = f"fourier:{recipe.rho:g}" if isinstance(recipe, Fourier) else f"K={recipe.block} M={recipe.count}"
            level = "5%" if isinstance(noise, Gaussian) else "none"
            compression = problem.operator.effective_compression
            print(
                f"| {name} | {level} | {compression:.2f} | {floor:.2f} | {' | '.join(cells)} "
                f"| {max(default) - floor:+.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
