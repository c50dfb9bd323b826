"""Every solver with a diffusion prior: against a prior with known posterior, and their common contract."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from gaussian_model import GaussianPrior, Known
from optics import dense, live, measure, part, taken

from cryobench.core import Problem, Shape, meters
from cryobench.core.recording import recording
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.operators.ctf import Ctf
from cryobench.operators.fourier import Fourier
from cryobench.operators.identity import Identity
from cryobench.operators.masks import FourierMask
from cryobench.operators.noise import Gaussian, NoNoise
from cryobench.operators.sumpool import SumPool
from cryobench.priors.diffusion import Diffusion, DiffusionModel, NoisyImages
from cryobench.priors.network import read_levels, read_network
from cryobench.rng import Rng
from cryobench.solvers.cryosense import CryoSense
from cryobench.solvers.daps import Daps, polynomial
from cryobench.solvers.ddnm import Ddnm
from cryobench.solvers.denoising import data_step, image_noise
from cryobench.solvers.diffpir import DiffPir
from cryobench.solvers.dmplug import DmPlug, EarlyStopping, generated
from cryobench.solvers.dps import Dps
from cryobench.solvers.hqs import Hqs
from cryobench.solvers.pigdm import PiGdm
from cryobench.solvers.pinv import Pinv, minimum_norm
from cryobench.solvers.reverse import Draws, Sampler, differentiable

SIZE = (16, 16)
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
COLOURED, WHITE = GaussianPrior(), GaussianPrior(white=True)

POOL, OPTICS = SumPool(4, 4), Ctf(15000)
SETTINGS = {
    "pool exact": (POOL, NoNoise()),
    "pool noisy": (POOL, Gaussian(rel=0.2)),
    "fourier noisy": (Fourier(0.4), Gaussian(rel=0.3)),
    "ctf noisy": (OPTICS, Gaussian(rel=0.3)),
    "identity noisy": (Identity(), Gaussian(0.2)),
}
PROJECTING = [Hqs, Ddnm, DiffPir, Daps]


def rng(n: int, seed: int = 0) -> Rng:
    return Rng(seed, [str(i) for i in range(n)])


def one_image(prior: GaussianPrior, setting: str) -> tuple[Problem, torch.Tensor]:
    recipe, noise = SETTINGS[setting]
    x = prior.draw(1, seed=5)
    return measure(live(recipe, taken(1, SIZE)), x, noise), x


def rms(a: np.ndarray | torch.Tensor) -> float:
    return float((a**2).mean()) ** 0.5


# ------------------------------------------------------------------- the model, and single steps, against dense algebra


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [0, 1, 40, 333, 333.25, 700.5, 999])
def test_every_kind_of_prediction_gives_the_posterior_mean_and_the_noise(prediction, t):
    model, x = COLOURED.model(prediction), COLOURED.draw(2)
    a = float(model.alpha_between(t))
    x_t = math.sqrt(a) * x + math.sqrt(1 - a) * torch.randn(x.shape, generator=torch.manual_seed(1), dtype=x.dtype)
    eps, x0 = model.predict(x_t, t)
    C, m = COLOURED.covariance, COLOURED.mean.flatten().numpy()
    gain = math.sqrt(a) * C @ np.linalg.inv(a * C + (1 - a) * np.eye(len(C)))
    wanted = m + (x_t.flatten(1).numpy() - math.sqrt(a) * m) @ gain.T
    np.testing.assert_allclose(x0.flatten(1).numpy(), wanted, atol=1e-9)
    np.testing.assert_allclose(math.sqrt(a) * x0 + math.sqrt(1 - a) * eps, x_t, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sigma", [0.02, 0.3, 1.0, 7.0, 100.0])
def test_denoising_is_the_posterior_mean(prediction, sigma):
    z = COLOURED.draw(2) + sigma * torch.randn((2, 1, *SIZE), generator=torch.manual_seed(1), dtype=torch.float64)
    C, m = COLOURED.covariance, COLOURED.mean.flatten().numpy()
    wanted = m + (z.flatten(1).numpy() - m) @ np.linalg.solve(C + sigma**2 * np.eye(len(C)), C)
    # 1e-6: a network gets its level in float32
    np.testing.assert_allclose(COLOURED.model(prediction).denoise(z, sigma).flatten(1), wanted, atol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_data_step_is_the_posterior_mean_of_a_white_prior(setting):
    """In particular if the noise is confined to the range of A and sigma is its mean over y."""
    problem, _ = one_image(WHITE, setting)
    z = WHITE.mean[None, None].clone()
    answer = data_step(problem, minimum_norm(problem), z, 0.2**2)
    np.testing.assert_allclose(answer[0, 0].numpy(), WHITE.posterior(problem).mean, atol=1e-7)


HALF = torch.tensor([0.5], dtype=torch.float64)
"""A schedule of one level: a solver of one step then shows its step."""


def one_step(solver: Sampler, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """The result of the solver and its x_T."""
    x_T = Draws(problem, rng(1)).x_T()
    return solver.solve(problem, rng=rng(1)).x, x_T


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_of_dps_is_the_gradient_of_the_residual_norm(setting):
    problem, _ = one_image(COLOURED, setting)
    model = COLOURED.model(alphas=HALF)
    answer, x_T = one_step(Dps(Known(model), steps=1, zeta=0.7), problem)
    x_T.requires_grad_()
    x0 = model.predict(x_T, 0).x0.clamp(-1, 1)
    (gradient,) = torch.autograd.grad((problem.operator.A(x0) - problem.y).norm(), x_T)
    torch.testing.assert_close(answer, (x0 - 0.7 * gradient / problem.operator.compute_norm()).detach())


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_of_pigdm_is_the_score_of_y_under_its_assumption(setting):
    """p(y | x_t) = N(A x0, r^2 A A^T + noise): x0 + sqrt(a) r^2 d log p(y | x_t) / d x_t, r^2 = 1 - a."""
    problem, _ = one_image(COLOURED, setting)
    model, a = COLOURED.model(alphas=HALF), 0.5
    answer, x_T = one_step(PiGdm(Known(model), steps=1), problem)
    A, C = dense(problem.operator), COLOURED.covariance
    sigma2 = float(problem.sigma) ** 2
    if problem.operator.noise_in_range:
        sigma2 *= len(A) / problem.operator.rank
    x0 = model.predict(x_T, 0).x0
    misfit = (problem.y - problem.operator.A(x0)).flatten().numpy()
    J = math.sqrt(a) * C @ np.linalg.inv(a * C + (1 - a) * np.eye(len(C)))
    weighed = np.linalg.pinv((1 - a) * A @ A.T + sigma2 * A @ np.linalg.pinv(A, rcond=1e-6), rcond=1e-10)
    score = J.T @ A.T @ weighed @ misfit
    wanted = x0.flatten().numpy() + math.sqrt(a) * (1 - a) * score
    np.testing.assert_allclose(answer.flatten().numpy(), wanted, atol=1e-7)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_level_of_daps_draws_from_the_posterior_of_its_gaussian(setting):
    """p(x | x0, y) for x ~ N(x0, s^2): the mean of many draws, and their covariance in the measurements."""
    problem, _ = one_image(COLOURED, setting)
    n, s = 600, 0.3
    # one draw of x_T for all, so that x0 is the same and what differs is the draw of x
    many = Problem(problem.operator, problem.y.expand(n, -1, -1, -1), problem.noise, problem.sigma.expand(n, 1, 1, 1))
    model = COLOURED.model()
    draws = Draws(many, rng(n))
    start = Draws(problem, rng(1)).x_T().expand(n, -1, -1, -1)
    draws.x_T = lambda: start  # type: ignore[method-assign]
    solver = Daps(Known(model), steps=2, ode_steps=1, start=s, end=s, spread=1.0)
    seen: list[torch.Tensor] = []
    data = problem.operator.A
    x0 = model.denoise(s * start, s).clamp(-1, 1)
    solver.sample(many, _Recording(model, seen), draws, lambda done, of: None)  # type: ignore[arg-type]
    x = seen[1]  # what the second level was given: the draw at the first and noise of deviation s
    around = GaussianPrior(deviation=s, white=True)
    around.mean = x0[0, 0]
    posterior = around.posterior(problem)
    deviation = np.sqrt(np.diag(posterior.covariance).clip(0) + s**2).reshape(SIZE)
    assert rms((x.mean(0)[0].numpy() - posterior.mean) / deviation) < 1.2 / math.sqrt(n)
    A = dense(problem.operator)
    wanted = np.trace(A @ (posterior.covariance + s**2 * np.eye(len(posterior.covariance))) @ A.T)
    np.testing.assert_allclose(float(data(x).var(0).sum()), wanted, rtol=0.03)


class _Recording:
    """A model that records its inputs."""

    def __init__(self, model, seen: list[torch.Tensor]):
        self._model, self._seen, self.sigmas = model, seen, model.sigmas

    def denoise(self, z, sigma):
        self._seen.append(z)
        return self._model.denoise(z, sigma)


def test_levels_of_daps_fall_from_start_to_end():
    levels = polynomial(100.0, 0.1, 50)
    assert levels[0] == pytest.approx(100)
    assert levels[-1] == pytest.approx(0.1)
    np.testing.assert_allclose(np.diff(np.array(levels) ** (1 / 7), 2), 0, atol=1e-12)


def test_the_jacobian_is_per_image_and_zero_where_x0_is_clamped():
    model = COLOURED.model(alphas=HALF)
    x = COLOURED.draw(3)
    x[1] *= 30
    _, pulled_back = differentiable(model, x, 0)
    v = torch.randn(x.shape, generator=torch.manual_seed(0), dtype=x.dtype)
    together = pulled_back(v)
    for i in range(3):
        (_, x0), alone = differentiable(model, x[i : i + 1], 0)
        torch.testing.assert_close(alone(v[i : i + 1] * (x0.abs() < 1)), together[i : i + 1])


# ----------------------------------------------------------------------------------------- many samples, the posterior

COPIES = 150


@dataclass(frozen=True)
class Outcome:
    """Statistics of many results of one problem. Squares are means over pixels."""

    posterior_deviation: float
    bias: float
    monte_carlo: float
    deviation: float
    residual: float
    one: float
    mean: float
    floor: float


@cache
def outcome(solver: type, setting: str, prior: GaussianPrior) -> Outcome:
    problem, truth = one_image(prior, setting)
    posterior = prior.posterior(problem)
    expand = (COPIES, 1, 1, 1)
    many = Problem(problem.operator, problem.y.repeat(expand), problem.noise, problem.sigma.repeat(expand))
    x = solver(Known(prior.model())).solve(many, rng=rng(COPIES)).x
    mean, deviation = x.mean(0)[0].numpy(), x.std(0)[0].numpy()
    return Outcome(
        posterior_deviation=rms(posterior.deviation),
        bias=rms(mean - posterior.mean),
        monte_carlo=rms(deviation) / math.sqrt(COPIES),
        deviation=rms(deviation),
        residual=float((problem.operator.A(x) - problem.y).abs().max() / problem.y.abs().max()),
        one=float((x - truth).square().mean()),
        mean=float((x.mean(0) - truth).square().mean()),
        floor=float((Pinv().solve(problem, rng=rng(1)).x - truth).square().mean()),
    )


@pytest.mark.slow
@pytest.mark.parametrize("solver", [*PROJECTING, PiGdm], ids=lambda s: s.__name__)
def test_with_a_white_prior_projections_find_the_posterior_mean(solver):
    """The measured components carry no information on the rest, so any bias is a mistake. The bound is 5 deviations
    of the sum of squares of the Monte Carlo errors of the 240 directions that are not measured."""
    found = outcome(solver, "pool exact", WHITE)
    assert found.bias < found.monte_carlo * (1 + 5 * math.sqrt(1 / (2 * 240))) + 1e-4
    if solver is not Hqs:  # finite steps lose some of the variance; none was seen above
        assert 0.78 < found.deviation / found.posterior_deviation < 1.05


BIAS = {Hqs: 0.4, Ddnm: 0.3, DiffPir: 0.5, PiGdm: 0.25, Daps: 0.4}
"""Bounds of the bias in posterior deviations. Each takes p(x_0 | x_t) for a white Gaussian, which ours is not."""


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["pool exact", "pool noisy", "fourier noisy"])
@pytest.mark.parametrize("solver", BIAS, ids=lambda s: s.__name__)
def test_means_are_near_the_posterior_mean_and_beat_the_floor(solver, setting):
    found = outcome(solver, setting, COLOURED)
    excess = math.sqrt(max(found.bias**2 - found.monte_carlo**2, 0))
    assert excess < BIAS[solver] * found.posterior_deviation
    assert found.mean < 0.75 * found.floor


@pytest.mark.parametrize("setting", ["pool exact", "pool noisy", "fourier noisy"])
@pytest.mark.parametrize("solver", [Daps, PiGdm], ids=lambda s: s.__name__)
def test_samples_have_the_posterior_variance_and_their_mean_has_half_the_squared_error(solver, setting):
    found = outcome(solver, setting, COLOURED)
    assert 0.78 < found.deviation / found.posterior_deviation < 1.1
    # a sample's squared error is the mean's and its variance; for the exact posterior that is twice: 3 dB
    gain = 10 * math.log10(found.one / found.mean)
    assert 1.8 < gain < 4


@pytest.mark.parametrize("solver", PROJECTING, ids=lambda s: s.__name__)
def test_answers_agree_with_exact_measurements(solver):
    assert outcome(solver, "pool exact", COLOURED).residual < 1e-10


@pytest.mark.slow
def test_noise_added_to_the_end_of_the_ode_doubles_the_variance():
    """The reason for `spread` = 0: otherwise the variance of unmeasured components is about twice the correct one."""
    problem, _ = one_image(WHITE, "pool exact")
    many = Problem(problem.operator, problem.y.repeat(60, 1, 1, 1), problem.noise, problem.sigma.repeat(60, 1, 1, 1))
    variance = {
        spread: float(Daps(Known(WHITE.model()), ode_steps=10, spread=spread).solve(many, rng=rng(60)).x.var(0).mean())
        for spread in (0.0, 1.0)
    }
    wanted = rms(WHITE.posterior(problem).deviation) ** 2
    assert 0.75 < variance[0.0] / wanted < 1.05
    assert 1.6 < variance[1.0] / wanted < 2.4


@pytest.mark.parametrize("solver", [Dps, CryoSense], ids=lambda s: s.__name__)
def test_gradient_steps_beat_the_floor(solver):
    """They do not fit the measurements exactly: a gradient of fixed length overshoots by about a step."""
    problem, truth = one_image(COLOURED, "pool exact")
    many = Problem(problem.operator, problem.y.repeat(20, 1, 1, 1), problem.noise, problem.sigma.repeat(20, 1, 1, 1))
    mean = solver(Known(COLOURED.model()), steps=200).solve(many, rng=rng(20)).x.mean(0)
    floor = Pinv().solve(problem, rng=rng(1)).x
    assert rms(mean - truth) < 0.85 * rms(floor - truth)


# ----------------------------------------------------------------------------------------------------------- dmplug


def test_dmplug_is_adam_on_the_seed():
    """Without early stopping, result and losses equal those of torch's Adam with autograd through all operations."""
    problem, _ = one_image(COLOURED, "pool noisy")
    model, steps = COLOURED.model(), 12
    found = DmPlug(Known(model), steps=steps, window=steps + 1).solve(problem, rng=rng(1))
    z = Draws(problem, rng(1)).x_T().requires_grad_()
    adam, losses = torch.optim.Adam([z], lr=1e-2), []
    for _ in range(steps):
        adam.zero_grad()
        x = generated(model, z, 3)
        loss = (problem.operator.A(x) - problem.y).square().mean()
        losses.append(loss.item())
        loss.backward()
        adam.step()
    np.testing.assert_allclose(found.curves["loss"][0].numpy(), losses, rtol=1e-9)
    torch.testing.assert_close(found.x, x.detach(), rtol=0, atol=1e-9)
    assert found.info["loss"][0] == pytest.approx(losses[-1])
    assert losses[-1] < losses[0]


