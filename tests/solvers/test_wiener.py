"""`wiener` against its formula on dense matrices, and against the floor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from optics import live, measure, part, rows, taken
from particles import simulated

from cryobench.core import mean_intensity
from cryobench.errors import ParameterError
from cryobench.numerics.shells import shell_sums, shells
from cryobench.operators.composed import Composed
from cryobench.operators.ctf import Ctf
from cryobench.operators.fourier import Fourier
from cryobench.operators.identity import Identity
from cryobench.operators.noise import Gaussian
from cryobench.operators.sumpool import SumPool
from cryobench.rng import Rng
from cryobench.solvers.pinv import Pinv
from cryobench.solvers.wiener import Wiener

DIAGONAL = [Ctf(), Identity(), Fourier(0.5), Composed(Fourier(0.5), Ctf())]


def solve(solver, problem):
    return solver.solve(problem, rng=Rng(0, [str(i) for i in range(problem.batch)])).x


def images(n, shape, dtype=torch.float64):
    return torch.rand((n, 1, *shape), generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1


def error(x, truth):
    return float((x - truth).square().mean())


def by_hand(problem, snr):
    """The formula, coefficient by coefficient on the whole spectrum."""
    operator, answers = problem.operator, []
    c = mean_intensity(operator, problem.y)
    structure = (problem.y - c * operator.mean_response).numpy()
    H, W = operator.image_shape
    ky, kx = np.fft.fftfreq(H)[:, None], np.fft.fftfreq(W)[None, :]
    shell = np.rint(np.hypot(ky, kx) * max(H, W)).astype(int)
    for i in range(problem.batch):
        half = operator.transfer[min(i, len(operator.transfer) - 1), 0].numpy()
        w = np.array([[half[a, b] if b <= W // 2 else half[-a % H, W - b] for b in range(W)] for a in range(H)])
        noise = problem.sigma[i].item() ** 2
        measured = np.ones_like(w)
        if operator.noise_in_range:
            noise, measured = noise * H * W / operator.rank, (w != 0).astype(float)
        Y = np.fft.fft2(structure[i, 0], norm="ortho")
        S = np.zeros_like(w)
        for s in np.unique(shell):
            own = shell == s
            passed = (w[own] ** 2).sum()
            excess = (np.abs(Y[own]) ** 2 - noise * measured[own]).sum()
            S[own] = max(excess, 0) / passed if passed > 0 else 0
        if snr != "auto":
            S = np.full_like(w, snr * noise)
        X = np.divide(w * S, w**2 * S + noise) * Y
        answers.append(c[i].item() + np.fft.ifft2(X, norm="ortho").real)
    return np.stack(answers)


@pytest.mark.parametrize("shape", [(16, 16), (15, 9), (8, 24)], ids=repr)
@pytest.mark.parametrize("snr", ["auto", 3.0])
@pytest.mark.parametrize("recipe", DIAGONAL, ids=repr)
def test_it_is_the_formula(recipe, snr, shape):
    problem = measure(live(recipe, taken(3, shape)), images(3, shape), Gaussian(rel=0.3))
    np.testing.assert_allclose(solve(Wiener(snr), problem)[:, 0].numpy(), by_hand(problem, snr), atol=1e-9)


@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 6, 8)], ids=repr)
@pytest.mark.parametrize("recipe", [Identity(), Fourier(0.5)], ids=repr)
def test_it_is_the_formula_on_volumes(recipe, shape):
    """The gain as a dense matrix, F^-1 diag(g) F, and the power of the signal by shells of the whole spectrum."""
    problem = measure(live(recipe, taken(2, shape)), images(2, shape), Gaussian(rel=0.3))
    operator, N = problem.operator, int(np.prod(shape))
    units = torch.eye(N, dtype=torch.float64).reshape(N, 1, *shape)
    # A is circulant: its first column has the eigenvalues w as its spectrum
    w = np.fft.fftn(operator.A(units[:1])[0, 0].numpy()).real
    w[np.abs(w) < 1e-9] = 0
    grids = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")
    shell = np.rint(np.sqrt(sum(k**2 for k in grids)) * max(shape)).astype(int)
    c = mean_intensity(operator, problem.y)
    answer = solve(Wiener(), problem)
    for i in range(2):
        Y = np.fft.fftn((problem.y - c * operator.mean_response)[i, 0].numpy(), norm="ortho")
        noise = problem.sigma[i].item() ** 2 * (N / operator.rank if operator.noise_in_range else 1)
        noisy = (w != 0) if operator.noise_in_range else np.ones(shape)
        S = np.zeros(shape)
        for s in np.unique(shell):
            own = shell == s
            passed = (w[own] ** 2).sum()
            excess = (np.abs(Y[own]) ** 2 - noise * noisy[own]).sum()
            S[own] = max(excess, 0) / passed if passed > 0 else 0
        wanted = c[i].item() + np.fft.ifftn(w * S / (w**2 * S + noise) * Y, norm="ortho").real
        np.testing.assert_allclose(answer[i, 0].numpy(), wanted, atol=1e-9)


@pytest.mark.parametrize("recipe", DIAGONAL, ids=repr)
def test_exact_measurements_give_the_floor(recipe):
    problem = measure(live(recipe, taken(3, (16, 16)), torch.float32), images(3, (16, 16), torch.float32))
    assert torch.equal(solve(Wiener(), problem), solve(Pinv(), problem))


@pytest.mark.parametrize("noise", [Gaussian(rel=0.02), Gaussian(rel=0.3), Gaussian(rel=3.0)], ids=repr)
def test_with_noise_it_beats_the_floor_and_every_stated_ratio(noise):
    x, _ = simulated(4, 64)
    problem = measure(live(Ctf(), taken(4, (64, 64), pixel_size=1.5), torch.float32), x, noise)
    own = error(solve(Wiener(), problem), x)
    assert own < error(solve(Pinv(), problem), x) / 30  # 15 dB
    assert all(own < error(solve(Wiener(snr), problem), x) for snr in (1e-3, 1e-2, 0.1, 1.0, 10.0, 1e2, 1e3))


def test_the_estimated_power_is_that_of_the_image():
    """No tuning: with the power of the clean image itself it is hardly better."""
    x, _ = simulated(4, 64)
    problem = measure(live(Ctf(), taken(4, (64, 64), pixel_size=1.5)), x.double(), Gaussian(rel=0.3))
    shell = shells((64, 64), x.device)
    centred = x.double() - x.double().mean(dim=(2, 3), keepdim=True)
    power = torch.fft.rfft2(centred, norm="ortho").abs().square()
    mean = shell_sums(power, shell, (64, 64)) / shell_sums(torch.ones_like(power), shell, (64, 64))
    w, noise = problem.operator.transfer, problem.sigma.square()
    c = mean_intensity(problem.operator, problem.y)
    gain = w / (w**2 + noise / mean[:, shell].unsqueeze(1))
    oracle = c + torch.fft.irfft2(gain * torch.fft.rfft2(problem.y - c * problem.operator.mean_response), s=(64, 64))
    assert error(solve(Wiener(), problem), x) < 1.15 * error(oracle, x)


@pytest.mark.parametrize("recipe", DIAGONAL, ids=repr)
def test_results_do_not_depend_on_the_batch(recipe):
    x, imaging = images(6, (32, 32), torch.float32), taken(6, (32, 32))
    problem = measure(live(recipe, imaging, torch.float32), x, Gaussian(rel=0.3))
    sigma = problem.sigma.clone()
    sigma[2] = 0  # one of them is exact
    problem = type(problem)(problem.operator, problem.y, problem.noise, sigma)
    whole = solve(Wiener(), problem)
    for i in range(6):
        assert torch.equal(solve(Wiener(), part(problem, slice(i, i + 1))), whole[i : i + 1])
    alone = live(recipe, rows(imaging, [4]), torch.float32)
    own = type(problem)(alone, problem.y[4:5], problem.noise, sigma[4:5])
    torch.testing.assert_close(solve(Wiener(), own), whole[4:5], rtol=0, atol=1e-6)


def test_operators_that_are_not_diagonal_are_refused_with_a_reason():
    problem = measure(live(SumPool(4), taken(2, (16, 16))), images(2, (16, 16)))
    assert "diagonal in Fourier" in str(Wiener().unsupported(problem))
    assert Wiener().unsupported(measure(live(Ctf(), taken(2, (16, 16))), images(2, (16, 16)))) is None


@pytest.mark.parametrize("snr", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_ratios_are_refused(snr):
    with pytest.raises(ParameterError, match="snr must be positive or auto"):
        Wiener(snr)
