"""`emdiffuse` and `regression`: scale, samples, windows, and what they refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from networks import conditional, film_unet

import cryobench as cb
from cryobench.core import Problem
from cryobench.errors import DataError, ParameterError
from cryobench.networks.film import FilmConfig
from cryobench.networks.refinement import SAMPLING, respaced
from cryobench.networks.restoring import Restorer
from cryobench.operators.noise import NoNoise
from cryobench.priors.conditional import IMAGE, NOISE, SPREAD, VELOCITY, Conditional
from cryobench.rng import Rng
from cryobench.solvers.conditional import Emdiffuse, Regression

SMALL = FilmConfig(8, (1, 2), blocks=1, dropout=0.0)
PATCH = 16


@pytest.fixture
def models(tmp_path) -> dict[str, Conditional]:
    return {
        what: Conditional(str(conditional(tmp_path / what, film_unet(SMALL), what, PATCH))) for what in (NOISE, IMAGE)
    }


def problem(y: torch.Tensor) -> Problem:
    return Problem(cb.operator("identity", shape=tuple(y.shape[2:])), y, NoNoise(), torch.zeros(len(y), 1, 1, 1))


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def solve(solver, y: torch.Tensor, ids=None):
    return solver.solve(problem(y), rng=Rng(0, ids or [str(i) for i in range(len(y))]))


def test_regression_is_the_network_on_the_scaled_image(models):
    y = 100 + 20 * images(2, 1, 16, 12)
    found = solve(Regression(models[IMAGE]), y).x
    mean, deviation = y.mean((1, 2, 3), keepdim=True), y.std((1, 2, 3), correction=0, keepdim=True)
    c = (y - mean) / deviation / SPREAD
    with torch.no_grad():
        f = c + film_unet(SMALL)(torch.zeros_like(c), c, torch.ones(2))
    torch.testing.assert_close(found, mean + deviation * SPREAD * f, rtol=1e-5, atol=1e-4)


def test_samples_are_those_of_the_equations(models):
    """Two samples in NumPy's float64 from the solver's noise: mean and standard deviation."""
    y = 3 * images(1, 1, 16, 16)
    solver = Emdiffuse(models[NOISE], samples=2, steps=4, spacing="linear")
    found = solve(solver, y, ["a"])
    c = (y - y.mean()) / y.std(correction=0) / SPREAD
    levels = respaced(SAMPLING.gammas(), 4, "linear").tolist()
    drawn = []
    for number in range(2):
        stream = Rng(0, ["a"]).stream(f"conditional {number}")
        x = stream.normal((1, 16, 16)).numpy().astype(np.float64)
        for t in range(4, 0, -1):
            g, before = levels[t], levels[t - 1]
            with torch.no_grad():
                eps = film_unet(SMALL)(torch.from_numpy(x).float(), c, torch.tensor([g])).double().numpy()
            x0 = np.clip((x - np.sqrt(1 - g) * eps) / np.sqrt(g), -1, 1)
            x, a = (
                (np.sqrt(before) * (1 - g / before) * x0 + np.sqrt(g / before) * (1 - before) * x) / (1 - g),
                g / before,
            )
            if t > 1:
                x = x + np.sqrt((1 - a) * (1 - before) / (1 - g)) * stream.normal((1, 16, 16)).numpy()
        drawn.append(x * SPREAD * float(y.std(correction=0)) + float(y.mean()))
    np.testing.assert_allclose(found.x.numpy(), np.mean(drawn, axis=0), atol=2e-4)
    np.testing.assert_allclose(found.deviation.numpy(), np.std(drawn, axis=0, ddof=1), atol=2e-4)
    assert found.deviation.mean() > 0.1


def test_a_sample_does_not_depend_on_the_batch(models):
    y = images(3, 1, 16, 16)
    solver = Emdiffuse(models[NOISE], steps=3)
    together = solve(solver, y, ["a", "b", "c"]).x
    alone = solve(solver, y[1:2], ["b"]).x
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)
    assert solve(solver, y, ["a", "b", "c"]).deviation is None


def test_windows_are_blended_at_every_step():
    """The prediction in windows is their weighted mean: exact for a network that looks at single pixels, and without
    seams in general."""
    net = film_unet(FilmConfig(8, (1, 2), blocks=1, dropout=0.0))
    y, c = images(1, 1, 40, 24, seed=1), images(1, 1, 40, 24, seed=2)

    def square(noisy, condition, level, place):
        return noisy * condition + level[:, None, None, None]

    square.config = SMALL
    with torch.no_grad():
        torch.testing.assert_close(Restorer(square, PATCH).noise(c, y, 0.5), y * c + 0.5, atol=1e-6, rtol=1e-6)
        whole, tiled = Restorer(net, 64).noise(c, y, 0.5), Restorer(net, PATCH).noise(c, y, 0.5)
        torch.testing.assert_close(whole, net(y, c, torch.tensor([0.5])))
    difference = tiled[0, 0].diff(dim=0).square().mean(1)
    assert float(difference[12:28].mean()) < 1.5 * float(difference.mean())
    assert not torch.allclose(whole, tiled)


def test_sides_that_cannot_be_halved_are_padded(models):
    found = solve(Regression(models[IMAGE]), images(1, 1, 15, 13)).x
    assert found.shape == (1, 1, 15, 13)
    assert found.isfinite().all()


def anisotropic(y: torch.Tensor, depth: int, spec: str = "slices:4") -> Problem:
    operator = cb.operator(spec, shape=(depth, *y.shape[3:]))
    return Problem(operator, y, NoNoise(), torch.zeros(len(y), 1, 1, 1, 1))


def gap_model(folder, predicts: str, **config) -> Conditional:
    network = film_unet(FilmConfig(8, (1, 2), blocks=1, dropout=0.0, conditions=2, **config))
    return Conditional(str(conditional(folder, network, predicts, PATCH)))


@pytest.mark.parametrize("config", [{"places": 3}, {"images": 3}], ids=["one section", "together"])
def test_regression_fills_gaps_and_keeps_the_measured_sections(tmp_path, config):
    """Against the network, section by section; after the last measured section there are copies of it."""
    model = gap_model(tmp_path / "net", IMAGE, **config)
    y = 50 + 9 * images(2, 1, 3, 16, 12)
    found = Regression(model).solve(anisotropic(y, 11), rng=Rng(0, ["a", "b"])).x
    assert found.shape == (2, 1, 11, 16, 12)
    torch.testing.assert_close(found[:, :, ::4], y, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found[:, :, 9:], y[:, :, 2:].expand(-1, -1, 2, -1, -1), rtol=1e-5, atol=1e-4)
    mean, deviation = y.mean((1, 2, 3, 4), True), y.std((1, 2, 3, 4), correction=0, keepdim=True)
    c = ((y - mean) / deviation / SPREAD)[:, 0, 1:3]
    network = model.load()
    for section in (1, 2, 3):
        place = None if "images" in config else torch.full((2,), section - 1)
        with torch.no_grad():
            f = network(torch.zeros(2, network.config.images, 16, 12), c, torch.ones(2), place)
        f = f[:, section - 1] if place is None else f[:, 0]
        expected = (1 - section / 4) * c[:, 0] + section / 4 * c[:, 1] + f
        expected = (mean + deviation * SPREAD * expected[:, None, None])[:, 0, 0]
        torch.testing.assert_close(found[:, 0, 4 + section], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("config", [{"places": 3}, {"images": 3}], ids=["one section", "together"])
def test_samples_of_gaps_share_their_noise_unless_asked(tmp_path, config):
    """Without a network, a step from pure noise is the noise: sections of two gaps are equal if they share it."""
    network = film_unet(FilmConfig(8, (1, 2), blocks=1, dropout=0.0, conditions=2, **config))
    torch.nn.init.zeros_(network.last.weight)
    torch.nn.init.zeros_(network.last.bias)
    model = Conditional(str(conditional(tmp_path / "net", network, VELOCITY, PATCH)))
    problem = anisotropic(images(1, 1, 3, 16, 16), 9)
    shared = Emdiffuse(model, steps=2).solve(problem, rng=Rng(0, ["a"])).x
    apart = Emdiffuse(model, steps=2, shared=False).solve(problem, rng=Rng(0, ["a"])).x
    torch.testing.assert_close(shared[:, :, 1:4], shared[:, :, 5:8])
    assert not torch.allclose(apart[:, :, 1:4], apart[:, :, 5:8])
    assert torch.allclose(shared[:, :, 1], shared[:, :, 2]) == ("places" in config)
    assert not torch.allclose(apart[:, :, 1], apart[:, :, 2])


def test_a_volume_does_not_depend_on_the_batch_and_measured_sections_are_certain(tmp_path):
    model = gap_model(tmp_path / "net", NOISE, places=3)
    y = images(2, 1, 3, 16, 16)
    solver = Emdiffuse(model, samples=2, steps=3, shared=False)
    both = solver.solve(anisotropic(y, 9), rng=Rng(0, ["a", "b"]))
    one = solver.solve(anisotropic(y[1:], 9), rng=Rng(0, ["b"]))
    torch.testing.assert_close(both.x[1:], one.x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.x[:, :, ::4], y, rtol=1e-5, atol=1e-5)
    assert not both.deviation[:, :, ::4].any()
    assert float(both.deviation[:, :, 1].mean()) > 0.1


def test_samples_of_a_residual_are_added_to_the_regression(tmp_path):
    """With a network of zeros for velocity, the last estimate is known: sqrt(gamma) y of the last step."""
    y, found = images(1, 1, 16, 16), {}
    for residual in (False, True):
        network = film_unet(dataclasses.replace(SMALL, residual=residual))
        torch.nn.init.zeros_(network.last.weight)
        torch.nn.init.zeros_(network.last.bias)
        if residual:
            network.scale.fill_(0.25)
        folder = conditional(tmp_path / f"net {residual}", network, VELOCITY, PATCH)
        conditional(folder / "mean", film_unet(SMALL, seed=3), IMAGE, PATCH)
        found[residual] = solve(Emdiffuse(Conditional(str(folder)), steps=2), y).x
    mean = solve(Regression(Conditional(str(folder / "mean"))), y).x
    sampled, found = found[False], found[True]
    torch.testing.assert_close(found, mean + 0.25 * (sampled - y.mean()), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_solved_is_refused_with_a_reason(models, tmp_path):
    identity = problem(torch.zeros(1, 1, 16, 16))
    assert Emdiffuse(models[IMAGE]).unsupported(identity) == "its network predicts the image; use the solver regression"
    assert Regression(models[NOISE]).unsupported(identity) == "its network predicts the noise; use the solver emdiffuse"
    assert Emdiffuse(models[NOISE]).unsupported(identity) is None
    operator = cb.operator("sumpool:4", shape=(16, 16))
    pooled = Problem(operator, operator.A(torch.zeros(1, 1, 16, 16)), NoNoise(), torch.zeros(1, 1, 1, 1))
    assert "needs the operator identity" in str(Emdiffuse(models[NOISE]).unsupported(pooled))
    with_gap = conditional(tmp_path / "two", film_unet(FilmConfig(8, (1,), conditions=2, places=3)), IMAGE, PATCH)
    filling = Regression(Conditional(str(with_gap)))
    wanted = "its network fills gaps between sections that are 4 apart; it needs slices:4"
    for spec in ("slices:5", "slices:4,thickness=2", "decimate:4", "identity", "blur:1"):
        operator = cb.operator(spec, shape=(8, 16, 16))
        y = operator.A(torch.zeros(1, 1, 8, 16, 16))
        found = filling.unsupported(Problem(operator, y, NoNoise(), torch.zeros(1, 1, 1, 1, 1)))
        assert found == wanted or "it needs" in str(found)
    assert filling.unfillable([0.5]) == wanted
    assert filling.dims == (3,)
    assert Regression(models[IMAGE]).dims == (2,)
    assert (
        Regression(models[IMAGE]).unfillable([0.5])
        == "its network restores images, and does not fill gaps between sections"
    )
    for spec in ("slices:4", "decimate:4,axis=0"):
        assert filling.unsupported(anisotropic(images(1, 1, 2, 16, 16), 8, spec)) is None
    for wrong in ({"samples": 0}, {"steps": 0}, {"steps": 1001}, {"tile": 0}):
        with pytest.raises(ParameterError, match="must be"):
            Emdiffuse(models[NOISE], **wrong)
    with pytest.raises(
        DataError, match=r"has no config\.json; give one that `cryobench train --objective conditional`"
    ):
        Conditional(str(tmp_path)).predicts  # noqa: B018
