"""Sparsity priors: their transforms against scipy and PyWavelets, their norms and prox against convex programs."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import pywt
import scipy.fft
import torch
from convex import analysis_matrix, magnitudes, minimum, prior_value

from cryobench.errors import DependencyError, ParameterError
from cryobench.priors.dct import LARGE, DctSparsity, dct_matrix
from cryobench.priors.tv import ProxTv, TotalVariation
from cryobench.priors.wavelet import WaveletSparsity

PRIORS = [
    DctSparsity(),
    DctSparsity(1.7),
    WaveletSparsity(family="haar", level=2),
    WaveletSparsity(2.0),
    TotalVariation(),
    TotalVariation(2.5),
    TotalVariation(kind="anisotropic"),
    TotalVariation(1.5, "anisotropic"),
]
every_prior = pytest.mark.parametrize("prior", PRIORS, ids=repr)


def images(batch=2, shape=(8, 8), dtype=torch.float64, seed=0) -> torch.Tensor:
    return torch.rand((batch, 1, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def per_image(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


# ------------------------------------------------------------------------------------------------------- transforms


def test_the_dct_is_scipys():
    x = images(3, (12, 20))
    c = DctSparsity().analysis(x)
    np.testing.assert_allclose(c.numpy(), scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho"), atol=1e-12)


@pytest.mark.parametrize("shape", [(4, LARGE + 2), (LARGE + 1, 3)])
def test_the_dct_of_a_large_image_is_the_product_with_the_matrices(shape):
    x = images(2, shape)
    rows, columns = (dct_matrix(n, torch.float64, torch.device("cpu")) for n in shape)
    c, prior = DctSparsity().analysis(x), DctSparsity()
    torch.testing.assert_close(c, rows @ x @ columns.mT, atol=1e-11, rtol=0)
    torch.testing.assert_close(prior.adjoint(c), x, atol=1e-12, rtol=0)
    assert torch.equal(prior.analysis(x[1:]), c[1:]), "the batch does not change the rounding"
    assert prior.analysis(x.float()).dtype == torch.float32


@pytest.mark.parametrize(("family", "level"), [("haar", None), ("db4", 3), ("sym8", 2), ("coif2", 1), ("db20", None)])
@pytest.mark.parametrize("shape", [(16, 16), (24, 40)])
def test_the_wavelet_transform_is_that_of_pywavelets(family, level, shape):
    x, prior = images(3, shape), WaveletSparsity(family=family, level=level)
    level = level or {(16, 16): 4, (24, 40): 3}[shape]
    for image, got in zip(x[:, 0].numpy(), prior.analysis(x)[:, 0].numpy(), strict=True):
        bands = pywt.wavedec2(image, family, mode="periodization", level=level)
        wanted, _ = pywt.coeffs_to_array(bands)
        np.testing.assert_allclose(got, wanted, atol=1e-10)


@every_prior
@pytest.mark.parametrize("shape", [(8, 8), (8, 12)])
def test_the_adjoint_is_the_adjoint_and_the_stated_norm_bounds_it(prior, shape):
    x, u = images(1, shape), prior.analysis(images(1, shape, seed=1))
    assert float((prior.analysis(x) * u).sum()) == pytest.approx(float((x * prior.adjoint(u)).sum()), rel=1e-10)
    unit = torch.eye(shape[0] * shape[1], dtype=torch.float64).reshape(-1, 1, *shape)
    singular = torch.linalg.svdvals(prior.analysis(unit).flatten(1))
    assert singular.max() ** 2 <= prior.norm_squared(2) * (1 + 1e-9)
    if prior.norm_squared(2) == 1:
        torch.testing.assert_close(singular, torch.ones_like(singular))


@every_prior
def test_the_entries_counted_are_those_penalised(prior):
    u = prior.penalised(torch.ones_like(prior.analysis(images(1))))
    count = int((analysis_matrix(prior, (8, 8)) != 0).any(axis=1).sum())
    if isinstance(prior, TotalVariation) and prior.kind == "isotropic":
        assert prior.entries((8, 8)) == 64  # one length a pixel, that of the last one being zero
    else:
        assert prior.entries((8, 8)) == count
    assert u.shape == prior.analysis(images(1)).shape


# ------------------------------------------------------------------------------------------------ norm, ball and prox


@every_prior
def test_the_value_is_the_stated_minimum(prior):
    x = images(2)
    for image, got in zip(x, prior.value(x).flatten(), strict=True):
        value = prior_value(prior, image.flatten().numpy(), (8, 8))
        wanted = minimum(value) if value.variables() else value.value
        assert float(got) == pytest.approx(float(wanted), rel=1e-5)


@every_prior
def test_the_prior_is_a_norm_that_leaves_constants_alone(prior):
    x, z = images(2), images(2, seed=1)
    torch.testing.assert_close(prior.value(-3 * x), 3 * prior.value(x))
    assert (prior.value(x + z) <= prior.value(x) + prior.value(z) + 1e-9).all()
    torch.testing.assert_close(prior.value(x + 5), prior.value(x))
    assert prior.value(torch.full_like(x, 0.7)).abs().max() < 1e-9


@every_prior
def test_the_projection_is_the_nearest_point_of_the_ball(prior):
    u, radius = prior.analysis(3 * images(2)), per_image(0.4, 1.5)
    for v, r, got in zip(u, radius.flatten().tolist(), prior.project(u, radius), strict=True):
        p = cp.Variable(v.numel())
        free = prior.penalised(torch.ones_like(v)[None]).flatten().numpy() == 0
        held = [magnitudes(prior, p, (8, 8)) <= r, cp.norm(p, 2) <= r * np.sqrt(prior.entries((8, 8))) / prior.cut]
        held += [p[free] == 0] if free.any() else []
        # (with cut = 1 the second condition follows from the first only where every entry is counted)
        held = held if prior.cut > 1 else [held[0], *held[2:]]
        minimum(cp.sum_squares(p - v.flatten().numpy()), held)
        np.testing.assert_allclose(got.flatten().numpy(), p.value, atol=1e-4)


@every_prior
def test_the_prox_is_the_minimiser_and_keeps_the_mean(prior):
    z, t = images(2), per_image(0.2, 0.05)
    x = prior.prox(z, t)
    torch.testing.assert_close(x.mean(dim=(2, 3)), z.mean(dim=(2, 3)))
    for before, weight, after in zip(z, t.flatten().tolist(), x, strict=True):
        v = cp.Variable(64)
        minimum(cp.sum_squares(v - before.flatten().numpy()) / 2 + weight * prior_value(prior, v, (8, 8)))
        np.testing.assert_allclose(after.flatten().numpy(), v.value, atol=1e-4)


def test_the_wavelet_prox_is_pywavelets_soft_threshold():
    z = images(1, (16, 16))
    bands = pywt.wavedec2(z[0, 0].numpy(), "db4", mode="periodization", level=2)
    shrunk = [tuple(pywt.threshold(band, 0.3, "soft") for band in level) for level in bands[1:]]
    wanted = pywt.waverec2([bands[0], *shrunk], "db4", mode="periodization")
    got = WaveletSparsity(family="db4", level=2).prox(z, per_image(0.3))
    np.testing.assert_allclose(got[0, 0].numpy(), wanted, atol=1e-10)


def test_the_dct_prox_is_scipys_transform_soft_thresholded():
    z = images(1, (16, 12))
    c = scipy.fft.dctn(z[0, 0].numpy(), norm="ortho")
    shrunk = pywt.threshold(c, 0.3, "soft")
    shrunk[0, 0] = c[0, 0]
    got = DctSparsity().prox(z, per_image(0.3))
    np.testing.assert_allclose(got[0, 0].numpy(), scipy.fft.idctn(shrunk, norm="ortho"), atol=1e-12)


@every_prior
def test_results_do_not_depend_on_the_start_or_the_batch(prior):
    z, t = images(5, (16, 16), torch.float32), torch.linspace(0.05, 0.5, 5).reshape(-1, 1, 1, 1)
    x, u = prior.dual_prox(z, t)
    torch.testing.assert_close(prior.dual_prox(z + 0.001, t, u)[0], x + 0.001, atol=1e-3, rtol=0)
    for i in range(5):
        torch.testing.assert_close(prior.prox(z[i : i + 1], t[i : i + 1]), x[i : i + 1], atol=1e-6, rtol=0)
        torch.testing.assert_close(
            prior.project(u[i : i + 1] * 3, t[i : i + 1]), prior.project(u * 3, t)[i : i + 1], atol=0, rtol=0
        )


@pytest.mark.parametrize("cut", [1.5, 4.0])
def test_entries_beyond_the_cut_are_the_sparse_part(cut):
    """With c = a + b, the dense part b is c clipped at `cut` root mean squares of b."""
    x = images(1, (16, 16))
    prior = DctSparsity(cut)
    c = prior.penalised(prior.analysis(x)).flatten()
    weight = 1e-6  # the prox for a vanishing threshold moves along the subgradient u of R
    u = (prior.analysis(x - prior.prox(x, per_image(weight))) / weight).flatten()
    b = torch.where(u.abs() < 1 - 1e-6, c, torch.inf)
    rms = (prior.entries((16, 16)) ** 0.5 / cut) ** -1  # b = rms_total * u, ||u|| = sqrt(n) / cut
    level = (b[b.isfinite()] / u[b.isfinite()]).nanmedian()  # ||b|| / (sqrt(n) / cut)
    dense_part = torch.clamp(c, -level, level)
    torch.testing.assert_close(dense_part.norm() * rms, level, rtol=1e-4, atol=0)
    assert level == pytest.approx(float(cut * dense_part.norm() / prior.entries((16, 16)) ** 0.5), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: DctSparsity(0.5), "cut must be 1"),
        (lambda: DctSparsity(float("nan")), "cut must be 1"),
        (lambda: WaveletSparsity(family="nonsense"), "no discrete wavelet 'nonsense'"),
        (lambda: WaveletSparsity(family="bior2.2"), "bior2.2 is not orthogonal"),
        (lambda: WaveletSparsity(family="dmey"), "dmey is not orthogonal"),
        (lambda: WaveletSparsity(level=0), "level must be at least 1"),
        (lambda: ProxTv(2.0, "anisotropic"), "anisotropic total variation with cut=1"),
        (lambda: ProxTv(1.0, "isotropic"), "anisotropic"),
    ],
)
def test_invalid_priors_are_refused(make, wanted):
    with pytest.raises(ParameterError, match=wanted):
        make()


def test_unsupported_images_give_a_reason():
    assert WaveletSparsity().unsupported((15, 16)) == "a wavelet transform needs even sides, got 15 x 16"
    assert "halved 2 times, not level=3" in str(WaveletSparsity(level=3).unsupported((12, 16)))
    assert WaveletSparsity(level=2).unsupported((12, 16)) is None
    assert TotalVariation().unsupported((1, 1))


def test_without_the_extra_proxtv_is_explained():
    try:
        import prox_tv  # noqa: F401
    except ImportError:
        with pytest.raises(DependencyError, match="pip install 'cryobench\\[proxtv\\]'"):
            ProxTv(1.0, "anisotropic")
    else:
        pytest.skip("the extra proxtv is installed")


@pytest.mark.proxtv
def test_anisotropic_total_variation_against_prox_tv():
    pytest.importorskip("prox_tv", reason="the extra proxtv is not installed")
    z, t = images(3, (16, 24)), per_image(0.05, 0.2, 1.0)
    wanted = ProxTv(1.0, "anisotropic").prox(z, t)
    torch.testing.assert_close(TotalVariation(1.0, "anisotropic").prox(z, t), wanted, atol=1e-4, rtol=0)
