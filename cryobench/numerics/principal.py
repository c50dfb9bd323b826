"""Principal components of many vectors.

With rows x_i less their mean, X = U S V^T, the scores of the leading components are U S. They are computed from the
smaller of X X^T and X^T X where it is small, else by Lanczos steps from a fixed start (ARPACK). A component has the
sign that makes the entry of V with the largest magnitude positive.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.sparse.linalg import svds

_DENSE = 1500
"""Largest side of a matrix whose eigenvectors are computed directly."""
_NO_VARIANCE = 1e-12
"""Variance of a component, relative to the largest, that rounding of the product makes."""


def principal_scores(rows: torch.Tensor, count: int) -> torch.Tensor:
    """The scores of the leading principal components, float64 [N, min(count, N, P)] of rows [N, P], on their device.

    By falling variance, with the mean 0. A component with less than 1e-12 of the largest variance has the scores 0.
    """
    x = rows.double().cpu().numpy()
    x = x - x.mean(axis=0)
    small = min(x.shape)
    count = min(count, small)
    if small <= _DENSE or count >= small:
        wide = x.shape[0] <= x.shape[1]
        values, vectors = eigh(x @ x.T if wide else x.T @ x, subset_by_index=(small - count, small - 1))
        values, vectors = values[::-1], vectors[:, ::-1]
        components = x.T @ vectors if wide else vectors
    else:
        _, values, components = svds(x, k=count, v0=np.ones(small) / small**0.5)
        assert components is not None
        order = np.argsort(-values)
        values, components = values[order] ** 2, components[order].T
    lengths = np.linalg.norm(components, axis=0)
    known = (values > _NO_VARIANCE * values[0]) & (lengths > 0)
    components = np.divide(components, lengths, out=np.zeros_like(components), where=known)
    largest = components[np.abs(components).argmax(axis=0), np.arange(count)]
    return torch.from_numpy(x @ (components * np.where(largest < 0, -1.0, 1.0))).to(rows.device)


def unit_scores(rows: torch.Tensor, count: int) -> torch.Tensor:
    """`principal_scores`, each of standard deviation 1 (with N); 0 where a component has no variance."""
    scores = principal_scores(rows, count)
    deviations = scores.std(dim=0, correction=0)
    return scores / torch.where(deviations > 0, deviations, 1.0)
