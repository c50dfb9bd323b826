"""Recorded runs of the public CryoSENSE reference: measurements and data-consistency gradients."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cryobench.linalg import norm
from cryobench.operators.fourier import FourierOperator
from cryobench.operators.sumpool import SumPoolOperator

CASES = ["sumpool4_m6_random_binary", "sumpool8_m20_random_gaussian", "fourier_m1_random"]


@pytest.mark.parametrize("case", CASES)
def test_measurements_and_unit_gradient_agree_with_the_reference(shared, case):
    recorded = np.load(shared / "golden" / "cryosense_reference.npz")
    parameters = json.loads((shared / "golden" / "cryosense_reference.json").read_text())[case]
    masks, truth, y, probe, wanted = (
        torch.from_numpy(recorded[name])
        for name in (
            f"{case}/masks",
            "truth",
            f"{case}/y",
            f"{case}/x_probe",
            f"{case}/unit_gradient_at_x_probe",
        )
    )
    if parameters["mask"].endswith("fourier"):
        operator = FourierOperator(masks[0], nominal_compression=2.0, dtype=torch.float32, device="cpu")
    else:
        operator = SumPoolOperator(masks, parameters["block"], dtype=torch.float32, device="cpu")
    y = y.squeeze(2)
    assert (operator.A(truth) - y).abs().max() < 1e-5 * y.abs().max()
    gradient = operator.A_adjoint_A(probe) - operator.A_adjoint(y)
    assert (gradient / norm(gradient) - wanted).abs().max() < 1e-5
    assert (gradient / norm(gradient) - wanted).norm() < 1e-5