def test_early_stopping_follows_the_windowed_variance():
    """Against a direct implementation per image, on random walks whose steps shrink and grow again."""
    W, P, T = 5, 7, 60
    size = 0.05 + np.abs(np.array([[t - 20 - 9 * i for i in range(3)] for t in range(T)])) / 20
    walk = torch.from_numpy(np.random.default_rng(0).normal(size=(T, 3, 1, 4, 4)) * size[:, :, None, None, None])
    wanted = []
    for i in range(3):
        least, best, waited = math.inf, 0, 0
        for t in range(T):
            if t + 1 < W:
                best = t
                continue
            window = walk[t + 1 - W : t + 1, i]
            variance = float((window - window.mean(0)).square().sum(dim=(1, 2, 3)).mean())
            least, best, waited = (variance, t, 0) if variance < least else (least, best, waited + 1)
            if waited == P:
                break
        wanted.append((best, t))
    stopping, active, found = EarlyStopping(W, P), torch.arange(3), {}
    best = torch.zeros(3, dtype=torch.int64)
    for t in range(T):
        better, done = stopping.update(walk[t, active])
        best[active[better]] = t
        for i in active[done].tolist():
            found[i] = (int(best[i]), t)
        active = active[~done]
        if not len(active):
            break
        stopping.take(~done)
    assert [found[i] for i in range(3)] == wanted
    assert len({end for _, end in wanted}) == 3


