"""`fourier_inversion`: structures from their projections, by halves of the images, on the operators that it takes."""

from __future__ import annotations

import pytest
import torch
from optics import ctf_table

from cryobench.core import MINMAX, Imaging, Problem, build_operator
from cryobench.core.meters import CountingOperator
from cryobench.errors import ParameterError
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.inversion import wiener
from cryobench.operators.composed import Composed
from cryobench.operators.ctf import Ctf
from cryobench.operators.fourier import Fourier
from cryobench.operators.noise import Gaussian, NoNoise
from cryobench.operators.project import Project
from cryobench.operators.sumpool import SumPool
from cryobench.physics.poses import Poses
from cryobench.physics.potential import potential
from cryobench.rng import Rng
from cryobench.solvers.fourier_inversion import FourierInversion
from cryobench.sources.structures import read_structure

N, PIXEL, RNG = 24, 6.0, Rng(0, ["0"])


def structure() -> torch.Tensor:
    """The potential in [-1, 1], so that its surroundings are -1."""
    atoms = read_structure("3mht")
    x = torch.from_numpy(potential(atoms, N, 2 * atoms.radius / 0.65 / N, 50.0))[None, None]
    return 2 * (x - x.min()) / (x.max() - x.min()) - 1


def problem(recipe, noise=None, x=None) -> Problem:
    x = structure() if x is None else x
    operator = build_operator(recipe, Imaging((N, N, N), (PIXEL,)), seed=0)
    noise = noise or NoNoise()
    noisy = noise.apply(operator.A(x), operator, MINMAX, Rng(0, [str(i) for i in range(len(x))]))
    return Problem(CountingOperator(operator), noisy.y, noise, noisy.sigma)


@pytest.mark.parametrize("recipe", [
    Project(300), Composed(Ctf(12000.0), Project(300)), Composed(Fourier(0.5), Composed(Ctf(12000.0), Project(300))),
], ids=str)  # fmt: skip
def test_a_structure_is_found_from_its_projections(recipe):
    given = problem(recipe, Gaussian(rel=0.5))
    found = FourierInversion().solve(given, rng=RNG)
    assert shell_correlation(found.x[0, 0], structure()[0, 0])[1:6].min() > 0.95
    assert (found.x - structure()).norm() < 0.5 * (structure() - structure().mean()).norm()
    assert 2 <= float(found.info["half_map_pixels"]) < 4


def test_each_particle_has_its_own_ctf_and_halves_are_even_and_odd_images():
    count = 40
    table = Poses.uniform(count, 1).to_table().join(ctf_table(count))
    recipe, x = Composed(Ctf(), Project()), structure()
    operator = build_operator(recipe, Imaging((N, N, N), (PIXEL,), table), seed=0)
    y = operator.A(x) + torch.randn((1, count, N, N), generator=torch.Generator().manual_seed(0))
    found = FourierInversion().solve(Problem(operator, y, Gaussian(1.0), torch.ones(1, 1, 1, 1)), rng=RNG)
    c = float((operator.mean_response * y).sum() / operator.mean_response.square().sum())
    sums, kernels = [], []
    for half in (0, 1):
        rows = table.iloc[half::2].reset_index(drop=True)
        own = build_operator(recipe, Imaging((N, N, N), (PIXEL,), rows), seed=0)
        sums.append(own.A_adjoint(y[:, half::2] - c * own.mean_response)[0, 0])
        kernels.append(own.kernel())
    wanted = c + wiener(torch.stack(sums), torch.stack(kernels)).full
    torch.testing.assert_close(found.x[0, 0], wanted, rtol=1e-4, atol=1e-4)


def test_the_result_does_not_depend_on_the_batch():
    x = torch.cat([structure(), structure().flip(2) ** 2])
    given = problem(Project(40), Gaussian(rel=0.3), x)
    both = FourierInversion().solve(given, rng=RNG)
    for i in range(2):
        own = Problem(given.operator, given.y[i : i + 1], given.noise, given.sigma[i : i + 1])
        alone = FourierInversion().solve(own, rng=RNG)
        torch.testing.assert_close(alone.x, both.x[i : i + 1])
        torch.testing.assert_close(alone.info["half_map_pixels"], both.info["half_map_pixels"][i : i + 1])


@pytest.mark.parametrize(
    ("recipe", "solver", "reason"),
    [
        (Composed(SumPool(2), Project(8)), FourierInversion(), "needs images of views, as project and .* use cg"),
        (Fourier(0.5), FourierInversion(), "needs images of views, as project and ctf@project give; use cg"),
        (Project(3), FourierInversion(), "needs at least 2 images in each half, got 3 in all"),
        (Project(8), FourierInversion(radius=13.0), "radius=13 is more than half of the 24 voxels"),
    ],
)
def test_other_measurements_are_refused_in_one_line(recipe, solver, reason):
    operator = build_operator(recipe, Imaging((N, N, N), (PIXEL,)), seed=0)
    y = torch.zeros((1, *operator.measurement_shape))
    given = Problem(CountingOperator(operator), y, NoNoise(), torch.zeros((1,) * y.ndim))
    found = solver.unsupported(given)
    assert found is not None
    assert "\n" not in found
    with pytest.raises(ParameterError, match=reason):
        solver.solve(given, rng=RNG)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"radius": 0.5}, "radius must be at least 1 voxel, got 0.5"),
        ({"steps": -1}, "steps must be zero or more, got -1"),
    ],
)
def test_parameters_are_checked(given, message):
    with pytest.raises(ParameterError, match=message):
        FourierInversion(**given)
