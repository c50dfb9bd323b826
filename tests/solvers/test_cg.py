"""`cg`: the least-squares solution where it is unique, structures from their projections, and early stopping."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryobench.core import MINMAX, Imaging, Problem, build_operator
from cryobench.errors import ParameterError
from cryobench.numerics.linalg import conjugate_gradients
from cryobench.operators.composed import Composed
from cryobench.operators.ctf import Ctf
from cryobench.operators.fourier import Fourier
from cryobench.operators.noise import Gaussian, NoNoise
from cryobench.operators.project import Project
from cryobench.operators.sumpool import SumPool
from cryobench.physics.potential import potential
from cryobench.rng import Rng
from cryobench.solvers.cg import Cg, shell_means
from cryobench.sources.structures import read_structure

PIXEL, RNG = 6.0, Rng(0, ["0"])


def structure(n: int) -> torch.Tensor:
    atoms = read_structure("3mht")
    return torch.from_numpy(potential(atoms, n, 2 * atoms.radius / 0.65 / n, 50.0))[None, None]


def problem(recipe, x: torch.Tensor, noise=None) -> Problem:
    operator = build_operator(recipe, Imaging(tuple(x.shape[2:]), (PIXEL,)), seed=0, dtype=x.dtype)
    noise = noise or NoNoise()
    noisy = noise.apply(operator.A(x), operator, MINMAX, Rng(0, [str(i) for i in range(len(x))]))
    return Problem(operator, noisy.y, noise, noisy.sigma)


def shell_correlation(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """FSC of two cubes for shells 1 to n / 2, from all coefficients of the whole spectrum."""
    n = a.shape[-1]
    x, y = (np.fft.fftn(v[0, 0].double().numpy()) for v in (a, b))
    k = np.fft.fftfreq(n, 1 / n)
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2))

    def sums(values: np.ndarray) -> np.ndarray:
        return np.array([values[shell == r].sum() for r in range(1, n // 2 + 1)])

    return sums((x * y.conj()).real) / np.sqrt(sums(np.abs(x) ** 2) * sums(np.abs(y) ** 2))


@pytest.mark.parametrize("recipe", [SumPool(4, 20), Fourier(0.5), Ctf(9000.0)], ids=str)
def test_it_converges_to_the_least_squares_solution(recipe):
    """Of inconsistent measurements, where it is unique: on the range of A^T."""
    x = torch.randn((2, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = problem(recipe, x, Gaussian(0.3))
    found = Cg(2000, tol=1e-12).solve(given, rng=RNG).x
    A = given.operator
    wanted = A.A(A.A_dagger(given.y))
    torch.testing.assert_close(A.A(found), wanted, rtol=0, atol=1e-6)
    if isinstance(recipe, SumPool):
        torch.testing.assert_close(found, A.A_dagger(given.y), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("recipe", "steps"), [
    (Project(150), 20),
    (Composed(Ctf(12000.0), Project(150)), 40),
    (Composed(SumPool(2, 2), Project(150)), 40),
], ids=str)  # fmt: skip
def test_a_structure_is_found_from_its_projections(recipe, steps):
    """Without noise, to a correlation of 0.99 up to 0.8 of the Nyquist frequency."""
    n, x = 24, structure(24)
    answer = Cg(steps).solve(problem(recipe, x), rng=RNG)
    assert shell_correlation(answer.x, x)[: int(0.4 * n)].min() > 0.99
    assert answer.curves["gradient"].shape[1] <= steps + 1


def test_noise_stops_it_before_it_is_fitted():
    x = structure(20)
    given = problem(Project(100), x, Gaussian(rel=1.0))
    early, late = Cg().solve(given, rng=RNG), Cg(60, tol=0.0).solve(given, rng=RNG)
    assert early.info["gradient"] < 0.1
    assert early.curves["gradient"].shape[1] < 15
    assert (early.x - x).norm() < (late.x - x).norm() / 2


def test_the_preconditioner_saves_steps():
    x = structure(20)
    given = problem(Project(60), x)
    A, count = given.operator, []
    plain = conjugate_gradients(
        A.A_adjoint_A, A.A_adjoint(given.y), tol=0.0, max_steps=6, watch=lambda step, norm: count.append(step)
    )
    assert count == list(range(1, 7))
    ours = Cg(4, tol=0.0).solve(given, rng=RNG).x
    assert (ours - x).norm() < (plain - x).norm()
    assert shell_correlation(ours, x)[:8].min() > shell_correlation(plain, x)[:8].min()


def test_shell_means_are_those_of_the_operator():
    """Of an operator that is diagonal in Fourier, exactly where its transfer function depends on the radius alone."""
    operator = build_operator(Ctf(9000.0), Imaging((24, 24), (2.0,)), seed=0, dtype=torch.float64)
    means, transfer = shell_means(operator)[0, 0], operator.transfer
    assert transfer is not None
    ky, kx = torch.fft.fftfreq(24)[:, None], torch.fft.rfftfreq(24)
    radius = (torch.hypot(ky, kx) * 24).round()
    for r in (0, 1, 3, 8):
        on = radius == r
        assert means[on].min() == means[on].max()
        squares = transfer[0, 0].square()[on]
        assert squares.min() * (1 - 1e-9) <= means[on].max() <= squares.max() * (1 + 1e-9)


def test_images_stop_by_themselves():
    """The result for an image does not depend on the others of its batch."""
    x = torch.cat([structure(12), structure(12).flip(2) ** 2])
    given = problem(Project(20), x, Gaussian(rel=0.3))
    both = Cg().solve(given, rng=RNG)
    for i in range(2):
        own = Problem(given.operator, given.y[i : i + 1], given.noise, given.sigma[i : i + 1])
        alone = Cg().solve(own, rng=RNG)
        torch.testing.assert_close(alone.x, both.x[i : i + 1])
        torch.testing.assert_close(alone.info["gradient"], both.info["gradient"][i : i + 1])


@pytest.mark.parametrize(
    ("given", "message"),
    [({"steps": 0}, "steps must be at least 1, got 0"), ({"tol": 1.0}, "tol must be auto or lie in .0, 1., got 1")],
)
def test_parameters_are_checked(given, message):
    with pytest.raises(ParameterError, match=message):
        Cg(**given)
