"""Metadata of images with different defocus."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from cryobench.core import MINMAX, Imaging, LinearOperator, NoiseModel, OperatorRecipe, Problem, build_operator
from cryobench.operators.noise import NoNoise
from cryobench.rng import Rng

CPU = torch.device("cpu")


def ctf_table(n: int, seed: int = 0) -> pd.DataFrame:
    """One row per image, in RELION's columns: 0.8 to 2.2 µm, astigmatic, 300 kV."""
    rng = np.random.default_rng(seed)
    mean, difference = rng.uniform(8000, 22000, n), rng.uniform(0, 900, n)
    return pd.DataFrame(
        {
            "rlnDefocusU": mean + difference / 2,
            "rlnDefocusV": mean - difference / 2,
            "rlnDefocusAngle": rng.uniform(0, 180, n),
            "rlnVoltage": 300.0,
            "rlnSphericalAberration": 2.7,
            "rlnAmplitudeContrast": 0.1,
        }
    )


def taken(n: int, shape: tuple[int, int], *, pixel_size: float = 2.0, seed: int = 0) -> Imaging:
    return Imaging(shape, (pixel_size,) * n, ctf_table(n, seed))


def rows(imaging: Imaging, images: list[int]) -> Imaging:
    """Some of the images."""
    table = imaging.table.iloc[images].reset_index(drop=True)
    return Imaging(imaging.shape, tuple(imaging.pixel_size[i] for i in images), table)


def live(recipe: OperatorRecipe, imaging: Imaging, dtype: torch.dtype = torch.float64) -> LinearOperator:
    return build_operator(recipe, imaging, seed=3, dtype=dtype, device=CPU)


def measure(operator: LinearOperator, x: torch.Tensor, noise: NoiseModel | None = None) -> Problem:
    noise = noise or NoNoise()
    noisy = noise.apply(operator.A(x), operator, MINMAX, Rng(0, [str(i) for i in range(len(x))]))
    return Problem(operator, noisy.y, noise, noisy.sigma)


def part(problem: Problem, images: slice) -> Problem:
    return Problem(problem.operator.select(images), problem.y[images], problem.noise, problem.sigma[images])


def dense(operator: LinearOperator) -> np.ndarray:
    """The matrix of an operator that is the same for all images, [m, N], or that of each image, [B, m, N]."""
    N = operator.image_shape[0] * operator.image_shape[1]
    basis = torch.eye(N, dtype=operator.dtype).reshape(N, 1, *operator.image_shape)
    if operator.images is None:
        return operator.A(basis).reshape(N, -1).T.numpy()
    columns = [operator.A(unit.repeat(operator.images, 1, 1, 1)).flatten(1) for unit in basis]
    return torch.stack(columns, dim=2).numpy()
