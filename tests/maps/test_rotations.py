"""Grids on SO(3): their directions against the tables of HEALPix, how they cover, and refinement."""

from __future__ import annotations

import math

import pytest
import torch

from cryobench.errors import ParameterError
from cryobench.maps.rotations import (
    angle_between,
    children,
    directions,
    grid,
    of_vectors,
    random_rotations,
    spacing,
)


def rings(order: int) -> set[tuple[float, float]]:
    """rot and cos tilt of all pixels, ring by ring, from the formulas of Gorski et al. (2005), section 5."""
    side = 2**order
    found = []
    for ring in range(1, 4 * side):
        cap = min(ring, 4 * side - ring)
        if cap < side:
            z = 1 - cap**2 / (3 * side**2)
            found += [(math.pi / (2 * cap) * (j - 0.5), z if ring < side else -z) for j in range(1, 4 * cap + 1)]
        else:
            s = (ring - side + 1) % 2
            z = 4 / 3 - 2 * ring / (3 * side)
            found += [(math.pi / (2 * side) * (j - s / 2), z) for j in range(1, 4 * side + 1)]
    return {(round(math.degrees(rot) % 360, 6) % 360, round(z, 9) + 0.0) for rot, z in found}


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_directions_are_the_pixels_of_healpix(order):
    rot, tilt = directions(order)
    pairs = zip(rot.tolist(), tilt.tolist(), strict=True)
    own = {(round(a, 6) % 360, round(math.cos(math.radians(b)), 9) + 0.0) for a, b in pairs}
    assert own == rings(order)
    assert len(own) == len(rot) == 12 * 4**order


def test_pixels_of_one_pixel_are_next_to_it():
    """In the nested scheme pixels 4 p to 4 p + 3 are within pixel p, of half diagonal below 60 degrees / 2^order."""
    for order in (0, 1):
        rot, tilt = (torch.deg2rad(angle) for angle in directions(order))
        coarse = torch.stack([tilt.sin() * rot.cos(), tilt.sin() * rot.sin(), tilt.cos()], dim=1)
        rot, tilt = (torch.deg2rad(angle) for angle in directions(order + 1))
        fine = torch.stack([tilt.sin() * rot.cos(), tilt.sin() * rot.sin(), tilt.cos()], dim=1)
        apart = (fine.unflatten(0, (-1, 4)) * coarse[:, None]).sum(dim=2).arccos().rad2deg()
        assert apart.max() < 60 / 2**order


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_grid_covers_all_rotations(order):
    rotations = grid(order)
    assert len(rotations) == 72 * 8**order
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3, dtype=torch.float64), atol=1e-12)
    anywhere = random_rotations(300, torch.Generator().manual_seed(order))
    nearest = angle_between(anywhere[:, None], rotations).amin(dim=1)
    assert nearest.max() < 0.85 * spacing(order)
    assert nearest.mean() < 0.5 * spacing(order)


def test_children_surround_a_rotation_and_are_half_as_far_apart():
    rotation = random_rotations(5, torch.Generator().manual_seed(0))
    eight = children(rotation, 8.0)
    assert eight.shape == (5, 8, 3, 3)
    assert torch.allclose(angle_between(eight, rotation[:, None]), torch.tensor(2 * 3**0.5).double(), atol=1e-9)
    between = angle_between(eight[:, :, None], eight[:, None]) + 99 * torch.eye(8)
    assert torch.allclose(between.amin(dim=2), torch.tensor(4.0).double(), atol=0.02)


def test_angles_between_rotations_are_exact_for_small_ones():
    for degrees in (1e-5, 0.1, 30.0, 179.9):
        turned = of_vectors(torch.tensor([0.0, 0.0, math.radians(degrees)], dtype=torch.float64))
        assert float(angle_between(turned, torch.eye(3))) == pytest.approx(degrees, rel=1e-6)


def test_random_rotations_are_uniform():
    """The mean of A and of A_ij^2 over SO(3) are 0 and 1/3."""
    many = random_rotations(4000, torch.Generator().manual_seed(1))
    assert many.mean(dim=0).abs().max() < 0.04
    assert (many.square().mean(dim=0) - 1 / 3).abs().max() < 0.03


@pytest.mark.parametrize("order", [-1, 7])
def test_orders_without_a_grid_are_refused(order):
    with pytest.raises(ParameterError, match=f"order 0 to 6, got {order}"):
        grid(order)
