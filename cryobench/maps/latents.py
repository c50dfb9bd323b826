"""What latents say of the truth: clusters against classes, coordinates against true ones, and neighbourhoods.

Latents are [N, d] and the truth is classes [N] or coordinates [N, t], one row per particle, as NumPy arrays.
"""

from __future__ import annotations

import numpy as np

from cryobench.extras import of_extra

NEIGHBOURS = 10
"""Nearest neighbours of a particle, itself left out."""
NEAR = 0.1
"""Fraction of the particles that are near to one in the truth."""
_STARTS = 10
"""Starts of k-means++."""
_QUERIES = 2000
"""Most particles whose neighbours are looked at."""


def clusters(latents: np.ndarray, k: int) -> np.ndarray:
    """The cluster of each particle by k-means++ (Arthur & Vassilvitskii 2007), the best of 10 starts, int [N]."""
    with of_extra("structure"):
        from sklearn.cluster import KMeans

    return KMeans(k, n_init=_STARTS, random_state=0).fit_predict(latents)  # pyright: ignore[reportArgumentType]


def agreement(found: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """The Rand index and the mutual information of clusters and classes, both adjusted for chance: 1 where they are the
    same, 0 on average where they have nothing in common (Hubert & Arabie 1985; Vinh, Epps & Bailey 2010)."""
    with of_extra("structure"):
        from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    return float(adjusted_rand_score(classes, found)), float(adjusted_mutual_info_score(classes, found))


def rank_correlation(latents: np.ndarray, truth: np.ndarray) -> float:
    """The mean over the true coordinates of the largest |Spearman| with a principal component of the latents."""
    from scipy.stats import rankdata

    centred = latents - latents.mean(axis=0)
    components = centred @ np.linalg.svd(centred, full_matrices=False)[2].T
    ranks = [rankdata(np.round(values, 12), axis=0) for values in (_scaled(components), truth)]
    own, true = (values - values.mean(axis=0) for values in ranks)
    sizes = np.sqrt((own**2).sum(axis=0))[:, None] * np.sqrt((true**2).sum(axis=0))
    correlation = np.abs(own.T @ true) / np.where(sizes > 0, sizes, np.inf)
    return float(correlation.max(axis=0).mean())


def hit_rate(latents: np.ndarray, *, classes: np.ndarray | None = None, truth: np.ndarray | None = None) -> float:
    """Of the 10 nearest neighbours of a particle in the latents, the fraction that is near it in the truth: of its
    class, or else among the 10% of the particles with the nearest true coordinates. Mean over at most 2000 particles,
    evenly spaced."""
    from scipy.spatial import KDTree

    n = len(latents)
    k = min(NEIGHBOURS, n - 1)
    queries = np.unique(np.linspace(0, n - 1, min(n, _QUERIES)).round().astype(int))
    _, nearest = KDTree(latents).query(latents[queries], k + 1)
    nearest = np.asarray(nearest)
    hits = np.empty(len(queries))
    for row, (query, own) in enumerate(zip(queries, nearest, strict=True)):
        others = own[own != query][:k]  # where many latents are equal, the particle may not be among them
        if classes is not None:
            hits[row] = (classes[others] == classes[query]).mean()
            continue
        assert truth is not None
        distances = ((truth - truth[query]) ** 2).sum(axis=1)
        distances[query] = np.inf
        near = np.partition(distances, max(0, round(NEAR * n) - 1))[max(0, round(NEAR * n) - 1)]
        hits[row] = (distances[others] <= near).mean()
    return float(hits.mean())


def _scaled(values: np.ndarray) -> np.ndarray:
    """Values relative to the largest, so that what rounding makes of constants has no rank."""
    return values / (np.abs(values).max() or 1.0)
