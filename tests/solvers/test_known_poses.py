"""Solvers for many structures with known poses: what they find, what they refuse, their models and their states."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from cryobench.core import Imaging, Problem, Scale, build_operator
from cryobench.core.checkpoints import checkpointing
from cryobench.encoders.pca import Pca
from cryobench.errors import DataError, ParameterError
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.particle_images import particle_images
from cryobench.operators.identity import Identity
from cryobench.operators.noise import NoNoise
from cryobench.rng import Rng
from cryobench.solvers.consensus import Consensus
from cryobench.solvers.covariance import Covariance
from cryobench.solvers.cryodeco import CryoDeco
from cryobench.solvers.curve import Curve
from cryobench.solvers.hypervolume import HypervolumeSolver
from cryobench.sources.heterogeneous import Heterogeneous

SMALL = (Consensus(), Covariance(dimensions=2, iterations=2), HypervolumeSolver(dimensions=2, epochs=2),
         Curve(degree=2, iterations=3))  # fmt: skip


@cache
def mixture():
    return Heterogeneous("mixture", count=120, size=24, snr=1.0).open()


@cache
def problem(count: int = 120) -> Problem:
    """Images of a mixture, measured as they are; the table has no truth."""
    stack = mixture()
    table = stack.table.iloc[:count].drop(columns=[name for name in stack.table if name.startswith("true")])
    imaging = Imaging(stack.shape, (stack.pixel_size(0),) * count, table, stack.through_ctf)
    operator = build_operator(Identity(), imaging, seed=0, dtype=torch.float32)
    images = torch.from_numpy(stack.read_block(range(count)))[:, None].double()
    low, high = images.amin(dim=(1, 2, 3)), images.amax(dim=(1, 2, 3))
    scale = Scale((low + high) / 2, (high - low) / 2, (-1.0, 1.0), "minmax")
    y = operator.A(scale.from_file(images).float())
    return Problem(operator, y, NoNoise(), torch.zeros((count, 1, 1, 1)), scale, imaging)


@cache
def solved(solver):
    p = problem()
    return solver.solve(p, rng=Rng(0, [str(i) for i in range(p.batch)]))


def classes() -> np.ndarray:
    return mixture().table["trueClass"].to_numpy()


def quality(solver) -> float:
    """The mean correlation of the maps of some particles with the true ones."""
    many = solved(solver).heterogeneity
    chosen = torch.arange(0, 120, 12)
    maps = many.model.volumes(many.latents[chosen])
    values = []
    for index, found in zip(chosen.tolist(), maps, strict=True):
        potential, pixel_size = mixture().volume(index)
        values.append(float(shell_correlation(torch.as_tensor(potential * pixel_size), found).mean()))
    return float(np.mean(values))


@pytest.mark.parametrize("solver", SMALL, ids=lambda solver: type(solver).__name__)
def test_the_answer_has_a_latent_of_each_particle_and_images_of_its_map(solver):
    answer, p = solved(solver), problem()
    many = answer.heterogeneity
    assert many is not None
    d = 1 if isinstance(solver, Curve) else getattr(solver, "dimensions", 0)
    assert many.latents.shape == (120, d)
    assert many.latents.dtype == torch.float64
    assert (many.model.side, many.model.dimensions) == (24, d)
    assert many.rotations is None
    assert answer.x.shape == p.y.shape
    blank = p.scale.from_file(torch.zeros((120, 1, 24, 24), dtype=torch.float64)).to(p.y)
    assert (answer.x - p.y).norm() < 0.9 * (blank - p.y).norm()


@pytest.mark.parametrize("solver", SMALL, ids=lambda solver: type(solver).__name__)
def test_a_model_is_made_again_from_its_arrays(solver):
    many = solved(solver).heterogeneity
    again = solver.volume_model(many.model.arrays())
    assert torch.equal(again.volumes(many.latents[:2]), many.model.volumes(many.latents[:2]))
    assert again.volumes(many.latents[:0]).shape == (0, 24, 24, 24)
    assert (again.side, again.dimensions) == (24, many.model.dimensions)
    with pytest.raises(DataError, match="the saved model has other; expected"):
        solver.volume_model({"other": torch.zeros(1)})


@pytest.mark.parametrize(("solver", "bound"), [(SMALL[1], 1e-3), (SMALL[2], 0.15), (SMALL[3], 1e-3)],
                         ids=["linear", "network", "curve"])  # fmt: skip
def test_images_are_the_projections_of_the_maps_of_the_particles(solver, bound):
    """Slices of a network are those of its map but for what lies outside of the box, which the map wraps around."""
    from cryobench.solvers.consensus import projections

    answer, p = solved(solver), problem()
    images = particle_images(p, "it")
    for index in (0, 5):
        found = answer.heterogeneity.model.volumes(answer.heterogeneity.latents[index : index + 1])
        wanted = projections(images, found, slice(index, index + 1))[0, 0]
        got = p.scale.factor[index] * answer.x[index, 0].double() + p.scale.offset[index]
        assert (got - wanted).norm() < bound * wanted.norm()


def test_covariance_separates_a_mixture_and_its_maps_are_better_than_the_consensus():
    solver = Covariance(dimensions=2, iterations=8)
    latents = solved(solver).heterogeneity.latents[:, 0].numpy()
    sides = latents > np.median(latents)
    agreed = np.mean(sides == (classes() == 2))
    assert max(agreed, 1 - agreed) > 0.95
    assert quality(solver) > quality(Consensus())


def test_a_hypervolume_separates_a_mixture():
    latents = solved(HypervolumeSolver(dimensions=2, epochs=6)).heterogeneity.latents[:, 0].numpy()
    sides = latents > np.median(latents)
    agreed = np.mean(sides == (classes() == 2))
    assert max(agreed, 1 - agreed) > 0.95


def test_an_encoder_gives_latents_too():
    solver = HypervolumeSolver(dimensions=2, epochs=1, latents="encoder", mean="none")
    many = solved(solver).heterogeneity
    assert torch.isfinite(many.latents).all()
    assert float(many.latents.std()) > 0


def test_a_table_begins_with_the_principal_components_of_features():
    p = problem()
    images = particle_images(p, "it")
    solver = HypervolumeSolver(dimensions=2, epochs=2, init="encoder", encoder=Pca(8))
    found = solver._first(images, torch.zeros(24, 24, 24), torch.ones(40), 0)
    features = Pca(8).features(images.images, images.transfer(), images.pixel_size).numpy()
    expected = PCA(2, whiten=True, svd_solver="full").fit_transform(features) * (120 / 119) ** 0.5
    np.testing.assert_allclose(np.abs(found.numpy()), np.abs(expected), atol=1e-4)
    many = solved(solver).heterogeneity
    assert many.latents.shape == (120, 2)
    assert torch.isfinite(many.latents).all()
    with pytest.raises(ParameterError, match="the encoder gives 1 features of an image, fewer than dimensions=2"):
        dataclasses.replace(solver, encoder=Pca(1))._first(images, torch.zeros(24, 24, 24), torch.ones(40), 0)


@pytest.mark.parametrize("solver", [*SMALL[1:], CryoDeco()], ids=lambda solver: type(solver).__name__)
def test_masked_particles_are_refused(solver):
    p = problem()
    offsets = torch.arange(24) - 12
    circle = offsets[:, None] ** 2 + offsets**2 < (0.37 * 24) ** 2
    images = p.scale.to_file(p.y) * circle
    masked = dataclasses.replace(p, y=p.scale.from_file(images).float())
    with pytest.raises(DataError, match="have no noise to measure; give images that are not masked"):
        solver.solve(masked, rng=Rng(0, [str(i) for i in range(p.batch)]))


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("solver", "last"), [
    (SMALL[1], 2), (SMALL[2], 2), (SMALL[3], 2), (SMALL[3], 16),
    (HypervolumeSolver(dimensions=2, epochs=2, latents="encoder"), 2),
], ids=["covariance", "table", "curve-linear", "curve", "encoder"])  # fmt: skip
def test_a_solver_goes_on_after_a_kill_with_the_same_result(solver, last, tmp_path):
    p, rng = problem(40), Rng(0, [str(i) for i in range(40)])
    whole = solver.solve(p, rng=rng)

    def stop(done: int, total: int) -> None:
        if done == last:
            raise Stopped

    with checkpointing(tmp_path / "state.pt", interval=0.0):
        with pytest.raises(Stopped):
            solver.solve(p, rng=rng, progress=stop)
        assert (tmp_path / "state.pt").exists()
        seen = []
        again = solver.solve(p, rng=rng, progress=lambda done, total: seen.append(done))
    assert min(seen) > last
    assert torch.equal(again.heterogeneity.latents, whole.heterogeneity.latents)
    assert torch.equal(again.x, whole.x)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Covariance(dimensions=0), "give dimensions of at least 1; consensus is the solver with none"),
    (lambda: HypervolumeSolver(dimensions=0), "give dimensions of at least 1; consensus is the solver with none"),
    (lambda: Covariance(iterations=0), "iterations must be at least 1, got 0"),
    (lambda: Covariance(box=15), "box must be an even number from 8 on, got 15"),
    (lambda: Curve(degree=0), r"degree must lie in \[1, 8\], got 0"),
    (lambda: Curve(decay=0.0), "decay must be above 0 and at most 1, got 0"),
    (lambda: Curve(iterations=0), "iterations must be at least 1, got 0"),
    (lambda: Curve(box=9), "curve: box must be an even number from 8 on, got 9"),
    (lambda: HypervolumeSolver(epochs=0), "epochs must be at least 1, got 0"),
    (lambda: HypervolumeSolver(rate=0.0), "rate must be positive, got 0"),
    (lambda: HypervolumeSolver(part=1.5), "part must be above 0 and at most 1, got 1.5"),
    (lambda: HypervolumeSolver(prior=-1.0), "prior must be zero or more, got -1"),
    (lambda: HypervolumeSolver(init="encoder"), "init=encoder needs an encoder; give one, such as encoder=pca"),
    (lambda: HypervolumeSolver(encoder=Pca()), "an encoder is given, but init is subspace; give init=encoder"),
    (lambda: HypervolumeSolver(init="encoder", encoder=Pca(), latents="encoder"), "give latents=table"),
])  # fmt: skip
def test_parameters_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


def test_problems_that_do_not_fit_are_refused_with_one_line():
    p = problem()
    alone = dataclasses.replace(p, imaging=None)
    without = dataclasses.replace(p, imaging=dataclasses.replace(p.imaging, table=None))
    for solver in SMALL:
        assert solver.unsupported(p) is None
        assert "needs all particles of a data set at once" in str(solver.unsupported(alone))
        assert "needs particles with known poses" in str(solver.unsupported(without))
    assert "box=32 is larger than the images of 24 pixels" in str(Covariance(box=32).unsupported(p))
    few = "2 particles cannot give 2 dimensions"
    assert few in str(Covariance(dimensions=2).unsupported(problem(2)))
    assert "3 particles are too few for polynomials of degree 3" in str(Curve().unsupported(problem(3)))
    wrong = p.imaging.table.assign(rlnAngleRot=float("nan"))
    bad = dataclasses.replace(p, imaging=dataclasses.replace(p.imaging, table=wrong))
    assert "row 1 has rlnAngleRot nan; give a finite number" in str(SMALL[0].unsupported(bad))
