"""Point groups: orders and axes of RELION, and sums over equivalent poses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryobench.errors import ParameterError
from cryobench.maps.half_maps import HalfMaps, halves_of
from cryobench.maps.inversion import wiener
from cryobench.maps.symmetry import rotations
from cryobench.operators.project import ProjectionOperator
from cryobench.physics.poses import Poses

RELION = {
    "C1": [],
    "C5": [(5, (0, 0, 1))],
    "d2": [(2, (0, 0, 1)), (2, (1, 0, 0))],
    "D7": [(7, (0, 0, 1)), (2, (1, 0, 0))],
    "T": [(3, (0, 0, 1)), (2, (0, 0.816496, 0.577350))],
    "O": [(3, (0.5773502, 0.5773502, 0.5773502)), (4, (0, 0, 1))],
    "I": [(2, (0, 0, 1)), (5, (0.525731114, 0, 0.850650807)), (3, (0, 0.356822076, 0.934172364))],
    "I1": [(2, (1, 0, 0)), (5, (0.85065080702670, 0, -0.5257311142635)), (3, (0.9341723640, 0.3568220765, 0))],
    "I3": [(2, (-0.5257311143, 0, 0.8506508070)), (5, (0, 0, 1)),
           (3, (-0.4911234778630044, 0.3568220764705179, 0.7946544753759428))],
    "I4": [(2, (0.5257311143, 0, 0.8506508070)), (5, (0.8944271932547096, 0, 0.4472135909903704)),
           (3, (0.4911234778630044, 0.3568220764705179, 0.7946544753759428))],
}  # fmt: skip
"""The axes in the source of RELION 4."""
ORDERS = {"C1": 1, "C5": 5, "d2": 4, "D7": 14, "T": 12, "O": 24} | dict.fromkeys(("I", "I1", "I3", "I4"), 60)


@pytest.mark.parametrize("name", RELION)
def test_groups_have_the_axes_of_relion(name):
    group = rotations(name).numpy()
    assert len(group) == ORDERS[name]
    assert torch.equal(rotations(name)[0], torch.eye(3).double())
    np.testing.assert_allclose(group @ group.transpose(0, 2, 1), np.broadcast_to(np.eye(3), group.shape), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(group), 1)
    for n, axis in RELION[name]:
        turn = Rotation.from_rotvec(2 * np.pi / n * np.array(axis) / np.linalg.norm(axis)).as_matrix()
        assert np.abs(group - turn).max(axis=(1, 2)).min() < 1e-5
    products = (group[:, None] @ group).reshape(-1, 1, 9)
    assert np.abs(products - group.reshape(1, -1, 9)).max(axis=2).min(axis=1).max() < 1e-9


@pytest.mark.parametrize("name", ["", "C0", "C61", "D", "E2", "I5", "C2v", "7"])
def test_unknown_groups_are_one_line(name):
    with pytest.raises(ParameterError, match=r"give C1 to C60, D1 to D60, T, O, or I") as caught:
        rotations(name)
    assert "\n" not in str(caught.value)


def test_few_views_of_a_symmetric_specimen_are_as_good_as_many():
    """Four balls with the symmetry D2 about z and x, seen from eight sides; the map has their symmetry."""
    D, group = 24, rotations("D2")
    grid = torch.arange(D, dtype=torch.float64) - D // 2
    z, y, x = torch.meshgrid(grid, grid, grid, indexing="ij")
    centres = group @ torch.tensor([3.0, 2.0, 4.0]).double()
    volume = sum(torch.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 4) for a, b, c in centres.tolist())
    poses = Poses.uniform(8, 0)
    images = ProjectionOperator(D, poses.matrices, poses.shift, dtype=torch.float32, device="cpu").A(
        volume.float()[None, None]
    )[0]
    errors = {}
    for name in ("C1", "D2"):
        maps = HalfMaps(D, 1.0, symmetry=rotations(name))
        maps.add(images, poses, None, halves_of(None, 8))
        found = wiener(maps.sums, maps.kernels).full.double()
        errors[name] = float((found - volume).norm() / volume.norm())
    assert errors["D2"] < errors["C1"] / 2
    assert errors["D2"] < 0.25
    other = volume.flip(2)  # a mirror image has another handedness: the test would see a wrong order of A and g
    assert float((other - volume).norm() / volume.norm()) > 0.5
