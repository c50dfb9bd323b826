"""Principal components, against those of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from cryobench.numerics import principal
from cryobench.numerics.principal import principal_scores, unit_scores


def rows(count: int, size: int) -> torch.Tensor:
    """Rows whose directions have clearly different variances."""
    draws = torch.randn((count, size), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return draws * 2.0 ** -torch.arange(size) + 3


@pytest.mark.parametrize(("count", "size"), [(40, 12), (12, 40)])
@pytest.mark.parametrize("dense", [True, False])
def test_scores_are_those_of_scikit_learn_with_a_sign_of_their_own(count, size, dense, monkeypatch):
    monkeypatch.setattr(principal, "_DENSE", 1500 if dense else 0)
    x = rows(count, size)
    fitted = PCA(5, svd_solver="full").fit(x.numpy())
    largest = fitted.components_[np.arange(5), np.abs(fitted.components_).argmax(axis=1)]
    expected = fitted.transform(x.numpy()) * np.sign(largest)
    np.testing.assert_allclose(principal_scores(x, 5).numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(unit_scores(x, 5).std(dim=0, correction=0), 1, rtol=1e-12)


def test_directions_without_variance_have_the_scores_0():
    x = torch.outer(torch.arange(6.0), torch.ones(4))
    found = unit_scores(x, 3)
    assert float(found[:, 0].std(correction=0)) == pytest.approx(1)
    assert not found[:, 1:].any()
    assert not principal_scores(torch.ones(5, 3), 2).any()