def test_stopped_images_are_not_computed_and_do_not_change_the_others():
    problem, _ = contract_problem(Gaussian(rel=0.3), torch.float64)
    solver = DmPlug(Known(COLOURED.model()), steps=60, window=4, patience=3, lr=0.3)
    with meters.counting() as calls:
        whole = solver.solve(problem, rng=rng(3))
    iterations = whole.info["iterations"].tolist()
    assert len(set(iterations)) > 1
    assert whole.info["stopped"].any()
    assert calls.images[meters.NETWORK] == 3 * sum(iterations)
    assert whole.curves["loss"].shape == (3, max(iterations))
    for i in range(3):
        assert int(whole.curves["loss"][i].isfinite().sum()) == iterations[i]
        alone = solver.solve(part(problem, slice(i, i + 1)), rng=Rng(0, [str(i)]))
        assert alone.info["iterations"][0] == iterations[i]
        torch.testing.assert_close(alone.x, whole.x[i : i + 1], rtol=0, atol=1e-9)
        torch.testing.assert_close(
            problem.operator.A(whole.x).sub(problem.y).square().mean((1, 2, 3))[i], whole.info["loss"][i]
        )


# --------------------------------------------------------------------------------------------------------- contract

FEW = {
    "cryosense": (CryoSense, {"steps": 4}, 4),
    "ddnm": (Ddnm, {"steps": 4}, 4),
    "diffpir": (DiffPir, {"steps": 4}, 4),
    "dps": (Dps, {"steps": 4}, 4),
    "pigdm": (PiGdm, {"steps": 4}, 4),
    "daps": (Daps, {"steps": 3, "ode_steps": 2}, 6),
    "hqs": (Hqs, {"steps": 3}, 3),
    "dmplug": (DmPlug, {"steps": 4, "window": 3}, 12),
}
"""The solver, few steps of it, and the network evaluations they take."""
every_solver = pytest.mark.parametrize("name", FEW)
SAMPLERS = [name for name, (solver, _, _) in FEW.items() if issubclass(solver, Sampler)]


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Diffusion:
    """A random network for 16 x 16, saved and read again as a user's model is."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    torch.manual_seed(0)
    folder: Path = tmp_path_factory.mktemp("network")
    UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder)  # fmt: skip
    return Diffusion(str(folder), schedule="linear:1000", predicts="epsilon")


def few(name: str, prior, **changes):
    solver, settings, _ = FEW[name]
    return solver(prior, **(settings | changes))


def contract_problem(noise=None, dtype=torch.float32, recipe=None) -> tuple[Problem, torch.Tensor]:
    """Three images, each with its own CTF; with noise, the second image is still exact."""
    x = COLOURED.draw(3, seed=2).to(dtype)
    problem = measure(live(recipe or Ctf(), taken(3, SIZE, pixel_size=4.0), dtype), x, noise)
    if noise is None:
        return problem, x
    problem.y[1] = problem.operator.A(x)[1]
    problem.sigma[1] = 0
    return problem, x


@pytest.mark.slow
@every_solver
@pytest.mark.parametrize("noise", [None, Gaussian(rel=0.2)], ids=["exact", "noisy"])
def test_results_depend_on_the_seed_only(name, noise, prior):
    problem, _ = contract_problem(noise)
    solver = few(name, prior)
    first = solver.solve(problem, rng=rng(3)).x
    assert first.isfinite().all()
    assert torch.equal(first, solver.solve(problem, rng=rng(3)).x)
    assert torch.equal(first, solver.solve(problem, rng=rng(3, seed=1)).x) == (name == "hqs")  # hqs draws nothing


@pytest.mark.slow
@every_solver
@pytest.mark.parametrize("recipe", [None, POOL], ids=["ctf", "pool"])
@pytest.mark.parametrize("noise", [None, Gaussian(rel=0.2)], ids=["exact", "noisy"])
def test_results_do_not_depend_on_the_batch(name, recipe, noise, prior):
    """In double precision: CPUs round a batch and an image differently, and division by sqrt(a_T) magnifies that."""
    problem, _ = contract_problem(noise, torch.float64, recipe)
    folder = prior.find()
    levels = read_levels(folder.scheduler_config)
    solver = few(name, Known(DiffusionModel(read_network(folder).double(), levels)))
    whole = solver.solve(problem, rng=rng(3)).x
    for i in range(3):
        alone = solver.solve(part(problem, slice(i, i + 1)), rng=Rng(0, [str(i)])).x
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=0, atol=1e-7 * max(1.0, float(whole.abs().max())))


@every_solver
def test_float64_is_accepted(name, prior):
    problem, _ = contract_problem(None, torch.float64, POOL)
    found = few(name, prior).solve(problem, rng=rng(3)).x
    assert found.dtype == torch.float64
    assert found.isfinite().all()


@every_solver
def test_network_evaluations_progress_and_frames_are_as_stated(name, prior):
    problem, _ = contract_problem(Gaussian(rel=0.2))
    seen: list[tuple[int, int]] = []
    with meters.counting() as calls, recording(images=2, most=100) as kept:
        few(name, prior).solve(problem, rng=rng(3), progress=lambda done, of: seen.append((done, of)))
    steps = FEW[name][1]["steps"]
    assert calls.images[meters.NETWORK] == 3 * FEW[name][2]
    assert seen == [(i + 1, steps) for i in range(steps)]
    assert len(kept.frames) == steps
    assert all(image.shape == (2, *SIZE) and image.isfinite().all() for pair in kept.frames for image in pair)


@pytest.mark.parametrize("name", [name for name in FEW if FEW[name][0] in PROJECTING])
@pytest.mark.parametrize("recipe", [POOL, OPTICS], ids=["pool", "ctf"])
def test_exact_measurements_are_fitted_for_any_network(name, recipe, prior):
    problem, _ = contract_problem(None, recipe=recipe)
    x = few(name, prior).solve(problem, rng=rng(3)).x
    assert (problem.operator.A(x) - problem.y).abs().max() < 1e-4 * problem.y.abs().max()


@every_solver
def test_iterative_operators_are_supported(name, prior):
    from cryobench.operators.composed import Composed

    problem, _ = contract_problem(Gaussian(rel=0.2), recipe=Composed(POOL, Ctf()))
    assert not problem.operator.closed_form
    assert few(name, prior).solve(problem, rng=rng(3)).x.isfinite().all()


@every_solver
def test_images_that_the_network_cannot_halve_are_refused(name, prior):
    x = torch.zeros((1, 1, 21, 21))
    problem = measure(live(SumPool(3, 4), taken(1, (21, 21)), torch.float32), x)
    with pytest.raises(IncompatibleError, match="multiples of 2, got 21 x 21"):
        few(name, prior).solve(problem, rng=rng(1))


@every_solver
@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(name, steps, prior):
    with pytest.raises(ParameterError, match=f"^{name}: steps must be at least 1, got {steps}$"):
        few(name, prior, steps=steps)


@pytest.mark.parametrize(
    ("name", "field"),
    [*((name, "steps") for name in SAMPLERS if name != "daps"), ("dmplug", "ddim_steps")],
)
def test_more_steps_than_levels_are_refused(name, field, prior):
    problem, _ = contract_problem()
    with pytest.raises(ParameterError, match=r"^steps must lie between 1 and the 1000 levels of the prior, got 1001$"):
        few(name, prior, **{field: 1001}).solve(problem, rng=rng(3))


@pytest.mark.parametrize(
    ("solver", "field", "value"),
    [
        (Daps, "ode_steps", 0), (Daps, "start", 0.0), (Daps, "end", math.nan), (Daps, "spread", -0.1),
        (Dps, "zeta", -1.0), (Dps, "zeta", math.inf), (PiGdm, "eta", 1.1), (PiGdm, "eta", math.nan),
        (DmPlug, "lr", 0.0), (DmPlug, "window", 1), (DmPlug, "patience", 0), (DmPlug, "ddim_steps", 0),
        (Dps, "samples", 0), (PiGdm, "samples", 0), (Daps, "samples", 0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_in_one_line(solver, field, value):
    with pytest.raises(ParameterError, match=field) as refused:
        solver(**{field: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_give_the_mean_and_deviation_of_separate_draws(name, prior):
    problem, _ = contract_problem(Gaussian(rel=0.2))
    solver = few(name, prior, samples=3)
    seen: list[tuple[int, int]] = []
    with meters.counting() as calls:
        found = solver.solve(problem, rng=rng(3), progress=lambda done, of: seen.append((done, of)))
    assert calls.images[meters.NETWORK] == 3 * 3 * FEW[name][2]
    assert seen[-1] == (3 * solver.steps, 3 * solver.steps)
    model = prior.load()
    each = [solver.sample(problem, model, Draws(problem, rng(3), i), lambda done, of: None).double() for i in range(3)]
    assert not torch.equal(each[0], each[1])
    torch.testing.assert_close(found.x.double(), torch.stack(each).mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.deviation.double(), torch.stack(each).std(0), rtol=1e-4, atol=1e-4)
    one = few(name, prior).solve(problem, rng=rng(3))
    assert one.deviation is None
    assert (found.samples, one.samples) == (3, None)
    torch.testing.assert_close(one.x.double(), each[0], rtol=0, atol=0)


# ------------------------------------------------------------------------------- images with white noise of their own


def noisy_prior(deviation: float) -> GaussianPrior:
    """The coloured prior with white noise on its images: N(m, C + s^2 I)."""
    prior = GaussianPrior()
    prior.power = prior.power + deviation**2
    return prior


@pytest.mark.parametrize("sigma", [0.05, 0.3, 3.0])
def test_the_model_of_noisy_images_follows_from_that_of_clean_ones(sigma):
    s = torch.tensor([0.1, 0.4], dtype=torch.float64)[:, None, None, None]
    noisy = NoisyImages(COLOURED.model("v_prediction"), s)
    z = COLOURED.draw(2) + sigma * torch.randn((2, 1, *SIZE), generator=torch.manual_seed(1), dtype=torch.float64)
    for i in range(2):
        wanted = noisy_prior(float(s[i])).model().denoise(z[i : i + 1], sigma)
        torch.testing.assert_close(noisy.denoise(z, sigma)[i : i + 1], wanted, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            noisy.select(slice(i, i + 1)).denoise(z[i : i + 1], sigma), wanted, atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("t", [0, 300, 999])
def test_its_predictions_are_those_of_a_model_of_noisy_images(t):
    noisy = NoisyImages(COLOURED.model(), torch.full((2, 1, 1, 1), 0.2, dtype=torch.float64))
    x_t = torch.randn((2, 1, *SIZE), generator=torch.manual_seed(1), dtype=torch.float64)
    for ours, wanted in zip(noisy.predict(x_t, t), noisy_prior(0.2).model().predict(x_t, t), strict=True):
        torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("setting", ["pool exact", "pool noisy", "fourier noisy", "identity noisy"])
@pytest.mark.parametrize("deviation", [0.15, 0.4])
def test_the_noise_of_the_images_is_estimated_from_the_measurements(setting, deviation):
    recipe, noise = SETTINGS[setting]
    x = COLOURED.draw(24, seed=2)
    x = x + deviation * torch.randn(x.shape, generator=torch.manual_seed(3), dtype=x.dtype)
    problem = measure(live(recipe, taken(24, SIZE)), x, noise)
    found = image_noise(problem, COLOURED.model(), rng(24)).flatten()
    # an image of 16 x 16 has 64 to 256 measurements to estimate it
    assert abs(float(found.square().mean().sqrt()) / deviation - 1) < 0.25, found


def test_a_prior_of_clean_images_models_the_noise_of_the_images():
    """With the noise stated, estimated or absent, as given by the prior."""
    problem, _ = one_image(COLOURED, "pool exact")
    clean = COLOURED.model()
    for noise, kind in ((0.0, type(clean)), (0.3, NoisyImages), ("auto", NoisyImages)):
        solver = Hqs(Known(clean, noise=noise, trained_on_clean=True))  # type: ignore[arg-type]
        assert type(solver.model(problem, rng(1))) is kind
    assert type(Hqs(Known(clean, noise="auto")).model(problem, rng(1))) is type(clean)  # type: ignore[arg-type]


@dataclass(frozen=True)
class WithoutTheMean(FourierMask):
    """All frequencies but 0."""

    def draw(self, rho: float, shape: Shape, seed: int) -> torch.Tensor:
        mask = torch.ones(shape, dtype=torch.bool)
        mask[shape[0] // 2, shape[1] // 2] = False
        return mask


def test_hqs_starts_unmeasured_components_from_the_mean_of_the_prior():
    """Here the mean over the pixels, which is 0 in the least-norm solution: steps of a level far below its deviation
    leave it there."""
    prior = GaussianPrior()
    prior.mean = prior.mean - 0.5
    x = prior.draw(1, seed=5)
    problem = measure(live(Fourier(0.5, WithoutTheMean()), taken(1, SIZE)), x, None)
    wanted = prior.posterior(problem).mean
    begun, not_begun = (
        Hqs(Known(prior.model()), first=first, start=0.1, end=0.1).solve(problem, rng=rng(1)).x[0, 0].numpy()
        for first in (100.0, 0.1)
    )
    assert rms(begun - wanted) < 0.02 * rms(wanted)
    assert rms(not_begun - wanted) > 0.3 * rms(wanted)


def test_the_mean_of_the_prior_is_clamped_to_the_range_left_by_the_noise():
    """Of an image of a mean of -0.9 and noise on it that fills [-1, 1] by half, only -0.5 is plausible."""
    prior = GaussianPrior(deviation=0.01)
    prior.mean = torch.full_like(prior.mean, -0.9)
    problem = measure(live(Fourier(0.5, WithoutTheMean()), taken(1, SIZE)), prior.draw(1), None)
    filling_half = 0.5 / math.sqrt(2 * math.log(SIZE[0] * SIZE[1]))
    for noise, wanted in ((0.0, -0.9), (filling_half, -0.5), (1.0, 0.0)):
        solver = Hqs(Known(prior.model("v_prediction"), noise=noise), steps=2, end=1e-3)
        assert float(solver.solve(problem, rng=rng(1)).x.mean()) == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize(
    ("solver", "prediction", "wanted"),
    [
        (Hqs(steps=1, end=0.1), "sample", [0.1]),
        (Hqs(steps=2, end=0.1), "sample", [100, 0.1]),
        (Hqs(steps=4, first=9, start=0.9, end=0.1), "epsilon", [9, 0.9, 0.3, 0.1]),
        (Hqs(steps=4, start=0.9, end=0.1), "v_prediction", [100, 0.9, 0.3, 0.1]),
        (Hqs(steps=4, start=0.9, end=0.1), "epsilon", [1, 0.9, 0.3, 0.1]),
        (Hqs(steps=3, start=4, end=1), "epsilon", [4, 4, 1]),
    ],
)
def test_the_levels_of_hqs(solver, prediction, wanted):
    assert solver.levels(prediction) == pytest.approx(wanted)


def test_hqs_shows_a_network_every_turn_that_it_was_trained_on(monkeypatch):
    """One that errs in a direction of its own, by a ramp, then errs in each of them, and no longer in any."""
    problem, _ = one_image(COLOURED, "identity noisy")
    model, ramp = COLOURED.model(), torch.linspace(-0.1, 0.1, SIZE[0], dtype=torch.float64)[:, None].expand(SIZE)
    true = model.denoise

    def found(of_turned: bool, **settings) -> torch.Tensor:
        solver = Hqs(Known(model, trained_with_symmetries=of_turned), steps=16, start=0.2, end=0.2, **settings)  # type: ignore[arg-type]
        return solver.solve(problem, rng=rng(1)).x

    straight = found(False)
    monkeypatch.setattr(model, "denoise", lambda z, sigma: true(z, sigma) + ramp)
    turning, explicit, untrained = found(True), found(True, turns=False), found(False)
    assert torch.equal(explicit, untrained)
    assert rms(turning - straight) < 0.6 * rms(untrained - straight)
