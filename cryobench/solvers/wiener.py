"""`wiener`: the linear minimum mean squared error estimate for operators that are diagonal in the Fourier basis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver, mean_intensity
from cryobench.errors import ParameterError
from cryobench.numerics.fft import rfftn, whole_spectrum
from cryobench.numerics.linalg import per_item
from cryobench.numerics.shells import shell_sums, shells
from cryobench.operators.noise import noise_power
from cryobench.operators.spectral import multiply_spectrum
from cryobench.priors.cross_spectrum import CrossSpectrum, Spectra
from cryobench.rng import Rng
from cryobench.spec import Component, Range


@dataclass(frozen=True)
class Wiener(Solver):
    """The Wiener filter, for operators that are diagonal in Fourier: `ctf`, `fourier`, `identity`.

        x = c + F^-1 [w S / (w^2 S + N)] F (y - c A 1),    A = F^-1 w F

    c: the mean intensity estimated from y. N: the power of the noise in a coefficient. S: the power of the image,
    estimated from y: in a shell of frequencies one pixel wide, mean(|F(y - c A 1)|^2 - N) / mean(w^2), at least 0.
    If y is exact the result is `pinv`. A given `snr` is S/N at all frequencies, also if y is exact. (Wiener 1949,
    Extrapolation, Interpolation and Smoothing of Stationary Time Series, ch. 3.)

    With `spectrum`, on `identity`, S is that of other micrographs in two halves, in the units of their files, and N has
    the shape of the spectrum of their noise and the mean sigma^2.
    """

    dims = (2, 3)

    snr: Annotated[
        float | Literal["auto"],
        Range(0.01, 1000, log=True, also=("auto",)),
        "S/N at all frequencies; auto: estimated from y in shells",
    ] = "auto"
    spectrum: Annotated[
        CrossSpectrum | None,
        Component("priors", folder="cross_spectrum"),
        "S and the shape of N from other micrographs in two halves, such as spectrum=./FOLDER; none: from y",
    ] = None

    def __post_init__(self) -> None:
        if self.spectrum is not None and self.snr != "auto":
            raise ParameterError(f"wiener: snr and spectrum both state S/N; leave out snr={self.snr:g} or spectrum")
        if self.snr != "auto" and not 0 < self.snr < math.inf:
            raise ParameterError(f"wiener: snr must be positive or auto, got {self.snr:g}")

    def unsupported(self, problem: Problem) -> str | None:
        if problem.operator.transfer is None:
            return "wiener needs an operator that is diagonal in Fourier, as ctf and fourier are"
        if self.spectrum is not None and not problem.operator.identity:
            return "wiener with a given spectrum removes noise from images; it needs the operator identity"
        return None

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        operator, y = problem.operator, problem.y
        w = operator.transfer
        if w is None:
            raise ParameterError(f"{self.unsupported(problem)}; got {type(operator).__name__}")
        c = mean_intensity(operator, y)
        structure = y - c * operator.mean_response
        noise = noise_power(problem)
        if self.spectrum is not None:
            ratio = given_ratio(self.spectrum.load(), noise, problem)
        else:
            ratio = 1 / self.snr if self.snr != "auto" else noise / signal_power(structure, w, noise, problem)
        x = multiply_spectrum(w / (w**2 + ratio), structure)
        if self.snr == "auto":
            x = torch.where(noise > 0, x, operator.A_dagger(structure))
        return Reconstruction(c + x)


def given_ratio(spectra: Spectra, noise: torch.Tensor, problem: Problem) -> torch.Tensor:
    """N/S of each coefficient [B, 1, *S], float64 in the layout of `rfftn`, infinite where there is no signal.

    S is on the scale of x: that of the files divided by the square of `Scale.factor`. The mean of N over all
    coefficients is `noise`.
    """
    shape = problem.operator.image_shape
    signal, shape_of_noise = spectra.at(shape, problem.y.device)
    mean = whole_spectrum(shape_of_noise, shape).mean()
    factor = per_item(problem.scale.factor.to(problem.y.device), problem.y)
    ratio = noise * (shape_of_noise / mean) / (signal / factor**2)
    return torch.where(signal > 0, ratio, math.inf)


def signal_power(y: torch.Tensor, w: torch.Tensor, noise: torch.Tensor, problem: Problem) -> torch.Tensor:
    """S, the mean square of a coefficient of the image, by shells of y [B, 1, *S]: float64 in the layout of `rfftn`."""
    shape = y.shape[2:]
    power = rfftn(y, len(shape), norm="ortho").abs().double().square()
    noisy = (w != 0).double() if problem.operator.noise_in_range else torch.ones_like(w)
    shell = shells(shape, y.device)
    excess, passed = shell_sums(power - noise * noisy, shell, shape), shell_sums(w**2, shell, shape)
    signal = torch.where(passed > 0, excess.clamp_min(0) / passed, 0.0)
    return signal[:, shell].unsqueeze(1)
