"""Maps along a curve: the polynomials, the posterior of the place against numerical integration, a planted curve."""

from __future__ import annotations

import numpy as np
import torch
from scipy.integrate import quad
from scipy.special import eval_legendre
from scipy.stats import norm, spearmanr

from cryobench.maps.band import Band, resized
from cryobench.maps.curve import Places, first_curve, fitted_curve, polynomials
from cryobench.maps.curve_volumes import CurveVolumes
from cryobench.maps.subspace import Latents, expected, fitted, inner_products, principal, turned
from cryobench.rng import generator
from cryobench.solvers.covariance import first_subspace, residuals_of
from tests.maps.test_subspace import dense, reals, simulated, smooth


def test_the_polynomials_are_orthonormal_and_have_no_mean():
    def value(degree, t):
        return float(polynomials(torch.tensor([t], dtype=torch.float64), 4)[0, degree - 1])

    for m in (1, 2, 4):
        assert abs(value(m, 0.3) - np.sqrt(2 * m + 1) * eval_legendre(m, -0.4)) < 1e-12
        assert abs(quad(lambda t, m=m: value(m, t), 0, 1)[0]) < 1e-12
        for n in (1, 2, 4):
            product = quad(lambda t, m=m, n=n: value(m, t) * value(n, t), 0, 1)[0]
            assert abs(product - (m == n)) < 1e-10


def test_the_posterior_of_the_place_is_that_of_the_likelihood_of_the_images():
    """Against the density of each image by dense matrices and SciPy, at every place."""
    images = simulated(smooth(3, 8, 3, 4, "curve"), torch.ones((5, 2), dtype=torch.float64), 0.02)
    band = Band.of(images, 8, noise=torch.full((6,), 4e-4), tolerance=1e-10)
    U = smooth(2, 8, 3, 4, "other")
    G, b, squares = inner_products(band, band.values, U)
    places, likelihood = Places.of(G, b)
    phi = polynomials(Places.grid(), 2)
    A, y = dense(band) @ U.flatten(1).T, reals(band, band.values)
    logs = np.array([[norm.logpdf((r - a @ f).numpy()).sum() for f in phi] for a, r in zip(A, y, strict=True)])
    wanted = np.exp(logs - logs.max(axis=1, keepdims=True))
    wanted /= wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(places.probability.numpy(), wanted, atol=1e-4)
    constant = 0.5 * float(squares.sum()) + 0.5 * np.log(2 * np.pi) * y.numel()
    total = np.logaddexp.reduce(logs, axis=1).sum() - 5 * np.log(len(phi)) + constant
    assert abs(likelihood - total) < 1e-3 * abs(total)
    moments = places.weights(2).moments[0].numpy()
    np.testing.assert_allclose(moments, np.einsum("k,km,kl->ml", wanted[0], phi, phi), atol=1e-4)


def test_places_begin_with_the_order_of_the_first_latent():
    first = torch.randn(500, generator=generator("order"), dtype=torch.float64).exp()
    mean = torch.stack([first, -first], dim=1)
    places = Places.ordered(Latents(mean, torch.zeros((500, 2, 2), dtype=torch.float64)))
    assert spearmanr(places.mean, first)[0] > 0.999
    assert abs(float(places.mean.mean()) - 0.5) < 0.01


def test_a_planted_curve_is_found_better_than_by_its_linear_component():
    """700 images of a quarter of a circle in a plane of maps: the place has a higher rank correlation with the truth
    than the first linear latent, and the bend is found."""
    maps = smooth(3, 16, 2.5, 5, "planted") * torch.tensor([20.0, 8.0, 8.0]).reshape(3, 1, 1, 1)
    t = torch.rand(700, generator=generator("t"), dtype=torch.float64)
    angle = (t - 0.5) * torch.pi * 1.2
    images = simulated(maps, torch.stack([angle.sin(), angle.cos()], dim=1), 0.9, shift=False)
    mean = maps[0] + maps[1] * angle.sin().mean() + maps[2] * angle.cos().mean()
    band = Band.of(images, 12, noise=torch.full((16,), 0.81))
    residuals = residuals_of(band, 16, mean)
    subspace, _ = fitted(band, residuals, first_subspace(resized(mean[None], 12)[0], 2, 0), iterations=10)
    axes, R = principal(subspace.components)
    latents = turned(expected(band, residuals, subspace.components)[0], R)
    start = first_curve(axes[0] * latents.mean[:, 0].std(), 3, 0.25)
    curve, places, likelihoods = fitted_curve(
        band, residuals, start, Places.ordered(latents), decay=0.25, iterations=12
    )
    linear = abs(spearmanr(latents.mean[:, 0], t)[0])
    found = abs(spearmanr(places.mean, t)[0])
    assert found > linear + 0.01
    assert found > 0.9
    ends = CurveVolumes(resized(mean[None], 12)[0], curve.components)
    v = ends.volumes(torch.tensor([[0.02], [0.5], [0.98]]))
    bend = (v[1] - (v[0] + v[2]) / 2).flatten().double()
    true = resized(maps[2:], 12).flatten()
    assert torch.dot(bend, true) / bend.norm() / true.norm() > 0.8
    assert len(likelihoods) == 12


def test_places_outside_of_the_curve_have_the_map_of_its_nearer_end():
    model = CurveVolumes(torch.zeros(8, 8, 8), torch.ones(2, 8, 8, 8))
    outside, ends = (model.volumes(torch.tensor(t)) for t in ([[-1.0], [2.0]], [[0.0], [1.0]]))
    assert torch.equal(outside, ends)
    assert model.dimensions == 1
