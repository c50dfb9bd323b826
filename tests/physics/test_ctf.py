"""The CTF against the textbook formula, against torch-ctf, and at its zeros."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pandas as pd
import pytest
import torch

from cryobench.errors import DataError
from cryobench.physics.ctf import CtfParameters, transfer, wavelength


def parameters(**values: float | list[float]) -> CtfParameters:
    base = {"defocus_u": 15000.0, "defocus_v": 14000.0, "angle": 25.0, "voltage": 300.0, "cs": 2.7,
            "amplitude_contrast": 0.07, "phase_shift": 0.0, "b_factor": 0.0}  # fmt: skip
    return CtfParameters(**{k: torch.tensor(np.atleast_1d(v), dtype=torch.float64) for k, v in (base | values).items()})


def textbook(kx: float, ky: float, p: CtfParameters) -> float:
    """-Im of the aberrated wave, as in the textbooks: w the amplitude part, sqrt(1 - w^2) the phase part."""
    u, v, a, kv, cs, w, shift, b = (float(getattr(p, name)[0]) for name in vars(p))
    wave = 12.264259661 / math.sqrt(kv * 1e3 + 0.978475e-6 * (kv * 1e3) ** 2)
    k, angle = math.hypot(kx, ky), math.atan2(ky, kx)
    defocus = (u + v) / 2 + (u - v) / 2 * math.cos(2 * (angle - math.radians(a)))
    gamma = cmath.exp(1j * (math.pi * wave * defocus * k**2 - math.pi / 2 * cs * 1e7 * wave**3 * k**4
                            + math.radians(shift)))  # fmt: skip
    return (math.sqrt(1 - w**2) * gamma.imag + w * gamma.real) * math.exp(-b * k**2 / 4)


@pytest.mark.parametrize("values", [{}, {"phase_shift": 70.0, "cs": 2.0}, {"b_factor": 80.0, "voltage": 200.0}])
@pytest.mark.parametrize("shape", [(24, 32), (33, 21)])
def test_the_ctf_is_the_textbook_formula(values, shape):
    p, pixel = parameters(**values), 1.7
    found = transfer(p, shape, pixel)[0, 0]
    for i, ky in enumerate(np.fft.fftfreq(shape[0], pixel)):
        for j, kx in enumerate(np.fft.rfftfreq(shape[1], pixel)):
            assert float(found[i, j]) == pytest.approx(textbook(kx, ky, p), abs=1e-5)


def test_the_ctf_agrees_with_torch_ctf():
    from torch_ctf import calculate_ctf_2d

    p = parameters(defocus_u=[15000.0, 22000.0], defocus_v=[14000.0, 21500.0], angle=[25.0, -70.0], b_factor=[0.0] * 2,
                   voltage=[300.0, 200.0], cs=[2.7, 2.0], amplitude_contrast=[0.07, 0.1],
                   phase_shift=[0.0, 30.0])  # fmt: skip
    theirs = calculate_ctf_2d(
        defocus=(p.defocus_u + p.defocus_v) / 2 * 1e-4,
        astigmatism=(p.defocus_u - p.defocus_v) / 2 * 1e-4,
        astigmatism_angle=p.angle,
        voltage=p.voltage,
        spherical_aberration=p.cs,
        amplitude_contrast=p.amplitude_contrast,
        phase_shift=p.phase_shift,
        pixel_size=1.5,
        image_shape=(64, 64),
        rfft=True,
        fftshift=False,
    )
    assert (
        transfer(p, (64, 64), 1.5)[:, 0] - theirs
    ).abs().max() < 3e-4  # it computes in float32, and gives NaN where V > U


def test_zeros_are_where_the_phase_is_a_multiple_of_pi():
    """Without spherical aberration and amplitude contrast: at k = sqrt(n / (lambda defocus))."""
    p = parameters(defocus_u=20000.0, defocus_v=20000.0, cs=0.0, amplitude_contrast=0.0)
    wave = float(wavelength(p.voltage)[0])
    for n in range(1, 6):
        k = math.sqrt(n / (wave * 20000))
        pixel = 1 / (8 * k)  # column 2 of 16 is the frequency k
        row = transfer(p, (16, 16), pixel)[0, 0, 0]
        assert abs(float(row[2])) < 1e-9
        assert n == 4 or abs(float(row[1])) > 1e-3


def test_underfocus_is_positive_at_low_frequency_and_starts_at_the_amplitude_contrast():
    half = transfer(parameters(), (128, 128), 3.0)[0, 0]
    assert float(half[0, 0]) == pytest.approx(0.07)
    assert (half[0, :12] > 0).all()


def test_the_axis_of_the_greater_defocus():
    """At 0 degrees defocus_u acts along x, at 90 along y."""
    along_x = transfer(parameters(angle=0.0), (64, 64), 2.0)[0, 0, 0, :32]
    along_y = transfer(parameters(angle=90.0), (64, 64), 2.0)[0, 0, :32, 0]
    round_u = transfer(parameters(defocus_v=15000.0), (64, 64), 2.0)[0, 0, 0, :32]
    torch.testing.assert_close(along_x, round_u)
    torch.testing.assert_close(along_y, round_u)


def test_wavelength():
    published = {100: 0.03701, 200: 0.02508, 300: 0.01969}  # Å, Williams & Carter, table 1.2 (in pm: 3.70 2.51 1.97)
    for voltage, wave in published.items():
        assert float(wavelength(torch.tensor(float(voltage)))) == pytest.approx(wave, abs=1e-5)


def test_images_keep_their_own_parameters_and_pixel_sizes():
    both = parameters(defocus_u=[15000.0, 9000.0], defocus_v=[14000.0, 8000.0], angle=[0.0] * 2, voltage=[300.0] * 2,
                      cs=[2.7] * 2, amplitude_contrast=[0.1] * 2,
                      phase_shift=[0.0] * 2, b_factor=[0.0] * 2)  # fmt: skip
    all_ = transfer(both, (16, 16), [1.0, 2.0])
    for i, pixel in enumerate((1.0, 2.0)):
        assert torch.equal(transfer(both.select(slice(i, i + 1)), (16, 16), pixel), all_[i : i + 1])


def test_tables_round_trip_and_missing_columns_are_named():
    table = parameters(phase_shift=3.0).to_table()
    again = CtfParameters.from_table(table)
    assert again.to_table().equals(table)
    silent = CtfParameters.from_table(table.drop(columns=["rlnPhaseShift", "rlnCtfBfactor"]))
    assert float(silent.phase_shift) == 0
    with pytest.raises(DataError, match=r"lacks rlnDefocusV, rlnVoltage; the CTF needs rlnDefocusU, .*Contrast"):
        CtfParameters.from_table(table.drop(columns=["rlnDefocusV", "rlnVoltage"]))
    with pytest.raises(DataError, match="row 1 has rlnVoltage 0"):
        CtfParameters.from_table(table.assign(rlnVoltage=0))
    with pytest.raises(DataError, match="row 1 has rlnDefocusU off"):
        CtfParameters.from_table(pd.DataFrame(table.assign(rlnDefocusU="off")))
