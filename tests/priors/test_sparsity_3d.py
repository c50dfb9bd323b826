"""Sparsity priors of volumes: transforms against scipy and PyWavelets, norm and prox against convex programs."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import pywt
import scipy.fft
import torch
from convex import minimum

from cryobench.core import unsupported_dims
from cryobench.numerics.linalg import along_axes, sandwich
from cryobench.priors.dct import DctSparsity
from cryobench.priors.sparsity import Sparsity
from cryobench.priors.tv import ProxTv, TotalVariation
from cryobench.priors.wavelet import WaveletSparsity

SHAPE = (4, 6, 8)
PRIORS: list[Sparsity] = [
    DctSparsity(1.7),
    WaveletSparsity(2.0, "haar"),
    WaveletSparsity(family="db4", level=1),
    TotalVariation(1.5),
    TotalVariation(kind="anisotropic"),
]
every_prior = pytest.mark.parametrize("prior", PRIORS, ids=repr)


def volumes(count=2, shape=SHAPE, seed=0):
    return torch.rand((count, 1, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def matrix(prior, shape=SHAPE):
    units = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, 1, *shape)
    return prior.analysis(units).flatten(1).mT


def test_the_dct_is_scipys():
    x = volumes(3, (5, 6, 8))
    wanted = scipy.fft.dctn(x.numpy(), axes=(2, 3, 4), norm="ortho")
    np.testing.assert_allclose(DctSparsity().analysis(x).numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize(("family", "level"), [("haar", None), ("db4", 2), ("sym8", 1), ("coif2", None)])
def test_the_wavelet_transform_is_that_of_pywavelets(family, level):
    x = volumes(2, (8, 16, 24))
    got = WaveletSparsity(family=family, level=level).analysis(x)
    for volume, coefficients in zip(x[:, 0].numpy(), got[:, 0].numpy(), strict=True):
        bands = pywt.wavedecn(volume, family, mode="periodization", level=level or 3)
        wanted, _ = pywt.coeffs_to_array(bands)
        np.testing.assert_allclose(coefficients, wanted, atol=1e-10)


@every_prior
def test_the_adjoint_and_the_norm_are_those_of_the_matrix(prior):
    K = matrix(prior)
    u = torch.randn(K.shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    image = prior.adjoint(u.reshape(1, -1, *SHAPE))
    torch.testing.assert_close(image.flatten(), K.mT @ u)
    largest = float(torch.linalg.matrix_norm(K, 2)) ** 2
    assert largest <= prior.norm_squared(3) * (1 + 1e-9)
    assert prior.norm_squared(3) == (12 if isinstance(prior, TotalVariation) else pytest.approx(largest))


def test_the_norm_bound_of_total_variation_is_tight_on_large_volumes():
    x = (-1.0) ** sum(torch.meshgrid(*[torch.arange(32)] * 3, indexing="ij")).double()[None, None]
    prior = TotalVariation()
    for _ in range(3):
        x = prior.adjoint(prior.analysis(x / x.norm()))
    assert 0.95 * 12 < x.norm() <= 12


def value(prior, x):
    """sum over voxels of |K x|, with the gradient's length where it is isotropic, as a convex expression."""
    K = matrix(prior).numpy()
    Kx = K @ x
    if isinstance(prior, TotalVariation) and prior.kind == "isotropic":
        return cp.sum(cp.norm(cp.reshape(Kx, (3, int(np.prod(SHAPE))), order="C"), 2, axis=0))
    kept = prior.penalised(torch.ones((1, K.shape[0] // int(np.prod(SHAPE)), *SHAPE), dtype=torch.float64))
    return cp.norm(cp.multiply(kept.flatten().numpy(), Kx), 1)


@pytest.mark.parametrize(
    "prior",
    [DctSparsity(), WaveletSparsity(family="haar"), TotalVariation(), TotalVariation(kind="anisotropic")],
    ids=repr,
)
def test_the_prox_is_the_minimiser(prior):
    z, thresholds = volumes(), torch.tensor([0.2, 0.05], dtype=torch.float64)
    x = prior.prox(z, thresholds.reshape(2, 1, 1, 1, 1))
    for before, weight, after in zip(z, thresholds.tolist(), x, strict=True):
        v = cp.Variable(before.numel())
        minimum(cp.sum_squares(v - before.flatten().numpy()) / 2 + weight * value(prior, v))
        np.testing.assert_allclose(after.flatten().numpy(), v.value, atol=1e-4)


def test_total_variation_is_the_sum_of_gradient_lengths():
    x = volumes(1)
    gradient = np.stack([np.diff(x[0, 0].numpy(), axis=a, append=np.take(x[0, 0].numpy(), [-1], a)) for a in range(3)])
    assert float(TotalVariation().value(x)) == pytest.approx(np.sqrt((gradient**2).sum(axis=0)).sum())
    assert float(TotalVariation(kind="anisotropic").value(x)) == pytest.approx(np.abs(gradient).sum())


def test_products_along_the_axes_refuse_channels_they_would_drop():
    two = torch.ones((2, 2, 4, 4))
    eye = torch.eye(4)
    for call in (lambda: sandwich(eye, two, eye), lambda: along_axes([eye] * 3, torch.ones((2, 2, 4, 4, 4))),
                 lambda: DctSparsity().analysis(two), lambda: TotalVariation().analysis(two)):  # fmt: skip
        with pytest.raises(ValueError, match="one channel"):
            call()


def test_prox_tv_supports_images_only():
    assert "it supports images (2-D)" in str(unsupported_dims(ProxTv, (8, 8, 8)))
