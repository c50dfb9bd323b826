"""`direct`: against a dense solution, against maps of pinv images, and what it needs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cryobench.core import Imaging, Problem, Scale, build_operator
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.half_maps import HalfMaps
from cryobench.maps.inversion import wiener
from cryobench.maps.particles import particles_of, projection
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.operators.fourier import Fourier
from cryobench.operators.identity import Identity
from cryobench.operators.noise import NoNoise
from cryobench.operators.sumpool import SumPool
from cryobench.physics.poses import Poses
from cryobench.rng import Rng
from cryobench.solvers.direct import Direct, _Set
from cryobench.sources.simulate import Simulate

RNG = Rng(0, ["0"])


def measured(recipe, stack, dtype=torch.float32) -> Problem:
    """The images of a stack, each on a scale of its own, measured by an operator."""
    n = len(stack)
    imaging = Imaging(stack.shape, (stack.pixel_size(0),) * n, stack.table, stack.through_ctf)
    operator = build_operator(recipe, imaging, seed=0, dtype=dtype)
    images = torch.from_numpy(stack.read_block(range(n)))[:, None].double()
    low, high = images.amin(dim=(1, 2, 3)), images.amax(dim=(1, 2, 3))
    scale = Scale((low + high) / 2, (high - low) / 2, (-1.0, 1.0), "minmax")
    y = operator.A(scale.from_file(images).to(dtype))
    return Problem(operator, y, NoNoise(), torch.zeros((n, 1, 1, 1), dtype=dtype), scale, imaging)


def projected(side: int, count: int) -> Problem:
    """Projections of noise along random directions, in float64."""
    g = torch.Generator().manual_seed(0)
    table = Poses.uniform(count, 0).to_table()
    imaging = Imaging((side, side), (2.0,) * count, table)
    views = projection(particles_of(imaging, "it"), dtype=torch.float64)
    images = views.A(torch.randn((1, 1, *(side,) * 3), generator=g, dtype=torch.float64))[0][:, None]
    offset, factor = (torch.rand(count, generator=g, dtype=torch.float64) + 0.5 for _ in range(2))
    scale = Scale(offset, factor)
    operator = build_operator(SumPool(2, 2), imaging, seed=0, dtype=torch.float64)
    return Problem(operator, operator.A(scale.from_file(images)), NoNoise(),
                   torch.zeros((count, 1, 1, 1), dtype=torch.float64), scale, imaging)  # fmt: skip


def test_a_map_with_its_prior_is_that_of_a_dense_solution():
    problem, side = projected(6, 9), 6
    own = _Set.of(problem, particles_of(problem.imaging, "it"), torch.arange(problem.batch))
    weights = torch.rand(own.means.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = rfftn(irfftn(weights, (side,) * 3), 3).real.abs() + 1  # those of a real filter
    unit = torch.eye(side**3, dtype=torch.float64).reshape(-1, 1, side, side, side)
    columns = [own.operator.A_adjoint(own.operator.A(e[None]))[0] + irfftn(weights * rfftn(e, 3), (side,) * 3)
               for e in unit]  # fmt: skip
    dense = torch.stack([column.flatten() for column in columns], dim=1)
    wanted = torch.linalg.solve(dense, own.b.flatten()).reshape((side,) * 3) + own.c.flatten()
    found = own.solved(400, weights, lambda *_: None)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8 * float(wanted.abs().max()))


def test_what_is_solved_for_is_the_structure_whatever_the_scale_of_each_image():
    """A^T A v = A^T u holds for the structure itself, where nothing was lost to noise."""
    problem = projected(8, 20)
    own = _Set.of(problem, particles_of(problem.imaging, "it"), torch.arange(20))
    g = torch.Generator().manual_seed(0)
    v = torch.randn((1, 1, 8, 8, 8), generator=g, dtype=torch.float64)
    normal = own.operator.A_adjoint(own.operator.A(v - own.c))
    torch.testing.assert_close(normal, own.b, rtol=0, atol=1e-6 * float(own.b.abs().max()))


@pytest.mark.parametrize("recipe", [SumPool(4, 4), Fourier(0.5)], ids=str)
def test_it_is_better_than_the_map_of_the_least_norm_images(recipe):
    """Of particles with little noise; and its images are the projections of its map."""
    stack = Simulate("3mht", snr=5.0, size=32, count=200).open()
    problem = measured(recipe, stack)
    answer = Direct().solve(problem, rng=RNG)
    particles = particles_of(problem.imaging, "it")
    sums = HalfMaps(32, particles.pixel_size)
    least_norm = problem.scale.to_file(problem.operator.A_dagger(problem.y))[:, 0]
    sums.add(least_norm, particles.poses, particles.ctf, torch.arange(200) % 2)
    structure = torch.from_numpy(stack.volume(0)[0])
    ours, theirs = (shell_correlation(volume.double(), structure.double()).mean().item()
                    for volume in (answer.volumes["full"], wiener(sums.sums, sums.kernels).full))  # fmt: skip
    assert ours > theirs + (0.02 if isinstance(recipe, SumPool) else 0.0)
    images = projection(particles, dtype=torch.float32).A(answer.volumes["full"].float()[None, None])[0]
    torch.testing.assert_close(problem.scale.to_file(answer.x)[:, 0].float(), images, rtol=1e-4, atol=1e-4 * 200)


def test_halves_have_nothing_in_common():
    """The measurements of odd particles do not change the map of the even ones."""
    problem = measured(Identity(), Simulate("3mht", snr=1.0, size=16, count=40).open())
    first = Direct().solve(problem, rng=RNG).volumes
    changed = problem.y.clone()
    changed[1::2] = changed[1::2].flip(0)
    second = Direct().solve(dataclasses.replace(problem, y=changed), rng=RNG).volumes
    assert torch.equal(first["half1"], second["half1"])
    assert shell_correlation(first["half2"], second["half2"]).min() < 0.7


def test_it_needs_poses_and_particles_in_both_halves():
    problem = measured(Identity(), Simulate("3mht", size=16, count=6).open())
    table = problem.imaging.table

    def reason(**changes) -> str | None:
        return Direct().unsupported(dataclasses.replace(problem, **changes))

    assert reason() is None
    assert "all particles of a data set at once" in reason(imaging=None)
    without = dataclasses.replace(problem.imaging, table=table.drop(columns=["rlnAngleRot"]))
    assert "known poses" in reason(imaging=without)
    one_half = dataclasses.replace(problem.imaging, table=table.assign(rlnRandomSubset=1))
    assert "at least 1 in each half" in reason(imaging=one_half)
