"""Recorded runs of the public CryoSENSE reference: measurements, data-consistency gradients, results."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cryobench.core import Problem
from cryobench.numerics.linalg import norm
from cryobench.operators.fourier import FourierOperator
from cryobench.operators.noise import NoNoise
from cryobench.operators.sumpool import SumPoolOperator
from cryobench.priors.diffusion import Diffusion
from cryobench.solvers.cryosense import CryoSense
from cryobench.solvers.reverse import levels

CASES = ["sumpool4_m6_random_binary", "sumpool8_m20_random_gaussian", "fourier_m1_random"]


def measured(recorded, parameters, case):
    """The operator and the measurements of a recorded run."""
    masks, y = (torch.from_numpy(recorded[f"{case}/{name}"]) for name in ("masks", "y"))
    if parameters["mask"].endswith("fourier"):
        operator = FourierOperator(masks[0], nominal_compression=2.0, dtype=torch.float32, device="cpu")
    else:
        operator = SumPoolOperator(masks, parameters["block"], dtype=torch.float32, device="cpu")
    return operator, y.squeeze(2)


@pytest.mark.parametrize("case", CASES)
def test_measurements_and_unit_gradient_agree_with_the_reference(shared, case):
    recorded = np.load(shared / "golden" / "cryosense_reference.npz")
    parameters = json.loads((shared / "golden" / "cryosense_reference.json").read_text())[case]
    operator, y = measured(recorded, parameters, case)
    truth, probe, expected = (
        torch.from_numpy(recorded[name]) for name in ("truth", f"{case}/x_probe", f"{case}/unit_gradient_at_x_probe")
    )
    assert (operator.A(truth) - y).abs().max() < 1e-5 * y.abs().max()
    gradient = operator.A_adjoint_A(probe) - operator.A_adjoint(y)
    assert (gradient / norm(gradient) - expected).abs().max() < 1e-5
    assert (gradient / norm(gradient) - expected).norm() < 1e-5


class Recorded:
    """The draws of a recorded run, in place of `cryobench.solvers.reverse.Draws`."""

    def __init__(self, x_T: torch.Tensor, noise: torch.Tensor):
        self._x_T, self._noise = x_T, iter(noise)

    def x_T(self) -> torch.Tensor:
        return self._x_T.clone()

    def noise(self) -> torch.Tensor:
        return next(self._noise)


@pytest.mark.parametrize("case", CASES)
def test_cryosense_replays_the_reference(shared, case):
    recorded = np.load(shared / "golden" / "cryosense_reference.npz")
    parameters = json.loads((shared / "golden" / "cryosense_reference.json").read_text())[case]
    operator, y = measured(recorded, parameters, case)
    prior = Diffusion(str(shared / "golden" / "tiny_unet"), schedule="linear:1000", predicts="epsilon")
    solver = CryoSense(
        prior=prior, steps=parameters["steps"], zeta=parameters["zeta_scale"], zeta_min=parameters["zeta_min"],
        beta=parameters["beta"], beta_min=parameters["beta_min"],
    )  # fmt: skip
    problem = Problem(operator, y, NoNoise(), torch.zeros(1, 1, 1, 1))
    assert [t for _, t, _ in levels(prior.load(), solver.steps)] == parameters["timesteps"]
    draws = Recorded(torch.from_numpy(recorded[f"{case}/x_T"]), torch.from_numpy(recorded[f"{case}/step_noise"]))
    x = solver.sample(problem, prior.load(), draws, lambda done, total: None)  # type: ignore[arg-type]
    assert (x - torch.from_numpy(recorded[f"{case}/x_0"])).abs().max() < 1e-5
