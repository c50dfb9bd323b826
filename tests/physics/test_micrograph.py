"""The projected potential in water against closed formulas and against Fourier slices; the roughness of the ice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryobench.numerics.fft import irfftn
from cryobench.physics import micrograph
from cryobench.physics.potential import Atoms, gaussians, potential
from cryobench.physics.projection import Projector, matrices, shift_phase
from cryobench.sources.structures import read_structure

IDENTITY = torch.eye(3)[None].double()


def test_constants():
    """The interaction constants in use at 300 and 200 kV (Kirkland 2010), and the numbers in the docstrings."""
    assert micrograph.interaction_constant(300.0) == pytest.approx(6.526e-4, rel=1e-4)
    assert micrograph.interaction_constant(200.0) == pytest.approx(7.288e-4, rel=1e-4)
    # 0.93 g/cm^3 of H2O, 18.015 g/mol
    hydrogen, oxygen = (gaussians(number)[0].sum() for number in (1, 8))
    assert 47.878 * (2 * hydrogen + oxygen) * 0.93 * 0.602214 / 18.015 == pytest.approx(micrograph.ICE_VOLTS, abs=0.005)
    # why hydrogens are omitted
    assert 47.878 * hydrogen == pytest.approx(25.3, abs=0.05)
    assert micrograph.ICE_VOLTS * micrograph.DISPLACED[1] == pytest.approx(23.3, abs=0.05)


@pytest.mark.parametrize("number", [6, 15, 30])
def test_the_potential_of_one_atom(number):
    """V(r) = sum_i a_i 4 pi / (b_i + B) exp(-4 pi^2 r^2 / (b_i + B)), the Fourier transform by hand."""
    pixel, shape, at, B = 0.5, (96, 64), (11.3, 30.2), 40.0
    atoms = Atoms("one", np.zeros((1, 3)), np.array([number]))
    made = irfftn(micrograph.projected_potential(atoms, IDENTITY, torch.tensor([at]), shape, pixel, B), shape).numpy()
    y, x = np.mgrid[: shape[0], : shape[1]] * pixel
    r2 = (x - at[0]) ** 2 + (y - at[1]) ** 2
    table_a, table_b = gaussians(number)
    volume = {6: 16.44, 15: 5.73, 30: 10.0}[number]
    water = 4.53 * volume, 4 * np.pi * volume ** (2 / 3)
    wanted = sum(
        sign * a * 4 * np.pi / (b + B) * np.exp(-4 * np.pi**2 * r2 / (b + B))
        for sign, a, b in [*((1, 47.878 * a, b) for a, b in zip(table_a, table_b, strict=True)), (-1, *water)]
    )
    np.testing.assert_allclose(made, wanted, atol=2e-3 * wanted.max())


def test_copies_are_projections_of_the_volume(monkeypatch):
    """Against Fourier slices of the potential on a grid, which have an error of 1.6%, without water."""
    monkeypatch.setattr(micrograph, "ICE_VOLTS", 0.0)
    atoms, n, pixel = read_structure("3mht"), 64, 2.4
    rotations = matrices(*torch.tensor([[10.0, 100.0], [40.0, 80.0], [-70.0, 20.0]]))
    at = torch.tensor([[20.3, 40.6], [45.0, 22.1]])
    slices = Projector(torch.from_numpy(potential(atoms, n, pixel, 50.0))).slices(rotations.float()) * pixel
    wanted = irfftn((slices * shift_phase(n, at.double())).sum(dim=0), (n, n)).numpy()
    made = irfftn(micrograph.projected_potential(atoms, rotations, pixel * at, (n, n), pixel, 50.0), (n, n)).numpy()
    assert np.sqrt(((made - wanted) ** 2).mean()) < 0.02 * np.sqrt((wanted**2).mean())


def test_water_lowers_the_mean_by_its_volume():
    """The integral of the potential is the sum over atoms of 47.878 f(0) - 4.53 v; about 3 V inside a protein."""
    atoms, pixel, shape = read_structure("3mht"), 2.4, (48, 48)
    made = micrograph.projected_potential(atoms, IDENTITY, torch.tensor([[50.0, 50.0]]), shape, pixel, 50.0)
    volumes = [micrograph.DISPLACED[int(number)] for number in atoms.numbers]
    full = sum(47.878 * gaussians(int(number))[0].sum() for number in atoms.numbers)
    total = float(made[0, 0].real) * pixel**2
    assert total == pytest.approx(full - 4.53 * sum(volumes), rel=1e-3)
    # with the volume of the hydrogens that the file lacks, about 5.15 Å^3 for each of the other atoms
    assert total / (sum(volumes) + 5.15 * len(volumes)) == pytest.approx(3, abs=0.6)


def test_the_roughness_of_the_ice():
    """Its standard deviation is 4.53 V times that of the thickness; its power falls to 1/e at the frequency."""
    shape, pixel = (200, 240), 2.0
    amplitude = micrograph.ice_amplitude(shape, pixel, 3.0, 0.05)
    white = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = irfftn(torch.fft.rfft2(white) * amplitude, shape)
    assert float(made.std()) == pytest.approx(4.53 * 3.0, rel=0.04)
    assert abs(float(made.mean())) < 1e-4
    row = round(0.05 * shape[0] * pixel)
    assert float(amplitude[row, 0] ** 2 / amplitude[1, 0] ** 2) == pytest.approx(np.exp(-1 + (1 / row) ** 2), rel=1e-4)
