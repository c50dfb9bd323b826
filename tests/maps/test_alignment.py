"""Planted rotations, hands and shifts are found again, from poses and from maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from cryobench.errors import ParameterError
from cryobench.maps.alignment import Alignment, Frame, align_poses, align_volumes, super_fibonacci
from cryobench.maps.fsc import shell_correlation
from cryobench.operators.project import ProjectionOperator
from cryobench.physics.potential import Atoms, potential
from cryobench.sources.structures import read_structure

SIDE, PIXEL = 24, 5.0
D = np.diag([-1.0, -1.0, 1.0])


def rotations(count: int, seed: int) -> np.ndarray:
    return Rotation.random(count, random_state=seed).as_matrix()


def particle() -> tuple[torch.Tensor, Atoms]:
    """A map without symmetry and its atoms."""
    atoms = read_structure("3mht")
    atoms = Atoms(atoms.name, atoms.positions[::3], atoms.numbers[::3])
    return torch.from_numpy(potential(atoms, SIDE, PIXEL, 2000.0)), atoms


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("wrong", [0.0, 0.4, 0.6])
def test_a_planted_frame_is_found_from_poses_of_which_many_are_wrong(mirrored, wrong):
    n, rng = 300, np.random.default_rng(0)
    true, Q, t = rotations(n, 1), rotations(1, 2)[0], np.array([2.0, -1.0, 0.5])
    found = true @ Q
    if mirrored:
        found = D @ found
    true_shift = rng.normal(size=(n, 2)) * 4
    found_shift = true_shift + PIXEL * (true @ t)[:, :2]
    bad = rng.random(n) < wrong
    found[bad], found_shift[bad] = rotations(int(bad.sum()), 3), rng.normal(size=(int(bad.sum()), 2)) * 20
    result = align_poses(*map(torch.from_numpy, (found, true, found_shift, true_shift)), PIXEL)
    assert result.mirrored == mirrored
    np.testing.assert_allclose(result.rotation.numpy(), Q, atol=1e-6)
    np.testing.assert_allclose(result.shift.numpy(), t, atol=1e-9)
    assert result.angle_errors[~bad].max() < 1e-3
    assert result.shift_errors[~bad].max() < 1e-8
    if wrong:
        assert result.angle_errors[bad].median() > 90


def test_errors_of_poses_are_those_that_were_made():
    """Rotations off by 3 degrees about random axes, and shifts by 0.5 pixels in random directions."""
    n, rng = 500, np.random.default_rng(0)
    true = rotations(n, 1)
    axes = rng.normal(size=(n, 3))
    off = Rotation.from_rotvec(3 * axes / np.linalg.norm(axes, axis=1, keepdims=True), degrees=True).as_matrix()
    angle = rng.random(n) * 2 * np.pi
    shift = 0.5 * PIXEL * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    given = map(torch.from_numpy, (off @ true @ rotations(1, 2)[0], true, shift, 0 * shift))
    result = align_poses(*given, PIXEL)
    assert result.angle_errors.median() == pytest.approx(3, abs=0.1)
    assert result.shift_errors.median() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("mirrored", [False, True])
def test_an_aligned_map_has_the_images_of_the_true_one(mirrored):
    """The images of a map at the found poses are those of its aligned map at the true poses."""
    volume, _ = particle()
    true, Q, t = rotations(5, 1), rotations(1, 2)[0], np.array([1.5, -1.0, 0.5])
    found = D @ true @ Q if mirrored else true @ Q
    frame = Frame(torch.from_numpy(Q), mirrored, torch.from_numpy(t))

    def images(of: torch.Tensor, A: np.ndarray, shift: np.ndarray) -> np.ndarray:
        A, shift = torch.from_numpy(A), torch.from_numpy(shift.copy())
        operator = ProjectionOperator(SIDE, A, shift, dtype=torch.float64, device="cpu")
        return operator.A(of.double()[None, None])[0].numpy()

    own = images(volume, found, (true @ t)[:, :2])
    aligned = images(frame.apply(volume), true, np.zeros((5, 2)))
    np.testing.assert_allclose(aligned, own, atol=1e-2 * np.abs(own).max())
    several = frame.apply(torch.stack([volume, 2 * volume]))
    torch.testing.assert_close(several[1], 2 * several[0])


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_map_turns_as_its_atoms_do(mirrored):
    volume, atoms = particle()
    Q, t = rotations(1, 5)[0], np.array([1.0, 0.5, -2.0])
    moved = (-1 if mirrored else 1) * atoms.positions @ Q.T + PIXEL * t
    wanted = torch.from_numpy(potential(Atoms("", moved, atoms.numbers), SIDE, PIXEL, 2000.0)).double()
    turned = Frame(torch.from_numpy(Q), mirrored, torch.from_numpy(t)).apply(volume)
    assert (turned - wanted).norm() < 5e-3 * wanted.norm()


@pytest.mark.slow
@pytest.mark.parametrize("mirrored", [False, True])
def test_maps_are_aligned_without_poses(mirrored):
    """A turned, shifted and noisy map, back in the frame of the true one."""
    _, atoms = particle()
    volume = torch.from_numpy(potential(atoms, SIDE, PIXEL, 300.0))
    Q, t = rotations(1, 7)[0], np.array([2.0, 1.0, -1.0])
    moved = (-1 if mirrored else 1) * (atoms.positions - PIXEL * t) @ Q
    found = torch.from_numpy(potential(Atoms("", moved, atoms.numbers), SIDE, PIXEL, 300.0)).double()
    noise = gaussian_filter(np.random.default_rng(0).normal(size=found.shape), 1.0)
    found = found + 0.1 * found.std() * torch.from_numpy(noise / noise.std())
    frame = align_volumes(found, volume)
    assert frame.mirrored == mirrored
    assert np.degrees(Rotation.from_matrix(frame.rotation.numpy().T @ Q).magnitude()) < 2
    np.testing.assert_allclose(frame.shift.numpy(), t, atol=0.2)
    assert shell_correlation(frame.apply(found), volume)[:4].min() > 0.9


def test_the_grid_covers_all_rotations():
    """No rotation is farther than 20 degrees from one of 4608 (the mean spacing is 15)."""
    grid = super_fibonacci(4608)
    torch.testing.assert_close(grid @ grid.mT, torch.eye(3, dtype=torch.float64).expand_as(grid))
    some = torch.from_numpy(rotations(200, 0))
    trace = torch.einsum("nij,mij->nm", some, grid)
    assert torch.rad2deg(torch.arccos((trace.amax(dim=1) - 1) / 2)).max() < 20


def test_bad_input_is_refused():
    eye, none = torch.eye(3)[None], torch.zeros(1, 2)
    assert isinstance(align_poses(eye, eye, none, none, 1.0), Alignment)
    with pytest.raises(ParameterError, match="expected poses"):
        align_poses(eye, eye.expand(2, 3, 3), none, none, 1.0)
    with pytest.raises(ParameterError, match="not finite"):
        align_poses(eye * torch.nan, eye, none, none, 1.0)
    with pytest.raises(ParameterError, match="two cubes"):
        align_volumes(torch.zeros(4, 4, 4), torch.zeros(5, 5, 5))
