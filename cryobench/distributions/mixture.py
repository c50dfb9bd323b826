"""Mixtures of K Gaussians with low-rank plus isotropic covariances, of images as vectors of N pixels.

Component k has the mean m_k and C_k = U_k diag(v_k) U_k^T + d_k I, with U_k orthonormal [N, r], v_k at least 0 and d_k
positive. z = x + sigma n has the same form with d_k + sigma^2, so that with w_k(z) the probability of k given z

    E[x | z] = sum_k w_k(z) (m_k + C_k (C_k + sigma^2 I)^-1 (z - m_k))

is closed form at every level. Fitted by expectation maximisation: each component is a probabilistic principal component
analysis (Tipping & Bishop 1999, "Mixtures of probabilistic principal component analysers", appendix C).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import torch

from cryobench.core import Shape, Source
from cryobench.distributions.distribution import Distribution, level
from cryobench.distributions.field import FieldParameters
from cryobench.distributions.measured import CleanImages, clean_files, read_clean
from cryobench.distributions.mixture_file import NAMES, MixtureFile, read_mixture, write_mixture
from cryobench.errors import DataError, ParameterError
from cryobench.rng import generator
from cryobench.spec import Component

_STEPS = 30
"""Largest number of steps of expectation maximisation."""
_STARTS = 4
"""Runs of it from other images: it finds a local maximum."""
_TOLERANCE = 1e-6
"""It stops at this relative change of the log likelihood."""
_LEAST = 1e-3
"""Least d_k of a fitted mixture, relative to the mean variance of a pixel."""
_SHARES = 0.4, 0.55, 0.05
"""Of the variance of a given mixture, those of means, directions and isotropic rest."""


class MixtureDistribution(Distribution):
    """weights: [K], sum 1. means: [K, N]. directions: U [K, N, r]. spread: v [K, r]. rest: d [K]. All float64."""

    def __init__(self, weights: torch.Tensor, means: torch.Tensor, directions: torch.Tensor, spread: torch.Tensor,
                 rest: torch.Tensor, shape: Shape):  # fmt: skip
        self.weights, self.means, self.directions = weights.double(), means.double(), directions.double()
        self.spread, self.rest, self.shape = spread.double(), rest.double(), tuple(shape)

    @property
    def mean(self) -> torch.Tensor:
        return (self.weights @ self.means).reshape(1, 1, *self.shape)

    def covariance(self, k: int) -> torch.Tensor:
        """C_k, [N, N]."""
        U = self.directions[k]
        return (U * self.spread[k]) @ U.mT + self.rest[k] * torch.eye(len(U), dtype=torch.float64)

    def write(self, path: Path) -> None:
        """Write the mixture to an .npz file, which `gaussian_mixture:file=FILE` reads."""
        K = len(self.weights)
        factors = (self.directions * self.spread.sqrt()[:, None]).mT.reshape(K, -1, *self.shape)
        means = self.means.reshape(K, *self.shape)
        values = (self.weights, means, factors, self.rest)
        write_mixture(path, {name: each.numpy() for name, each in zip(NAMES, values, strict=True)})

    def sample(self, generator: torch.Generator, count: int = 1) -> torch.Tensor:
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        r = self.spread.shape[1]
        low = torch.randn((count, r), generator=generator, dtype=torch.float64)
        white = torch.randn((count, self.means.shape[1]), generator=generator, dtype=torch.float64)
        parts = (self.directions[chosen] @ (self.spread[chosen].sqrt() * low)[..., None])[..., 0]
        x = self.means[chosen] + parts + self.rest[chosen].sqrt()[:, None] * white
        return x.reshape(count, 1, *self.shape)

    def _components(self, z: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """log (w_k p(z | k)) [B, K], z - m_k [B, K, N], and U_k^T (z - m_k) [B, K, r]; noise variance [1 or B]."""
        weights, means, U, v, d = (t.to(z.device) for t in (self.weights, self.means, self.directions, self.spread,
                                                             self.rest))  # fmt: skip
        apart = z.double().flatten(1)[:, None] - means
        low = torch.einsum("bkn,knr->bkr", apart, U)
        d = d + variance[:, None]
        along = v + d[..., None]
        N, r = means.shape[1], v.shape[1]
        outside = apart.square().sum(dim=2) - low.square().sum(dim=2)
        squares = outside / d + (low.square() / along).sum(dim=2)
        logs = (N - r) * d.log() + along.log().sum(dim=2) + N * math.log(2 * math.pi)
        return weights.log() - (squares + logs) / 2, apart, low

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        variance = level(sigma, z).square()
        logs, apart, low = self._components(z, variance)
        means, U, v, d = (t.to(z.device) for t in (self.means, self.directions, self.spread, self.rest))
        rest = d / (d + variance[:, None])
        along = v + d[:, None]
        extra = along / (along + variance[:, None, None]) - rest[..., None]
        parts = means + rest[..., None] * apart + torch.einsum("bkr,knr->bkn", extra * low, U)
        return torch.einsum("bk,bkn->bn", logs.softmax(dim=1), parts).reshape(z.shape).to(z.dtype)

    def logs(self, x: torch.Tensor) -> torch.Tensor:
        """log (w_k p(x | k)), float64 [B, K]."""
        return self._components(x, level(0.0, x))[0]

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        return self.logs(x).logsumexp(dim=1)

    def score(self, x: torch.Tensor) -> torch.Tensor:
        logs, apart, low = self._components(x, level(0.0, x))
        U, v, d = (t.to(x.device) for t in (self.directions, self.spread, self.rest))
        extra = 1 / (v + d[:, None]) - 1 / d[:, None]
        parts = apart / d[:, None] + torch.einsum("bkr,knr->bkn", extra * low, U)
        return -torch.einsum("bk,bkn->bn", logs.softmax(dim=1), parts).reshape(x.shape)


@dataclass(frozen=True)
class MixtureParameters:
    """A mixture of Gaussians with low-rank plus isotropic covariances.

    Without `images` its means and directions are smooth random patterns, draws of the field `gaussian_field`. With
    `images` it is fitted to the clean images of a source by expectation maximisation, resampled to the size that is
    asked for, less their mean intensity and scaled to the stated deviation. With `file` it is that of the file
    (`distributions.mixture_file`), as it is: components, rank and deviation are those of the file.
    """

    components: Annotated[int, "number of Gaussians"] = 4
    rank: Annotated[int, "rank of the part of a covariance that is not isotropic"] = 8
    deviation: Annotated[float, "standard deviation of a pixel"] = 0.2
    images: Annotated[Source | None, Component("sources"), "fit it to the clean images of this source"] = None
    count: Annotated[int, "number of these images, the first ones"] = 256
    pattern: Annotated[int, "seed of the random patterns, and of the first guess of a fit"] = 0
    file: Annotated[str | None, "or an .npz file with weights, means, factors and rest"] = None

    def __post_init__(self) -> None:
        for name in ("components", "rank", "count"):
            if getattr(self, name) < 1:
                raise ParameterError(f"gaussian_mixture: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.deviation < math.inf:
            raise ParameterError(f"gaussian_mixture: deviation must be positive, got {self.deviation:g}")
        if self.images is not None and self.file is not None:
            raise ParameterError("gaussian_mixture: images and file both state the mixture; give one of them")

    def distribution(self, shape: Shape) -> MixtureDistribution:
        """The mixture of images of this shape. Raises `DataError` for a file of another shape."""
        return self.fixed()(shape)

    def fixed(self) -> Callable[[Shape], MixtureDistribution]:
        """`distribution` with the file or the images as they are now, whatever happens to them later."""
        given = self._given()
        if isinstance(given, MixtureFile):
            return lambda shape: _of_file(given, tuple(shape))
        return lambda shape: _mixture(self.components, self.rank, self.deviation, given, self.pattern, tuple(shape))

    def parameters_digest(self) -> str:
        """A digest of the images that it is fitted to, or of the file; '' without."""
        given = self._given()
        return "" if given is None else given.digest

    def _given(self) -> MixtureFile | CleanImages | None:
        if self.file is not None:
            return read_mixture(self.file)
        return None if self.images is None else read_clean(self.images, self.count)

    def files(self) -> Sequence[Path] | None:
        """The files that the distribution depends on; None if those of its images are not known."""
        if self.file is not None:
            return [Path(self.file).expanduser()]
        return () if self.images is None else clean_files(self.images, self.count)


@lru_cache(maxsize=16)
def _of_file(read: MixtureFile, shape: Shape) -> MixtureDistribution:
    weights, means, factors, rest = (torch.from_numpy(values) for values in read.arrays.values())
    if tuple(means.shape[1:]) != shape:
        asked, has = (" x ".join(map(str, each)) for each in (shape, means.shape[1:]))
        raise DataError(
            f"the mixture {read.path} is of images of {has}, the problem has {asked}; give another file or --size"
        )
    U, s, _ = torch.linalg.svd(factors.flatten(2).mT, full_matrices=False)
    return MixtureDistribution(weights, means.flatten(1), U, s.square(), rest, shape)


@lru_cache(maxsize=16)
def _mixture(
    K: int, rank: int, deviation: float, images: CleanImages | None, seed: int, shape: Shape
) -> MixtureDistribution:
    rank = min(rank, math.prod(shape) - 1)
    if images is not None:
        x = images.resampled(shape).flatten(1)
        different = len(x.unique(dim=0))
        if different < 2 * K:
            raise DataError(f"gaussian_mixture: {different} different images are too few for {K} components; give "
                            f"{2 * K} or more")  # fmt: skip
        x = (x - x.mean()) * (deviation / x.std())
        return fitted(x, K, rank, shape, seed)
    draw = generator("gaussian_mixture", seed)
    patterns = FieldParameters().distribution(shape).sample(draw, K * (rank + 1)).flatten(1).reshape(K, rank + 1, -1)
    between, along, rest = (share * deviation**2 for share in _SHARES)
    N = patterns.shape[2]
    means = patterns[:, 0] - patterns[:, 0].mean(dim=0)
    size = means.square().mean().sqrt()
    means = means * (between**0.5 / size) if K > 1 else means
    directions = torch.linalg.qr(patterns[:, 1:].mT)[0]
    falling = 0.7 ** torch.arange(rank, dtype=torch.float64)
    spread = (falling / falling.sum() * along * N).expand(K, rank)
    weights = torch.arange(K, 0, -1, dtype=torch.float64)
    return MixtureDistribution(
        weights / weights.sum(), means, directions, spread, torch.full((K,), rest, dtype=torch.float64), shape
    )


def fitted(x: torch.Tensor, K: int, rank: int, shape: Shape, seed: int = 0) -> MixtureDistribution:
    """The mixture that is most probable given images x [n, N], of the ends of `_STARTS` runs of expectation
    maximisation, which begin with the images nearest to K of them that lie apart."""
    draw, x = generator("gaussian_mixture", seed), x.double()
    runs = [_maximum(x, K, rank, shape, draw) for _ in range(_STARTS if K > 1 else 1)]
    return max(runs, key=lambda run: run[0])[1]


def _maximum(
    x: torch.Tensor, K: int, rank: int, shape: Shape, draw: torch.Generator
) -> tuple[float, MixtureDistribution]:
    """One run: the log likelihood at its end, and the mixture."""
    least = _LEAST * float(x.var(dim=0).mean())
    chosen = [int(torch.randint(len(x), (1,), generator=draw))]
    distance = torch.full((len(x),), math.inf, dtype=torch.float64)
    for _ in range(K - 1):
        distance = torch.minimum(distance, (x - x[chosen[-1]]).square().sum(dim=1))
        chosen.append(int(torch.multinomial(distance / distance.sum(), 1, generator=draw)))
    nearest = torch.cdist(x, x[chosen]).argmin(dim=1)
    found = _maximised(x, torch.nn.functional.one_hot(nearest, K).double(), rank, shape, least)
    likelihood = before = -math.inf
    for step in range(_STEPS):
        logs = found.logs(x.reshape(-1, 1, *shape))
        likelihood = float(logs.logsumexp(dim=1).sum())
        if likelihood - before < _TOLERANCE * abs(likelihood) or step == _STEPS - 1:
            break
        before = likelihood
        found = _maximised(x, logs.softmax(dim=1), rank, shape, least)
    return likelihood, found


def _maximised(x: torch.Tensor, shares: torch.Tensor, rank: int, shape: Shape, least: float) -> MixtureDistribution:
    """The most probable parameters given the share of each component in each image, [n, K]."""
    sizes = shares.sum(dim=0).clamp_min(1e-6)
    N = x.shape[1]
    parts = []
    for k in range(shares.shape[1]):
        mean = shares[:, k] @ x / sizes[k]
        rows = (shares[:, k] / sizes[k]).sqrt()[:, None] * (x - mean)
        _, s, V = torch.linalg.svd(rows, full_matrices=False)
        power = s.square()
        r = min(rank, len(power))
        rest = max(float(power[r:].sum()) / (N - r), least)
        directions = torch.linalg.qr(torch.cat([V[:r].mT, torch.eye(N, rank - r, dtype=torch.float64)], dim=1))[0]
        spread = torch.zeros(rank, dtype=torch.float64)
        # the columns of Q are those of V up to their signs
        spread[:r] = (power[:r] - rest).clamp_min(0)
        parts.append((mean, directions, spread, torch.tensor(rest, dtype=torch.float64)))
    means, directions, spread, rest = (torch.stack(values) for values in zip(*parts, strict=True))
    return MixtureDistribution(sizes / sizes.sum(), means, directions, spread, rest, shape)
