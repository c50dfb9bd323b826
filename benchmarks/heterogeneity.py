"""Solvers for many structures on data whose truth is known: the figures of docs/heterogeneity.md.

    uv run python benchmarks/heterogeneity.py --data mixture --solver covariance
    uv run python benchmarks/heterogeneity.py --data motion --solver curve --solver covariance
    uv run python benchmarks/heterogeneity.py --part bound --structure 3o21 --structure 6zu5

known    Poses are given. `--data mixture` is two structures in equal parts, `motion` a domain that turns by 60 degrees,
         3,000 images of 64 x 64 at SNR 0.1 by default. Of each solver: the adjusted Rand index of two clusters of the
         latents (k-means++, 10 starts), or the largest |Spearman| of a principal component of the latents with the true
         one; the mean over particles of the FSC, averaged over shells to Nyquist, of their maps with the true ones, and
         its difference from that of `consensus` with the 95% interval over particles; seconds and processor seconds.

bound    How well a motion can be known from its images: maps along the curve from half of the images with their true
         latents, and |Spearman| of the latents that they give the other half, for polynomials of degree 1 (a linear
         subspace of one dimension) to 3, in a box of half the side.

The source states its images alone: the scale is that of all images, and no operator stands between. Times of shared
cores are too long; compare processor seconds.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy.stats import spearmanr

import cryobench as cb
from cryobench.core import Imaging, Problem, Reconstruction, Scale, Stack, build_operator
from cryobench.maps.band import Band, resized
from cryobench.maps.curve import Places, polynomials
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.noise import noise_power
from cryobench.maps.particle_images import particle_images
from cryobench.maps.subspace import Latents, Normal, inner_products, shell_power, signal_power
from cryobench.operators.identity import Identity
from cryobench.operators.noise import NoNoise
from cryobench.rng import Rng
from cryobench.solvers.consensus import consensus_maps, halves
from cryobench.solvers.covariance import residuals_of
from cryobench.sources.heterogeneous import Heterogeneous


def problem_of(stack: Stack) -> Problem:
    """All images of a stack, and their table without the truth."""
    count, table = len(stack), stack.table
    assert table is not None
    table = table.drop(columns=[name for name in table if str(name).startswith("true")])
    imaging = Imaging(stack.shape, (stack.pixel_size(0),) * count, table, stack.through_ctf)
    operator = build_operator(Identity(), imaging, seed=0, dtype=torch.float32)
    images = torch.from_numpy(stack.read_block(range(count)))[:, None].double()
    middle, half = (images.amax() + images.amin()) / 2, (images.amax() - images.amin()) / 2
    scale = Scale(middle.expand(count), half.expand(count), (-1.0, 1.0), "minmax")
    y = operator.A(scale.from_file(images).float())
    return Problem(operator, y, NoNoise(), torch.zeros((count, 1, 1, 1)), scale, imaging)


def correlations(answer: Reconstruction, stack: Stack, sample: int) -> np.ndarray:
    """The mean of the FSC of the maps of some particles, evenly spaced, with the true ones."""
    many = answer.heterogeneity
    assert many is not None
    chosen = np.linspace(0, len(stack) - 1, sample).round().astype(int)
    found = []
    for index in chosen.tolist():
        true = stack.volume(index)
        assert true is not None
        volume = many.model.volumes(many.latents[index : index + 1])[0]
        found.append(float(shell_correlation(torch.as_tensor(true[0] * true[1]), volume).mean()))
    return np.array(found)


def agreement(latents: np.ndarray, stack: Stack) -> dict[str, float]:
    """The agreement of latents with the truth in the table."""
    table = stack.table
    assert table is not None
    if "trueClass" in table:
        from sklearn.cluster import KMeans
        from sklearn.metrics import adjusted_rand_score

        classes = table["trueClass"].to_numpy()
        clusters = KMeans(len(set(classes)), n_init=10, random_state=0).fit_predict(latents)
        return {"ARI": float(adjusted_rand_score(classes, clusters))}
    centred = latents - latents.mean(axis=0)
    components = centred @ np.linalg.svd(centred, full_matrices=False)[2].T
    true = table["trueLatent"].to_numpy()
    return {"rank": max(abs(float(spearmanr(component, true)[0])) for component in components.T)}


def known(arguments: argparse.Namespace) -> None:
    source = Heterogeneous(
        arguments.data, structure=None if not arguments.structure else arguments.structure[0], count=arguments.count,
        size=arguments.size, snr=arguments.snr, seed=arguments.seed,
    )  # fmt: skip
    stack = source.open()
    problem = problem_of(stack)
    base = None
    for text in ["consensus", *arguments.solver]:
        solver = cb.solver(text)
        reason = solver.unsupported(problem)
        if reason is not None:
            print(f"{text}: {reason}")
            continue
        began, processor = time.perf_counter(), time.process_time()
        rng = Rng(arguments.seed, [str(number) for number in range(problem.batch)])
        answer = solver.solve(problem, rng=rng)
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
        values = correlations(answer, stack, arguments.sample)
        assert answer.heterogeneity is not None
        latents = answer.heterogeneity.latents.numpy()
        parts = [f"FSC {values.mean():.3f}"]
        if base is None:
            base = values
        else:
            gain = values - base
            half = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5
            parts.append(f"gain {gain.mean():+.3f} +- {half:.3f}")
        if latents.shape[1]:
            parts += [f"{name} {value:.3f}" for name, value in agreement(latents, stack).items()]
        print(f"{text}: {', '.join(parts)}, {seconds:.0f} s, processor {processor:.0f} s", flush=True)


def bound(arguments: argparse.Namespace) -> None:
    for structure in arguments.structure or [None]:
        stack = Heterogeneous("motion", structure=structure, count=arguments.count, size=arguments.size,
                              snr=arguments.snr, seed=arguments.seed).open()  # fmt: skip
        problem = problem_of(stack)
        assert stack.table is not None
        true = torch.tensor(stack.table["trueLatent"].to_numpy())
        images = particle_images(problem, "bound")
        noise = noise_power(images.images.cpu())
        mean = consensus_maps(images, halves(problem)).full.double()
        band = Band.of(images, arguments.size // 2, noise=noise)
        residuals = residuals_of(band, images.side, mean)
        fitted, judged = slice(0, None, 2), slice(1, None, 2)
        for degree in (1, 2, 3):
            weights = polynomials(true[fitted], degree)
            known = Latents(weights, torch.zeros((len(weights), degree, degree), dtype=torch.float64))
            normal = Normal(band.select(fitted), residuals[fitted], known)
            start = torch.zeros((degree, *(band.side,) * 3), dtype=torch.float64)
            wide = shell_power(resized(mean[None], band.side)).max() * 0.1 + torch.zeros((degree, band.side // 2))
            components, variance = normal.solve(wide.double(), start, 4)
            components, _ = normal.solve(signal_power(components, variance, wide.double()), components, 4)
            G, b, _ = inner_products(band.select(judged), residuals[judged], components)
            rank = abs(float(spearmanr(Places.of(G, b)[0].mean, true[judged])[0]))
            print(f"{stack.label}, degree {degree}: rank {rank:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["known", "bound"], default="known")
    parser.add_argument("--structure", action="append", help="one for `known`, several for `bound`")
    parser.add_argument("--data", choices=["mixture", "motion"], default="mixture")
    parser.add_argument("--solver", action="append", default=[])
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=int, default=40)
    arguments = parser.parse_args()
    {"known": known, "bound": bound}[arguments.part](arguments)


if __name__ == "__main__":
    main()
