"""`gaussian`: the filter against scipy, and Stein's estimate of the risk against the true error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import fourier_gaussian, gaussian_filter

import cryobench as cb
from cryobench.core import Imaging, Problem
from cryobench.errors import ParameterError
from cryobench.numerics.fft import rfftn
from cryobench.operators.identity import Identity
from cryobench.operators.noise import NoNoise
from cryobench.rng import Rng
from cryobench.solvers.gaussian import GaussianFilter, Risk, least_risk

CPU = torch.device("cpu")


def problem(y: torch.Tensor, sigma: float | torch.Tensor = 0.0) -> Problem:
    operator = Identity().build(Imaging(tuple(y.shape[2:])), {}, dtype=y.dtype, device=CPU)
    levels = torch.as_tensor(sigma, dtype=y.dtype).expand(len(y)).reshape(-1, *[1] * (y.ndim - 1))
    return Problem(operator, y, NoNoise(), levels)


def solve(solver: GaussianFilter, y: torch.Tensor, sigma: float | torch.Tensor = 0.0):
    return solver.solve(problem(y, sigma), rng=Rng(0, ["0"] * len(y)))


def smooth(shape: tuple[int, ...], width: float, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    image = gaussian_filter(rng.normal(size=shape), width, mode="wrap")
    return torch.from_numpy((image - image.mean()) / image.std())


@pytest.mark.parametrize("shape", [(31, 40), (32, 33), (8, 9, 10)])
@pytest.mark.parametrize("width", [0.0, 0.7, 4.0])
def test_the_filter_is_that_of_scipy(shape, width):
    y = np.random.default_rng(0).normal(2, 1, size=(2, *shape))
    expected = [np.fft.ifftn(fourier_gaussian(np.fft.fftn(image), width)).real for image in y]
    found = solve(GaussianFilter(width), torch.from_numpy(y)[:, None]).x[:, 0]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-12)


@pytest.mark.parametrize("shape", [(64, 50), (61, 47), (16, 12, 14)])
def test_the_risk_is_its_formula_summed_over_the_whole_spectrum(shape):
    y, sigma, width = torch.from_numpy(np.random.default_rng(1).normal(size=shape)), 0.8, 1.7
    k = np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")
    h = np.exp(-2 * np.pi**2 * width**2 * sum(axis**2 for axis in k))
    power = np.abs(np.fft.fftn(y.numpy(), norm="ortho")) ** 2
    expected = ((1 - h) ** 2 * power + 2 * sigma**2 * h).mean() - sigma**2
    assert Risk(rfftn(y, len(shape)), y.shape, sigma)(width) == pytest.approx(expected, rel=1e-10)


def test_the_risk_is_an_unbiased_estimate_of_the_error():
    clean, sigma, width, draws = smooth((48, 48), 2.0, 2), 1.5, 1.8, 200
    off = []
    for draw in range(draws):
        y = clean + sigma * torch.randn(48, 48, generator=torch.Generator().manual_seed(draw), dtype=torch.float64)
        x = solve(GaussianFilter(width), y[None, None]).x[0, 0]
        off.append(Risk(rfftn(y), y.shape, sigma)(width) - float((x - clean).square().mean()))
    assert abs(np.mean(off)) < 4 * np.std(off) / draws**0.5


@pytest.mark.parametrize(("sigma", "structure"), [(0.5, 2.0), (2.0, 3.0), (6.0, 5.0)])
def test_the_chosen_width_is_nearly_as_good_as_the_best(sigma, structure):
    clean = smooth((256, 240), structure, 3)
    noise = torch.randn(256, 240, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    y = (clean + sigma * noise)[None, None]

    def error(x: torch.Tensor) -> float:
        return float((x[0, 0] - clean).square().mean())

    oracle = min(error(solve(GaussianFilter(width), y).x) for width in np.geomspace(0.2, 30, 60))
    answer = solve(GaussianFilter(), y, sigma)
    assert error(answer.x) < 1.02 * oracle
    assert 0.2 < float(answer.info["width"]) < 30


def test_each_image_has_its_own_width_and_exact_data_are_not_filtered():
    y = torch.stack([smooth((64, 64), 3.0, 4), smooth((64, 64), 3.0, 4)])[:, None]
    y = y + torch.tensor([0.3, 2.0]).reshape(2, 1, 1, 1) * torch.randn(2, 1, 64, 64, dtype=torch.float64)
    widths = solve(GaussianFilter(), y, torch.tensor([0.3, 2.0])).info["width"]
    alone = [float(solve(GaussianFilter(), y[i : i + 1], s).info["width"]) for i, s in enumerate((0.3, 2.0))]
    assert widths.tolist() == alone
    assert widths[0] < widths[1]
    exact = solve(GaussianFilter(), y, 0.0)
    torch.testing.assert_close(exact.x, y)
    assert least_risk(rfftn(y[0, 0]), y.shape[2:], 1e-9) < 0.2


def test_what_is_not_a_width_or_another_operator_is_refused():
    with pytest.raises(ParameterError, match="width must be zero or more pixels, or auto, got -1"):
        GaussianFilter(-1.0)
    operator = cb.operator("sumpool:4", shape=(16, 16))
    pooled = Problem(operator, operator.A(torch.zeros(1, 1, 16, 16)), NoNoise(), torch.zeros(1, 1, 1, 1))
    assert GaussianFilter().unsupported(pooled) == "gaussian smooths images; it needs the operator identity"
