"""`cryodeco`: what it answers, that it goes on from any step, its searches, and what it refuses."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from cryobench.core import Imaging, Problem, Scale, build_operator
from cryobench.core.checkpoints import checkpointing
from cryobench.errors import ParameterError
from cryobench.operators.identity import Identity
from cryobench.operators.noise import NoNoise
from cryobench.rng import Rng
from cryobench.solvers.cryodeco import CryoDeco
from cryobench.sources.heterogeneous import Heterogeneous

SMALL = CryoDeco(dimensions=2, starts=1, searches=1, groups=2, fit=1, descent=2, order=1)
COUNT = 48


@cache
def problem() -> Problem:
    stack = Heterogeneous("mixture", count=COUNT, size=24, snr=2.0).open()
    hidden = [name for name in stack.table if name.startswith(("true", "rlnAngle", "rlnOrigin", "rlnClass"))]
    imaging = Imaging(stack.shape, (stack.pixel_size(0),) * COUNT, stack.table.drop(columns=hidden), stack.through_ctf)
    operator = build_operator(Identity(), imaging, seed=0, dtype=torch.float32)
    y = torch.from_numpy(stack.read_block(range(COUNT)))[:, None]
    scale = Scale(torch.zeros(1).double(), torch.ones(1).double())
    return Problem(operator, y, NoNoise(), torch.zeros((COUNT, 1, 1, 1)), scale, imaging)


def solved(**options):
    return SMALL.solve(problem(), rng=Rng(0, [str(i) for i in range(COUNT)]), **options)


@cache
def whole():
    return solved()


def test_it_answers_with_latents_poses_and_a_map_of_each_latent():
    found = whole()
    many = found.heterogeneity
    assert many.latents.shape == (COUNT, 2)
    assert many.rotations.shape == (COUNT, 3, 3)
    assert many.shift.shape == (COUNT, 2)
    assert len(many.starts) == 1
    assert torch.allclose(many.rotations @ many.rotations.mT, torch.eye(3).double(), atol=1e-5)
    y = problem().y
    assert (y - found.x).square().mean() < 0.9 * y.square().mean()
    again = CryoDeco().volume_model(many.model.arrays())
    assert torch.allclose(again.volumes(many.latents[:1].float()), many.model.volumes(many.latents[:1].float()))


def test_it_goes_on_after_a_kill_with_the_same_result(tmp_path):
    class Killed(Exception):
        pass

    for last in (1, 4):  # in the first phase of the network, and in the descent

        def stop(done: int, total: int, last: int = last) -> None:
            assert total == 6
            if done == last:
                raise Killed

        with checkpointing(tmp_path / "state.pt", 0.0), pytest.raises(Killed):
            solved(progress=stop)
    with checkpointing(tmp_path / "state.pt", 0.0):
        again = solved()
    assert torch.equal(again.x, whole().x)
    assert torch.equal(again.heterogeneity.latents, whole().heterogeneity.latents)
    assert torch.equal(again.heterogeneity.rotations, whole().heterogeneity.rotations)
    assert again.heterogeneity.starts == whole().heterogeneity.starts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 0}, "dimensions is 0; give dimensions of at least 1; abinitio is the solver with none"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"part": 0.0}, "part must be above 0 and at most 1, got 0"),
        ({"pose_rate": -1.0}, "pose_rate must be positive, got -1"),
    ],
)
def test_values_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ParameterError, match=message):
        CryoDeco(**options)


def test_fewer_particles_than_groups_are_refused_in_one_line():
    assert SMALL.unsupported(problem()) is None
    assert "48 particles for 50 groups; give at least 50" in CryoDeco(dimensions=2, groups=50).unsupported(problem())
