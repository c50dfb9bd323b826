"""Every solver with a denoising prior runs on the known ones, in the units of the file whatever the scaling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryobench.core import MINMAX, Problem, build_operator
from cryobench.core.scale import Scale
from cryobench.errors import IncompatibleError
from cryobench.operators.noise import Gaussian
from cryobench.priors.known import GaussianField, GaussianMixture, SparseBlocks
from cryobench.registry import installed
from cryobench.rng import Rng
from cryobench.sources import known as sources
from cryobench.sources.stacks import File

PRIORS = {"gaussian_field": GaussianField(), "gaussian_mixture": GaussianMixture(), "sparse_blocks": SparseBlocks()}
NONE = Scale(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
SOLVERS = ("cryosense:50", "daps:5,ode_steps=2", "ddnm:10", "diffpir:10", "dmplug:20", "dps:20", "hqs:6", "pigdm:10")


def problem_of(x: torch.Tensor, scale: Scale, sigma: float = 0.05) -> Problem:
    operator = build_operator(installed().make("operators", "sumpool:4,count=4"), tuple(x.shape[2:]), seed=0)
    y = operator.A(x.float())
    noise = sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return Problem(operator, y + noise, Gaussian(sigma), torch.full((len(x), 1, 1, 1), sigma), scale)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("text", SOLVERS)
def test_every_solver_with_a_prior_runs_on_the_known_ones(name, text):
    solver = installed().make("solvers", f"{text},prior={name}")
    x = PRIORS[name].distribution((16, 16)).sample(torch.Generator().manual_seed(0), 2)
    found = solver.solve(problem_of(x, NONE), rng=Rng(0, ["0", "1"]))
    assert found.x.shape == x.shape
    assert found.x.isfinite().all()
    assert float((found.x - x).square().mean()) < 1.5 * 0.04


def test_the_prior_is_in_the_units_of_the_file_for_every_scaling():
    x = GaussianField().distribution((16, 16)).sample(torch.Generator().manual_seed(0), 2)
    solver = installed().make("solvers", "hqs:6,prior=gaussian_field")
    plain = problem_of(x, NONE, 0.05)
    found = solver.solve(plain, rng=Rng(0, ["0", "1"])).x
    for bounds in (None, MINMAX.range):
        offset, factor = torch.tensor([0.3, -0.1], dtype=torch.float64), torch.tensor([2.0, 0.5], dtype=torch.float64)
        scale = Scale(offset, factor, bounds)
        each = factor.float()[:, None, None, None]
        y = (plain.y - offset.float()[:, None, None, None] * plain.operator.mean_response) / each
        other = Problem(plain.operator, y, plain.noise, plain.sigma / each, scale)
        again = scale.to_file(solver.solve(other, rng=Rng(0, ["0", "1"])).x)
        assert torch.allclose(again, found.double(), atol=1e-4)


def test_gradients_flow_through_the_denoiser():
    x = torch.zeros(1, 1, 16, 16, requires_grad=True)
    for prior in PRIORS.values():
        (gradient,) = torch.autograd.grad(prior.load().predict(x, 300).x0.sum(), x)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", PRIORS)
def test_sources_draw_images_of_the_prior_of_the_same_name(name):
    made = {"gaussian_field": sources.GaussianField, "gaussian_mixture": sources.GaussianMixture,
            "sparse_blocks": sources.SparseBlocks}[name](size=16, number=3)  # fmt: skip
    stack, known = made.open(), PRIORS[name].distribution((16, 16))
    images = torch.from_numpy(stack.read_block(range(3))).double()[:, None]
    assert len(stack) == 3
    # the expected log density of a draw, within six deviations of it
    logs = known.log_density(known.sample(torch.Generator().manual_seed(2), 400))
    assert ((known.log_density(images) - logs.mean()).abs() < 6 * logs.std()).all()
    with pytest.raises(IncompatibleError):
        PRIORS[name].check((1, 1))


@pytest.mark.parametrize("name", ["power.txt", "mixture.npz", "images.npy"])
def test_a_loaded_model_keeps_the_distribution_of_its_file(name, tmp_path):
    """The file is edited between loading and the first evaluation; one loaded later is that of the edited file."""
    path = tmp_path / name
    prior = {
        "power.txt": GaussianField(spectrum=str(path)),
        "mixture.npz": GaussianMixture(file=str(path)),
        "images.npy": GaussianField(images=File(str(path))),
    }[name]

    def write(pattern: int) -> None:
        if name == "power.txt":
            np.savetxt(path, [[0.0, 1.0], [0.5, 0.1**pattern], [0.6, 0.01]][: 1 + pattern])
        elif name == "mixture.npz":
            GaussianMixture(2, 3, pattern=pattern).distribution((16, 16)).write(path)
        else:
            np.save(
                path, np.random.default_rng(pattern).normal(size=(3 + pattern, 16, 16)).cumsum(1).astype(np.float32)
            )

    z = torch.randn((1, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    write(1)
    expected, loaded = prior.distribution((16, 16)).denoise(z, 0.1), prior.load()
    digest = prior.weights_digest()
    write(2)
    edited = prior.load().denoise(z, 0.1)
    assert torch.equal(loaded.denoise(z, 0.1), expected)
    assert not torch.allclose(edited, expected, atol=1e-3)
    assert torch.equal(edited, prior.distribution((16, 16)).denoise(z, 0.1))
    assert prior.weights_digest() != digest
    path.unlink()
    assert torch.equal(loaded.denoise(z, 0.1), expected)


def test_a_mixture_of_a_file_is_read_and_decomposed_once(tmp_path, monkeypatch):
    path = tmp_path / "mixture.npz"
    GaussianMixture(2, 3).distribution((16, 16)).write(path)
    model, calls, svd = GaussianMixture(file=str(path)).load(), [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: calls.append(1) or svd(*a, **k))
    for _ in range(3):
        model.denoise(torch.zeros((1, 1, 16, 16)), 0.1)
    assert len(calls) == 1
