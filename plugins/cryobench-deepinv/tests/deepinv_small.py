"""Small operators and problems, and an exact denoiser of a known distribution."""

from __future__ import annotations

import deepinv as dinv
import torch

import cryobench as cb
from cryobench.core import MINMAX, LinearOperator, Problem
from cryobench.core.meters import CountingOperator
from cryobench.registry import installed
from cryobench.rng import Rng

SIZE = 16


class Wiener(dinv.models.Denoiser):
    """The posterior mean of N(0.5, C), C diagonal in Fourier with power falling as (1 + (k/2)^2)^-2, on [0, 1]."""

    def __init__(self, deviation: float = 0.15):
        super().__init__()
        k = torch.fft.fftfreq(SIZE, dtype=torch.float64) * SIZE
        power = (1 + (k[:, None] ** 2 + k[None, :] ** 2) / 4) ** -2
        self.power = deviation**2 * power / power.mean()

    def forward(self, x: torch.Tensor, sigma: float | torch.Tensor, **_: object) -> torch.Tensor:
        variance = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1, 1) ** 2
        gain = self.power / (self.power + variance)
        return 0.5 + torch.fft.ifft2(gain * torch.fft.fft2(x.double() - 0.5)).real.to(x.dtype)

    def draw(self, n: int, seed: int = 0) -> torch.Tensor:
        """n images [n, 1, H, W] in about [-1, 1], float64."""
        draws = torch.Generator().manual_seed(seed)
        white = torch.randn((n, 1, SIZE, SIZE), generator=draws, dtype=torch.float64)
        return 2 * torch.fft.ifft2(self.power.sqrt() * torch.fft.fft2(white)).real


def operator(spec: str, dtype: str = "float64", images: int = 1) -> LinearOperator:
    """The live operator of a spec for images of 16 x 16 pixels of 4 A; with a ctf, each image with its own defocus."""
    import pandas as pd

    table = pd.DataFrame({
        "rlnDefocusU": [12000.0 + 3000 * i for i in range(images)], "rlnDefocusV": 11500.0, "rlnDefocusAngle": 20.0,
        "rlnVoltage": 300.0, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1,
    }) if "ctf" in spec else None  # fmt: skip
    return cb.operator(spec, shape=(SIZE, SIZE), dtype=dtype, pixel_size=4.0, table=table)


def problem(A: LinearOperator, x: torch.Tensor, noise: str = "none") -> Problem:
    """The measurements of x [B, 1, H, W] by A."""
    model = installed().make("noises", noise)
    noisy = model.apply(A.A(x.to(A.dtype)), A, MINMAX, rng(len(x)))
    return Problem(CountingOperator(A), noisy.y, model, noisy.sigma)


def part(whole: Problem, i: int) -> Problem:
    one = slice(i, i + 1)
    return Problem(whole.operator.select(one), whole.y[one], whole.noise, whole.sigma[one])


def rng(n: int, first: int = 0) -> Rng:
    return Rng(0, [str(first + i) for i in range(n)])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(A: LinearOperator) -> torch.Tensor:
    """The matrix of an operator, [M h w, H W]."""
    N = A.image_shape[0] * A.image_shape[1]
    return A.A(torch.eye(N, dtype=A.dtype).reshape(N, 1, *A.image_shape)).flatten(1).mT
