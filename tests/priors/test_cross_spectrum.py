"""`cross_spectrum` against sums over single coefficients and known spectra; `wiener` with it against its formula."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from halves import Halves, Micrographs

from cryobench.core import Imaging, Pairs, Problem, Scale, Source, Stack, build_operator
from cryobench.errors import DataError, ParameterError, SelectionError, SpecError
from cryobench.operators.fourier import Fourier
from cryobench.operators.identity import Identity
from cryobench.operators.noise import Gaussian
from cryobench.priors import cross_spectrum
from cryobench.priors.cross_spectrum import CrossSpectrum
from cryobench.registry import installed
from cryobench.rng import Rng
from cryobench.solvers.wiener import Wiener


def radius(shape: tuple[int, int]) -> np.ndarray:
    return np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))


def signal_at(k: np.ndarray) -> np.ndarray:
    """The power of a coefficient of the specimen; that of the mean is 0."""
    return np.where(k > 0, 400 / (1 + (k / 0.05) ** 2), 0)


def noise_at(k: np.ndarray) -> np.ndarray:
    return 30 * (1 + 3 * np.cos(np.pi * k) ** 2)


def field(power: np.ndarray, seed: object) -> np.ndarray:
    """A periodic Gaussian field whose coefficients have this mean square."""
    white = np.random.default_rng(seed).normal(size=power.shape)
    return np.fft.ifft2(np.sqrt(power) * np.fft.fft2(white)).real


@dataclass(frozen=True)
class Fields(Source):
    """Gaussian fields of known spectra; those before `hidden` cannot be read. louder: the deviation of the second
    half's noise over that of the first."""

    count: int = 4
    side: int = 256
    hidden: int = 0
    louder: float = 1.0

    def open(self) -> Stack:
        return Micrographs(FieldPairs(self))


class FieldPairs(Halves):
    def __init__(self, source: Fields):
        super().__init__(source.count, source.side)
        self._source = source

    def shape(self, index: int) -> tuple[int, int]:
        return self._source.side, self._source.side + 8 * index

    def truth(self, index: int) -> np.ndarray:
        return 1000 + field(signal_at(radius(self.shape(index))), (index, 0))

    def whole(self, index: int) -> np.ndarray:
        assert index >= self._source.hidden, "a micrograph that was not selected was read"
        power = noise_at(radius(self.shape(index)))
        noise = [level * field(power, (index, half)) for half, level in ((1, 1.0), (2, self._source.louder))]
        return (self.truth(index) + np.stack(noise)).astype(np.float32)


@dataclass(frozen=True)
class Small(Source):
    """Micrographs of other shapes, even and odd."""

    noise: float = 1.0

    def open(self) -> Stack:
        return Micrographs(SmallPairs(2, 21, (self.noise, self.noise)))


class SmallPairs(Halves):
    def shape(self, index: int) -> tuple[int, int]:
        return 21 + index, 24 - 3 * index

    def whole(self, index: int) -> np.ndarray:
        rows, columns = self.shape(index)
        return super().whole(index)[:, :rows, :columns]


def problem_of(images: np.ndarray, sigma: float, scale: Scale, operator: object = Identity()) -> Problem:
    y = torch.from_numpy(images)[:, None]
    imaging = Imaging(images.shape[1:], (None,) * len(y))
    built = build_operator(operator, imaging, seed=0, dtype=y.dtype, device=y.device)
    return Problem(built, y, Gaussian(sigma), torch.full((len(y), 1, 1, 1), sigma, dtype=y.dtype), scale)


def solve(solver: Wiener, problem: Problem) -> torch.Tensor:
    return solver.solve(problem, rng=Rng(0, [str(i) for i in range(problem.batch)])).x


