"""Latents [N, d]: principal components, traversals, clusters and an embedding in the plane.

Principal components: with the mean m and the eigenvectors e_j of the covariance of the latents, by falling variance,
particle i has the coordinates c_ij = <z_i - m, e_j>. The sign of e_j is that for which its entry of largest magnitude
is positive. A traversal along e_j is m + t e_j with t evenly spaced from the 5th to the 95th percentile of c_ij over i,
as cryoDRGN analyses its latents (Zhong et al. 2021, Nat. Methods 18:176).

Clusters: k-means from k-means++ starts (Arthur and Vassilvitskii 2007, SODA, p. 1027), the best of 10 by the sum of
squared distances, or a Gaussian mixture with full covariances, the best of 5 by likelihood; both of scikit-learn. They
are numbered from 1 by falling number of particles. The state of a cluster is the latent of the particle that is nearest
to its centre: a map is made where particles are, and not between them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cryobench.errors import DependencyError, ParameterError
from cryobench.extras import of_extra

Method = Literal["kmeans", "gmm"]
METHODS = ("kmeans", "gmm")
PERCENTILES = (5.0, 95.0)
"""The ends of a traversal."""
STARTS = {"kmeans": 10, "gmm": 5}
"""Starts of which the best is kept."""
_SMALLEST = 1e-6
"""Added to the variances of a Gaussian mixture, relative to the mean variance of the latents."""


@dataclass(frozen=True, eq=False)
class Principal:
    """Principal components. mean: [d]. axes: the eigenvectors as rows, [d, d]. coordinates: [N, d]. variance: fraction
    of the variance along each, [d]; 0 where the latents do not vary."""

    mean: np.ndarray
    axes: np.ndarray
    coordinates: np.ndarray
    variance: np.ndarray

    def traversal(self, component: int, points: int) -> tuple[np.ndarray, np.ndarray]:
        """Points along a component, from 0: (coordinates [points], latents [points, d])."""
        low, high = np.percentile(self.coordinates[:, component], PERCENTILES)
        along = np.linspace(low, high, points)
        return along, self.mean + along[:, None] * self.axes[component]


def principal_components(latents: np.ndarray) -> Principal:
    """The principal components of latents [N, d]."""
    mean = latents.mean(axis=0)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(latents, rowvar=False, bias=True)))
    axes = vectors.T[::-1]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes = axes * np.where(largest < 0, -1.0, 1.0)
    values = values[::-1].clip(min=0)
    total = values.sum()
    variance = values / total if total > 0 else np.zeros_like(values)
    return Principal(mean, axes, (latents - mean) @ axes.T, variance)


@dataclass(frozen=True, eq=False)
class Clusters:
    """k clusters of N particles. labels: of each particle, from 1, [N]. centres: [k, d]. nearest: the particle nearest
    to each centre among those of the cluster, [k]. empty: clusters that were asked for and have no particles. score:
    sum of squared distances (kmeans), or BIC (gmm)."""

    labels: np.ndarray
    centres: np.ndarray
    nearest: np.ndarray
    empty: int
    score: float

    def __len__(self) -> int:
        return len(self.centres)

    @property
    def sizes(self) -> np.ndarray:
        """Particles of each, [k]."""
        return np.bincount(self.labels, minlength=len(self) + 1)[1:]


def clusters_of(latents: np.ndarray, k: int, method: Method = "kmeans", seed: int = 0) -> Clusters:
    """Clusters of latents [N, d]. Raises `ParameterError` for k below 1 and above the number of different latents, and
    for a mixture of one particle."""
    if method not in METHODS:
        raise ParameterError(f"--method: expected {' or '.join(METHODS)}, got {method!r}")
    if k < 1:
        raise ParameterError(f"--k must be at least 1, got {k}")
    if method == "gmm" and len(latents) < 2:
        raise ParameterError("--method gmm needs at least 2 particles, got 1; give --method kmeans")
    from threadpoolctl import threadpool_limits  # of scikit-learn; two threads are slower where cores are shared

    distinct = len(np.unique(latents, axis=0))
    if k > distinct:
        what = "particles" if distinct == len(latents) else "different latents"
        raise ParameterError(f"--k {k}: there are {distinct} {what}; give at most {distinct} clusters")
    with threadpool_limits(1):
        labels, centres, score = (_kmeans if method == "kmeans" else _gmm)(latents, k, seed)
    sizes = np.bincount(labels, minlength=k)
    order = np.lexsort((np.arange(k), -sizes))[: int((sizes > 0).sum())]
    number = np.zeros(k, dtype=np.int64)
    number[order] = np.arange(1, len(order) + 1)
    labels, centres = number[labels], centres[order]
    nearest = [
        members[((latents[members] - centre) ** 2).sum(axis=1).argmin()]
        for centre, members in ((centre, np.flatnonzero(labels == own)) for own, centre in enumerate(centres, 1))
    ]
    return Clusters(labels, centres, np.array(nearest), k - len(order), score)


def _kmeans(latents: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    with of_extra("structure"):
        from sklearn.cluster import KMeans

    starts: Any = STARTS["kmeans"]
    fitted: Any = KMeans(k, init="k-means++", n_init=starts, random_state=seed).fit(latents)
    return fitted.labels_.astype(np.int64), fitted.cluster_centers_, float(fitted.inertia_)


def _gmm(latents: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    with of_extra("structure"):
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

    floor = _SMALLEST * float(latents.var(axis=0).mean()) or _SMALLEST
    mixture: Any = GaussianMixture(k, n_init=STARTS["gmm"], max_iter=500, reg_covar=floor, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the best of the starts is kept
        labels = mixture.fit_predict(latents)
    return labels.astype(np.int64), mixture.means_, float(mixture.bic(latents))


def umap_of(latents: np.ndarray, seed: int = 0) -> np.ndarray:
    """The plane of UMAP (McInnes, Healy and Melville 2018, arXiv:1802.03426), [N, 2].

    Raises `DependencyError` without the extra `umap`, and `ParameterError` for fewer than 4 particles.
    """
    try:
        from umap import UMAP  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DependencyError("--umap needs umap-learn; install it with `pip install cryobench[umap]`") from error
    if len(latents) < 4:
        raise ParameterError(f"--umap needs at least 4 particles, got {len(latents)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a seed means one thread
        made: Any = UMAP(n_components=2, n_neighbors=min(15, len(latents) - 1), random_state=seed)
        return np.asarray(made.fit_transform(latents), dtype=np.float64)


def chosen_clusters(text: str, k: int, option: str) -> list[int]:
    """The numbers of a list such as "2,5". Raises `ParameterError` for what is no number from 1 to k."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ParameterError(f"{option}: expected numbers of clusters such as 2,5, got {text!r}") from None
    wrong = [number for number in numbers if not 1 <= number <= k]
    if wrong:
        raise ParameterError(f"{option}: there is no cluster {wrong[0]}; clusters are numbered from 1 to {k}")
    return numbers
