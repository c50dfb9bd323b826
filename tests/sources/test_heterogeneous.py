"""Stacks of many structures: each image against its own volume, the truth in the table, and bad requests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryobench.errors import DataError, ParameterError
from cryobench.operators.project import ProjectionOperator
from cryobench.physics.ctf import CtfParameters, transfer
from cryobench.physics.poses import Poses
from cryobench.sources.heterogeneous import Heterogeneous, HeterogeneousStack
from cryobench.sources.structures import read_coordinates

SIDE = 32
PARTS = {"structure": "3mht", "parts": "A,C,D;A"}


def opened(kind: str = "motion", **parameters: object) -> HeterogeneousStack:
    return Heterogeneous(kind, **({"size": SIDE, "count": 40} | parameters)).open()


def projected(stack: HeterogeneousStack, index: int) -> np.ndarray:
    """The image of the volume of a particle by exact slices, through its CTF."""
    volume, pixel = stack.volume(index)
    row = stack.table.iloc[[index]].reset_index(drop=True)
    poses = Poses.from_table(row)
    factors = transfer(CtfParameters.from_table(row), (SIDE, SIDE), pixel)
    operator = ProjectionOperator(
        SIDE, poses.matrices, poses.shift / pixel, transfer=factors, dtype=torch.float64, device="cpu"
    )
    return operator.A(torch.from_numpy(volume).double()[None, None] * pixel)[0, 0].numpy()


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("motion", {"structure": "3o21"}),
        ("motion", {"structure": "3o21", "axes": 2, "range": 90.0}),
        ("motion", {"structure": "3o21", "distribution": "two-state", "invert": True}),
        ("motion", {"structure": "3mht", "moving": "C,D", "hinge": "1 2 3", "axis": "0 0 1"}),
        ("mixture", PARTS),
        ("mixture", {"structure": "3mht+2nwl"}),
    ],
)
def test_an_image_is_the_projection_of_its_volume(kind, parameters):
    """The slices are interpolated, with an error of 2% of the image."""
    stack = opened(kind, snr=None, **parameters)
    for index in (0, 5, 11):
        image, wanted = stack.read(index), projected(stack, index)
        wanted, image = wanted - wanted.mean(), image - image.mean()
        assert np.linalg.norm(image - wanted) < 0.03 * np.linalg.norm(wanted)
        other = projected(stack, index + 1)
        assert np.linalg.norm(image - other + other.mean()) > 0.2 * np.linalg.norm(wanted)


def test_a_domain_turns_about_its_hinge():
    """The volume of a latent against atoms that scipy turns: by -30 degrees at 0, by 30 at 1, none at 1/2."""
    from cryobench.physics.potential import Atoms, potential

    recipe = {"structure": "3o21", "moving": "A", "hinge": "30 10 0", "axis": "0 3 4", "range": 60.0}
    stack = opened(count=400, snr=None, **recipe)
    latents = stack.table["trueLatent"].to_numpy()
    whole = read_coordinates("3o21")
    fixed, moving = read_coordinates("3o21", chains="B,C,D"), read_coordinates("3o21", chains="A")
    centre = (whole.positions.min(axis=0) + whole.positions.max(axis=0)) / 2
    for index in (latents.argmin(), latents.argmax(), np.abs(latents - 0.5).argmin()):
        angle = 60 * (latents[index] - 0.5)
        turn = Rotation.from_rotvec(angle * np.array([0, 0.6, 0.8]), degrees=True)
        hinge = np.array([30, 10, 0])
        moved = turn.apply(moving.positions - hinge) + hinge
        atoms = Atoms("", np.concatenate([fixed.positions, moved]) - centre, np.append(fixed.numbers, moving.numbers))
        volume, pixel = stack.volume(int(index))
        wanted = potential(atoms, SIDE, pixel, 50.0)
        np.testing.assert_allclose(volume, wanted, atol=2e-3 * wanted.max())
    assert stack.particle_radius(0) / stack.pixel_size(0) == pytest.approx(0.65 * SIDE / 2)


def test_latents_and_classes_are_distributed_as_stated():
    uniform = opened(count=2000, axes=2).table
    assert {"trueLatent1", "trueLatent2"} < set(uniform.columns)
    assert "trueClass" not in uniform.columns
    for name in ("trueLatent1", "trueLatent2"):
        assert np.histogram(uniform[name], bins=4, range=(0, 1))[0].min() > 440
    assert abs(np.corrcoef(uniform["trueLatent1"], uniform["trueLatent2"])[0, 1]) < 0.07
    states = opened(count=2000, distribution="two-state", proportions="3:1", width=0.1).table
    assert (states["trueClass"] == 1).mean() == pytest.approx(0.75, abs=0.04)
    for number, centre in ((1, 0.25), (2, 0.75)):
        own = states["trueLatent"][states["trueClass"] == number]
        assert own.mean() == pytest.approx(centre, abs=0.02)
        assert own.std() == pytest.approx(0.1, abs=0.02)
    mixture = opened("mixture", count=2000, **PARTS, proportions="1:4").table
    assert (mixture["trueClass"] == 2).mean() == pytest.approx(0.8, abs=0.03)
    assert "rlnClassNumber" not in mixture.columns


def test_parts_of_one_structure_share_a_frame():
    """The small part is missing from the second class, and the rest stays where it is."""
    stack = opened("mixture", snr=None, **PARTS)
    classes = stack.table["trueClass"].to_numpy()
    (whole, pixel), (rest, _) = (stack.volume(int((classes == number).argmax())) for number in (1, 2))
    atoms = read_coordinates("3mht")
    centre = (atoms.positions.min(axis=0) + atoms.positions.max(axis=0)) / 2
    inside = np.zeros(whole.shape, bool)
    where = np.round((read_coordinates("3mht", chains="C,D").positions - centre) / pixel).astype(int) + SIDE // 2
    inside[tuple(where[:, ::-1].T)] = True
    missing = whole - rest
    assert missing[inside].sum() > 0.5 * missing[missing > 0].sum()
    assert np.abs(missing[~inside]).mean() < 0.2 * missing[inside].mean()


def test_the_noise_has_one_level_and_the_stated_ratio():
    """It does not depend on the structure or on the number of images."""
    stack = opened("mixture", count=200, snr=0.5, **PARTS)
    made = stack.particles(range(200))
    assert made.noise_deviation.unique().numel() == 1
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    circle = np.hypot(x, y) <= stack.particle_radius(0) / stack.pixel_size(0)
    signal = made.signal.numpy()[:, circle].var(axis=1).mean()
    assert signal / (made.image - made.signal).numpy().var() == pytest.approx(0.5, rel=0.1)
    few = opened("mixture", count=20, snr=0.5, **PARTS)
    np.testing.assert_array_equal(few.read(17), stack.read(17))


def test_splits_and_seeds_are_other_images():
    images = [opened(**other).clean(0) for other in ({}, {"seed": 1}, {"split": "train"})]
    for i, image in enumerate(images):
        assert all(not np.allclose(image, other) for other in images[:i])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"range": 0.0}, "range must be above 0"),
        ({"axes": 3}, "axes must be 1 or 2"),
        ({"width": 0.5}, "width must lie in"),
        ({"hinge": "1 2"}, "hinge must be three numbers"),
        ({"axis": "0 0 0"}, "axis must be three numbers"),
        ({"proportions": "1:0"}, "proportions must be positive"),
        ({"proportions": "1:2"}, "a uniform motion has no proportions"),
        ({"parts": "A;B"}, "parts is of a mixture"),
        ({"kind": "mixture", "moving": "A"}, "moving is of a motion"),
        ({"snr": 0.0}, "heterogeneous: snr must be positive"),
        ({"count": 0}, "heterogeneous: count must be at least 1"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, message):
    with pytest.raises(ParameterError, match=message):
        Heterogeneous(**parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"structure": "3mht+2nwl"}, "a motion is of one structure, got 2"),
        ({"structure": "2nwl"}, "give moving=, the chains that move"),
        ({"structure": "3mht", "moving": "A,C,D"}, "all of 3mht moves"),
        ({"structure": "3o21", "moving": "X"}, "3o21 has no chain 'X'"),
        ({"pixel_size": 1.0}, "as its domain moves, and the box 32"),
        ({"kind": "mixture", "structure": "3mht"}, "needs two structures or more"),
        ({"kind": "mixture", "structure": "3mht+2nwl", "proportions": "1:1:1"}, "3 proportions for 2 classes"),
        ({"kind": "mixture", "structure": "3mht+2nwl", "parts": "A;B"}, "parts are of one structure"),
        ({"kind": "mixture", "structure": "3mht", "parts": "A;Z"}, "has no chain 'Z'"),
    ],
)
def test_structures_that_do_not_fit_are_refused(parameters, message):
    with pytest.raises(DataError, match=message):
        opened(**parameters)