def test_the_spectra_are_means_over_all_coefficients_of_a_shell():
    pairs = Small().open().pairs
    assert pairs is not None
    n = min(min(pairs.read(i)[0].shape) for i in range(2))
    found: dict[int, list[tuple[float, float]]] = {}
    for index in range(2):
        a, b = (half - half.mean() for half in pairs.read(index).astype(float))
        A, B = (np.fft.fft2(half, norm="ortho") for half in (a, b))
        for place, k in np.ndenumerate(radius(a.shape)):
            values = (A[place] * B[place].conj()).real, abs(A[place]) ** 2
            found.setdefault(int(np.rint(k * n)), []).append(values)
    cross, power = np.array([np.mean(found[shell], axis=0) for shell in sorted(found)]).T
    spectra = CrossSpectrum(Small()).load()
    assert spectra.per_cycle == n
    np.testing.assert_allclose(spectra.signal[1:], np.maximum(cross, 0)[1:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(spectra.noise[1:], np.maximum(power - cross, 0)[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("louder", [1.0, 3.0])
def test_known_spectra_are_found_and_the_noise_is_that_of_the_first_half(louder):
    shape = (64, 96)
    signal, noise = CrossSpectrum(Fields(louder=louder)).load().at(shape, torch.device("cpu"))
    k = radius(shape)[:, : shape[1] // 2 + 1]
    for low, high in ((0.02, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 0.5)):
        band = (k >= low) & (k < high)
        S, N = signal_at(k)[band].mean(), noise_at(k)[band].mean()
        assert signal.numpy()[band].mean() == pytest.approx(S, abs=0.05 * (S + louder * N))
        assert noise.numpy()[band].mean() == pytest.approx(N, abs=0.05 * (S + louder * N))


def test_only_the_middle_of_large_micrographs_is_read(monkeypatch):
    monkeypatch.setattr(cross_spectrum, "_SIDE", 64)
    opened = Fields(count=2).open()
    monkeypatch.setattr(Fields, "open", lambda self: opened)
    CrossSpectrum(Fields(count=2)).load()
    assert isinstance(opened.pairs, Halves)
    assert opened.pairs.read_pixels == 2 * 64 * 64


@pytest.mark.parametrize("factor", [1.0, 7.0])
def test_wiener_is_its_formula_with_the_spectra_on_the_scale_of_x(factor):
    """x = c + F^-1 [S / (S + N)] F (y - c), N of the stated mean and of the shape of the measured noise."""
    prior = CrossSpectrum(Fields())
    images = Fields(count=1).open().read(0)[None].astype(float)
    offset, sigma = 1000.0, 9.0
    scale = Scale(torch.tensor([offset]).double(), torch.tensor([factor]).double(), None, "none")
    found = solve(Wiener(spectrum=prior), problem_of((images - offset) / factor, sigma / factor, scale))
    spectra, shape = prior.load(), images.shape[1:]
    place = np.arange(len(spectra.signal)) / spectra.per_cycle
    S, N = (np.interp(radius(shape), place, values.numpy()) for values in (spectra.signal, spectra.noise))
    N *= sigma**2 / N.mean()
    y = images[0] - images[0].mean()
    wanted = images[0].mean() + np.fft.ifft2(S / (S + N) * np.fft.fft2(y)).real
    np.testing.assert_allclose(offset + factor * found[0, 0].numpy(), wanted, atol=1e-7)


def test_the_error_is_the_least_of_linear_filters_also_in_coloured_noise():
    """sum S N / (S + N), with the spectra of the model; the spectrum of y alone knows no more than the mean of N."""
    opened = Fields(count=1).open()
    images, shape = opened.read(0)[None].astype(float), opened.shape
    S, N = signal_at(radius(shape)), noise_at(radius(shape))
    scale = Scale(torch.zeros(1).double(), torch.ones(1).double())
    problem = problem_of(images, float(np.sqrt(N.mean())), scale)
    least = np.mean(S * N / (S + N))
    own, given = (float((solve(solver, problem)[0, 0] - torch.from_numpy(opened.clean(0))).square().mean())
                  for solver in (Wiener(), Wiener(spectrum=CrossSpectrum(Fields(hidden=1), images="1:4"))))  # fmt: skip
    assert given == pytest.approx(least, rel=0.06)
    assert given < 0.9 * own


def test_exact_images_stay_as_they_are():
    images = Fields(count=1).open().read(0)[None].astype(float)
    scale = Scale(torch.zeros(1).double(), torch.ones(1).double())
    found = solve(Wiener(spectrum=CrossSpectrum(Fields())), problem_of(images, 0.0, scale))
    np.testing.assert_allclose(found[0, 0].numpy(), images[0], atol=1e-9)


def test_it_states_the_halves_that_it_was_measured_on():
    prior = CrossSpectrum(Small())
    pairs = Small().open().pairs
    assert isinstance(pairs, Pairs)
    halves = [origin["half"] for origin in prior.trained_on()]
    assert halves == [digest for index in range(2) for digest in pairs.digests(index)]
    digests = {each.weights_digest() for each in (prior, CrossSpectrum(Small(), "0"), CrossSpectrum(Small(2.0)))}
    assert len(digests) == 3
    simulated = "cross_spectrum:simulate_movies:3mht,pairs.size=32,pairs.frames=2,pairs.count=1"
    origins = installed().make("priors", simulated).trained_on()
    assert origins[0] == {"structure": "3mht"}
    assert len(origins) == 3


def test_what_it_cannot_use_is_one_line(blobs):
    make = installed().make
    with pytest.raises(ParameterError, match="leave out snr=3 or spectrum"):
        Wiener(3.0, CrossSpectrum(Fields()))
    with pytest.raises(SpecError, match="expects a CrossSpectrum"):
        make("solvers", "wiener:spectrum=tv")
    with pytest.raises(DataError, match="no second half of each image"):
        make("priors", f"cross_spectrum:file:{blobs}").check((32, 32))
    with pytest.raises(SelectionError, match="selects image 4, but halves has 4 images"):
        CrossSpectrum(Fields(), images="2:5").check((32, 32))
    with pytest.raises(DataError, match="no independent noise"):
        CrossSpectrum(Small(0.0)).load()
    scale = Scale(torch.zeros(1).double(), torch.ones(1).double())
    sampled = problem_of(np.ones((1, 32, 32)), 1.0, scale, Fourier(0.5))
    assert "needs the operator identity" in str(Wiener(spectrum=CrossSpectrum(Fields())).unsupported(sampled))
