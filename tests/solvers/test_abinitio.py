"""`abinitio`: that it finds a map from images alone, goes on from any step, and says what it cannot take."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cryobench.core import Imaging, Problem, Scale, build_operator
from cryobench.core.checkpoints import checkpointing
from cryobench.errors import ParameterError
from cryobench.maps.alignment import align_volumes
from cryobench.maps.fsc import shell_correlation
from cryobench.operators.identity import Identity
from cryobench.operators.noise import NoNoise
from cryobench.rng import Rng
from cryobench.solvers.abinitio import AbInitio
from cryobench.sources.simulate import Simulate

SIDE, COUNT = 20, 80


def problem_of(
    structure: str = "6zu5", count: int = COUNT, side: int = SIDE, **options
) -> tuple[Problem, torch.Tensor]:
    stack = Simulate(structure, size=side, count=count, **{"snr": 2.0} | options).open()
    volume, pixel_size = stack.volume(0)
    table = stack.table
    hidden = [name for name in table.columns if name.startswith(("rlnAngle", "rlnOrigin", "rlnClass"))]
    imaging = Imaging((side, side), (pixel_size,) * count, table.drop(columns=hidden), through_ctf=stack.through_ctf)
    y = torch.from_numpy(stack.read_block(list(range(count))))[:, None]
    operator = build_operator(Identity(), imaging, seed=0, dtype=torch.float32)
    scale = Scale(torch.zeros(1).double(), torch.ones(1).double())
    return Problem(operator, y, NoNoise(), torch.zeros(count, 1, 1, 1), scale, imaging), torch.from_numpy(volume)


def rng(count: int = COUNT) -> Rng:
    return Rng(0, [str(i) for i in range(count)])


def test_a_map_is_found_from_images_alone():
    problem, volume = problem_of(count=150, side=24)
    found = AbInitio(starts=2, rounds=2, order=1).solve(problem, rng=rng(150))
    assert found.heterogeneity is not None
    many = found.heterogeneity
    assert many.latents.shape == (150, 0)
    assert len(many.starts) == 2
    assert many.rotations.shape == (150, 3, 3)
    full = found.volumes["full"]
    aligned = align_volumes(full, volume).apply(full)
    assert shell_correlation(aligned, volume)[:5].min() > 0.7
    residual, blank = (problem.y - found.x).square().mean(), problem.y.square().mean()
    assert residual < 0.9 * blank
    model = AbInitio().volume_model(many.model.arrays())
    assert torch.equal(model.volumes(many.latents[:2])[1], full.float())


def test_it_goes_on_after_a_kill_with_the_same_result(tmp_path):
    problem, _ = problem_of(count=24)
    solver = AbInitio(starts=1, rounds=2, order=1)
    whole = solver.solve(problem, rng=rng(24))

    class Killed(Exception):
        pass

    for last in (7, 26, 41):

        def stop(done: int, total: int, last: int = last) -> None:
            if done == last:
                raise Killed

        with checkpointing(tmp_path / "state.pt", 0.0), pytest.raises(Killed):
            solver.solve(problem, rng=rng(24), progress=stop)
    began = []
    with checkpointing(tmp_path / "state.pt", 0.0):
        again = solver.solve(problem, rng=rng(24), progress=lambda done, total: began.append(done))
    assert began[0] == 42
    assert torch.equal(again.x, whole.x)
    assert again.heterogeneity.starts == whole.heterogeneity.starts
    assert torch.equal(again.heterogeneity.rotations, whole.heterogeneity.rotations)


def test_classes_have_maps_and_probabilities():
    problem, _ = problem_of(count=32)
    many = AbInitio(classes=2, starts=1, rounds=1, order=1).solve(problem, rng=rng(32)).heterogeneity
    assert many.latents.shape == (32, 2)
    assert torch.allclose(many.latents.sum(dim=1), torch.ones(32).double())
    assert many.model.volumes(many.latents).shape == (32, SIDE, SIDE, SIDE)
    assert (many.model.side, many.model.dimensions) == (SIDE, 2)
    again = AbInitio(classes=2).volume_model(many.model.arrays())
    assert torch.equal(again.volumes(many.latents), many.model.volumes(many.latents))


def test_what_it_cannot_take_is_said_in_one_line():
    problem, _ = problem_of()
    assert AbInitio().unsupported(problem) is None

    def reason(solver: AbInitio = AbInitio(), **changes) -> str | None:  # noqa: B008
        return solver.unsupported(dataclasses.replace(problem, **changes))

    imaging = problem.imaging
    assert imaging is not None
    assert "needs all particles of a data set" in reason(imaging=None)
    without = dataclasses.replace(imaging, table=imaging.table[[]])
    assert "needs the CTF of the particles (rlnDefocusU and others)" in reason(imaging=without)
    assert "give ctf=false" in reason(imaging=without)
    assert reason(AbInitio(ctf=False), imaging=without) is None
    assert reason(imaging=dataclasses.replace(without, through_ctf=False)) is None
    assert "80 particles for 50 classes; give at least 100" in reason(AbInitio(classes=50))
    broken = problem.y.clone()
    broken[3, 0, 2, 2] = float("nan")
    assert "values that are not finite" in reason(y=broken)
    assert "images of 12 pixels have too few frequencies for poses" in AbInitio().unsupported(problem_of(side=12)[0])


@pytest.mark.parametrize("name", ["classes", "starts", "particles", "rounds"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ParameterError, match=f"abinitio: {name} must be 1 to"):
        AbInitio(**{name: 0})
