"""deepinv's methods as solvers: results agree with deepinv alone, and the rules for solvers hold."""

import deepinv as dinv
import pytest
import torch
from cryobench_deepinv import as_decomposable, as_denoiser, as_physics, from_denoiser, from_physics
from cryobench_deepinv.denoisers import ModelFree
from cryobench_deepinv.plug_and_play import Dpir, Red
from cryobench_deepinv.running import PURPOSE, task_of
from cryobench_deepinv.sampling import Ddrm, DiffPir, Dps
from cryobench_deepinv.variational import TvPgd, WaveletPgd
from deepinv_small import Wiener, dense, normal, operator, part, problem, rng

import cryobench as cb
from cryobench.core import kept_draws, meters
from cryobench.core.recording import recording
from cryobench.errors import CryobenchError
from cryobench.rng import generator
from cryobench.solvers.pinv import Pinv

PRIOR = from_denoiser(Wiener())
SOLVERS = [Dps(PRIOR, steps=6), Dps(PRIOR, steps=6, guidance="annealed"), Ddrm(PRIOR, steps=6), DiffPir(PRIOR, steps=6),
           Dpir(PRIOR), Red(PRIOR, steps=6), TvPgd(steps=3, inner=10), WaveletPgd(steps=6)]  # fmt: skip
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
SETTINGS = [("sumpool:4", "none"), ("sumpool:4", "gaussian:rel=0.1"), ("fourier:0.5", "gaussian:rel=0.1"),
            ("ctf", "gaussian:rel=0.1"), ("sumpool:4,count=8@ctf", "none")]  # fmt: skip
every_setting = pytest.mark.parametrize(("spec", "noise"), SETTINGS)


# --------------------------------------------------------------------------------------------- agreement with deepinv


def blurred() -> dinv.physics.LinearPhysics:
    kernel = dinv.physics.functional.gaussian_blur(sigma=(1.0, 1.0)).double()
    return dinv.physics.BlurFFT(img_size=(1, 16, 16), filter=kernel)


def inpainted() -> dinv.physics.LinearPhysics:
    mask = (torch.rand((1, 16, 16), generator=torch.Generator().manual_seed(0)) < 0.5).double()
    return dinv.physics.Inpainting(img_size=(1, 16, 16), mask=mask)


class Dense(dinv.physics.LinearPhysics):
    """The matrix of `sumpool:4` over its norm, by dense algebra."""

    def __init__(self):
        super().__init__(img_size=(1, 16, 16))
        matrix = dense(operator("sumpool:4"))
        self.matrix = matrix / torch.linalg.matrix_norm(matrix, ord=2)

    def A(self, x, **_):
        return (x.flatten(1).double() @ self.matrix.mT).to(x.dtype).reshape(-1, 4, 4, 4)

    def A_adjoint(self, y, **_):
        return (y.flatten(1).double() @ self.matrix).to(y.dtype).reshape(-1, 1, 16, 16)

    def A_dagger(self, y, **_):
        return (torch.linalg.pinv(self.matrix) @ y.flatten(1).double().mT).mT.to(y.dtype).reshape(-1, 1, 16, 16)

    def prox_l2(self, z, y, gamma, **_):
        if torch.as_tensor(gamma).isinf():
            return z + self.A_dagger(y - self.A(z))
        gram = self.matrix.mT @ self.matrix + torch.eye(256) / gamma
        right = (self.A_adjoint(y) + z / gamma).flatten(1).double().mT
        return torch.linalg.solve(gram, right).mT.to(z.dtype).reshape(z.shape)


PHYSICS = {"blur": blurred, "inpainting": inpainted, "sumpool": Dense}
AGREEING = [(method, kind, sigma) for method in ("dps", "diffpir") for kind in PHYSICS for sigma in (0.0, 0.02)
            if (method, kind, sigma) != ("diffpir", "inpainting", 0.0)]  # fmt: skip
"""The cases that deepinv supports; the excluded one has its own test below."""


def deepinv_alone(method: str, kind: str, y: torch.Tensor, sigma: float, image: int) -> torch.Tensor:
    """deepinv on deepinv's physics with deepinv's denoiser, images in [0, 1], without the plugin."""
    physics = PHYSICS[kind]()
    physics.noise_model = dinv.physics.GaussianNoise(sigma)
    draws = generator(0, str(image), PURPOSE)
    if method == "dps":
        model = dinv.sampling.DPS(Wiener(), num_steps=13, weight=30.0, rng=draws)
        return model(y, physics)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(draws.get_state())
        model = dinv.sampling.DiffPIR(Wiener(), dinv.optim.L2(), sigma=sigma, max_iter=12, zeta=0.3, lambda_=5.0)
        return model(y, physics)


@pytest.mark.parametrize(("method", "kind", "sigma"), AGREEING)
def test_it_agrees_with_deepinv_alone(method, kind, sigma):
    """Same physics, seed and measurements. Ours are of images in [-1, 1]: y = 2 y' - A 1, with twice the noise."""
    u = (Wiener().draw(2) + 1) / 2
    physics = PHYSICS[kind]()
    y = physics.A(u) + sigma * normal(*physics.A(u).shape, seed=1)
    expected = torch.cat([deepinv_alone(method, kind, y[i : i + 1], sigma, i) for i in range(2)])
    if kind == "sumpool":  # not of unit norm, so that the plugin has to compute the norm
        A = operator("sumpool:4")
        y = y * A.compute_norm()
        sigma = sigma * A.compute_norm()
    else:
        A = from_physics(physics, (16, 16), dtype=torch.float64)
    solver = Dps(PRIOR, steps=12, weight=30.0) if method == "dps" else DiffPir(PRIOR, steps=12, zeta=0.3, lam=5.0)
    answer = cb.solve(solver, A, 2 * y - A.mean_response, sigma=2 * sigma)
    torch.testing.assert_close((answer + 1) / 2, expected.double(), rtol=1e-3, atol=2e-4)
    other = cb.solve(solver, A, 2 * y - A.mean_response, sigma=2 * sigma, seed=1)
    assert (other - answer).abs().max() > 0.01  # the effect of the seed is far above the tolerance


def test_for_exact_y_diffpir_of_deepinv_divides_zero_by_zero_and_ours_projects():
    """If A has a null space: deepinv's closed form is V (s^2 + 1 / gamma)^-1 V^T, at gamma = inf."""
    u = (Wiener().draw(1) + 1) / 2
    physics = inpainted()
    y = physics.A(u)
    assert deepinv_alone("diffpir", "inpainting", y, 0.0, 0).isnan().any()
    A = from_physics(physics, (16, 16), dtype=torch.float64)
    answer = cb.solve(DiffPir(PRIOR, steps=12), A, 2 * y - A.mean_response)
    assert answer.isfinite().all()
    # the noise of the last level remains after the projection
    assert (physics.A((answer + 1) / 2) - y).abs().max() < 0.05


def test_ddrm_agrees_with_deepinv_alone():
    """With deepinv's factorisation of inpainting and ours; in both the singular vectors are pixels."""
    sigma, u = 0.02, (Wiener().draw(1) + 1) / 2
    physics = inpainted()
    physics.noise_model = dinv.physics.GaussianNoise(sigma)
    y = physics.A(u) + sigma * physics.mask * normal(1, 1, 16, 16, seed=1)
    answers = []
    for given in (physics, None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if given is None:
                A = from_physics(inpainted(), (16, 16), dtype=torch.float64)
                A.matrices, A.block = A.physics.mask.reshape(256, 1, 1), 1  # blocks of one pixel: the same vectors
                given = as_decomposable(A, sigma)
            answers.append(dinv.sampling.DDRM(Wiener(), sigmas=[1, 0.5, 0.2, 0.05])(y.clone(), given))
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------- rules for solvers


@every_solver
@every_setting
def test_results_do_not_depend_on_the_batch(solver, spec, noise):
    whole = problem(operator(spec, images=3), Wiener().draw(3), noise)
    answer = solver.solve(whole, rng=rng(3)).x
    assert answer.shape == (3, 1, 16, 16)
    assert answer.dtype == torch.float64
    assert answer.isfinite().all()
    alone = solver.solve(part(whole, 1), rng=rng(1, first=1)).x
    torch.testing.assert_close(alone, answer[1:2], rtol=1e-4, atol=1e-4)


@every_solver
def test_it_does_not_change_y_or_the_random_state_and_depends_on_the_seed(solver):
    measured = problem(operator("sumpool:4", "float32"), Wiener().draw(2), "gaussian:rel=0.1")
    y, state = measured.y.clone(), torch.get_rng_state()
    first = solver.solve(measured, rng=rng(2)).x
    assert torch.equal(measured.y, y)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(solver.solve(measured, rng=rng(2)).x, first)
    assert first.dtype == torch.float32
    if type(solver) in (Dps, Ddrm, DiffPir):
        assert not torch.equal(solver.solve(measured, rng=rng(2, first=5)).x, first)


@every_solver
def test_steps_and_calls_are_reported(solver):
    measured, reports = problem(operator("sumpool:4"), Wiener().draw(2)), []
    with meters.counting() as tally, recording() as kept:
        solver.solve(measured, rng=rng(2), progress=lambda done, total: reports.append((done, total)))
    steps = getattr(solver, "evaluations", None) or solver.steps
    # DDRM's last call is at level 0, at which the prior is not evaluated
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert reports[-1] == (2 * steps, 2 * steps)
    if hasattr(solver, "prior"):
        assert tally.images[meters.NETWORK] == 2 * steps
        assert len(kept.frames) >= steps
    assert sum(calls for name, calls in tally.images.items() if name != meters.NETWORK) > 0


@every_solver
def test_it_stops_when_progress_raises(solver):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        solver.solve(problem(operator("sumpool:4"), Wiener().draw(1)), rng=rng(1), progress=stop)
    assert torch.equal(torch.get_rng_state(), state)


def error_of(solver, spec: str, noise: str = "none") -> float:
    x = Wiener().draw(3)
    measured = problem(operator(spec), x, noise)
    return float((solver.solve(measured, rng=rng(3)).x - x).square().mean())


@pytest.mark.parametrize("solver", [Ddrm(PRIOR, steps=30), Dpir(PRIOR, gain=10.0), Red(PRIOR, steps=30)],
                         ids=lambda solver: type(solver).__name__)  # fmt: skip
def test_with_the_exact_prior_it_is_better_than_the_floor(solver):
    assert error_of(solver, "sumpool:4", "gaussian:rel=0.05") < error_of(Pinv(), "sumpool:4", "gaussian:rel=0.05")


@pytest.mark.parametrize("kind", [Dps, Ddrm, DiffPir])
def test_several_draws_have_their_own_random_numbers_and_give_mean_and_deviation(kind):
    measured = problem(operator("sumpool:4"), Wiener().draw(2))
    with kept_draws.keeping():
        found = kind(PRIOR, steps=6, samples=3).solve(measured, rng=rng(2))
    draws = found.draws
    assert draws is not None
    assert found.samples == draws.shape[1] == 3
    torch.testing.assert_close(draws[:, 0], kind(PRIOR, steps=6).solve(measured, rng=rng(2)).x)
    torch.testing.assert_close(found.x, draws.mean(dim=1))
    torch.testing.assert_close(found.deviation, draws.std(dim=1))
    assert (draws[:, 1:] - draws[:, :1]).abs().amax(dim=(2, 3, 4)).min() > 1e-3


def test_samples_are_closer_than_a_draw_from_the_prior():
    """A draw has a squared error of twice the prior's variance. With deepinv's default weight DPS nearly ignores y."""
    unmeasured = 2 * 4 * float(Wiener().power.mean())
    assert error_of(DiffPir(PRIOR, steps=30), "sumpool:4") < 0.5 * unmeasured
    assert error_of(Dps(PRIOR, steps=30, weight=100.0), "sumpool:4") < 0.5 * unmeasured
    assert error_of(Dps(PRIOR, steps=30, weight=1.0), "sumpool:4") > 0.7 * unmeasured


@pytest.mark.parametrize("solver", [TvPgd(steps=20, inner=50, lam=1e-3), WaveletPgd(steps=60, lam=1e-3, family="haar")],
                         ids=repr)  # fmt: skip
def test_proximal_gradient_descent_is_better_than_the_floor(solver):
    """On a piecewise constant image."""
    x = -torch.ones((1, 1, 16, 16), dtype=torch.float64)
    x[..., 4:12, 4:12], x[..., 6:8, 8:12] = 0.5, 1.0
    measured = problem(operator("sumpool:4"), x)
    error, floor = ((s.solve(measured, rng=rng(1)).x - x).square().mean() for s in (solver, Pinv()))
    assert error < floor


@pytest.mark.parametrize(
    "solver", [TvPgd(steps=40, inner=60, lam=0.01), WaveletPgd(steps=40, lam=0.01, family="haar")], ids=repr
)
def test_proximal_gradient_descent_reaches_a_minimum(solver):
    """No step from the result in any of several directions decreases 1/2 ||A u - y||^2 + lam R(u)."""
    x = Wiener().draw(1)
    measured = problem(operator("fourier:0.5"), x, "gaussian:rel=0.05")
    task = task_of(measured, 0)
    physics, prior = task.physics, solver.regulariser()

    def objective(u: torch.Tensor) -> float:
        value = prior.fn(u)
        return float(0.5 * (physics.A(u) - task.y).square().sum() + solver.lam * value.sum())

    u = (solver.solve(measured, rng=rng(1)).x + 1) / 2
    minimum = objective(u)
    directions = [task.start - u, (x + 1) / 2 - u, *(0.1 * normal(1, 1, 16, 16, seed=seed) for seed in range(8))]
    assert all(objective(u + step * d) > minimum - 1e-5 for d in directions for step in (0.01, -0.01, 0.1))
    assert objective(task.start) > minimum


def test_the_task_is_for_images_in_0_to_1_and_physics_of_unit_norm():
    x = Wiener().draw(2)
    A = operator("sumpool:4")
    task = task_of(problem(A, x, "gaussian:0.5"), 1)
    assert float(task.physics.compute_sqnorm(x)) == pytest.approx(1)
    assert task.sigma == pytest.approx(0.5 / 2 / A.compute_norm())
    exact = task_of(problem(A, x), 1)
    torch.testing.assert_close(exact.y, exact.physics.A((x[1:] + 1) / 2))


# -------------------------------------------------------------------------------------------------------- limitations


def test_ddrm_skips_operators_without_a_factorisation():
    (record,) = cb.run("deepinv_ddrm:prior=deepinv_denoiser,prior.source=median,steps=2", "sumpool:16@deepinv_blur",
                       images="0", floor=False)  # fmt: skip
    assert record.status == "skipped"
    assert "no known singular value decomposition" in record.reason
    assert "\n" not in record.reason


def test_ddrm_of_deepinv_requires_an_svd():
    """`as_physics` is therefore not sufficient for it."""
    physics = as_physics(operator("sumpool:4"))
    with pytest.raises(AttributeError, match="mask"):
        dinv.sampling.DDRM(as_denoiser(PRIOR), sigmas=[1, 0])(physics.A(normal(1, 1, 16, 16)), physics)


def test_ddrm_of_deepinv_draws_half_the_variance():
    """At the first level, with nothing measured."""
    inputs = []

    class Recorder(dinv.models.Denoiser):
        def forward(self, x, sigma, **_):
            inputs.append((float(x.var()), float(sigma)))
            return x

    physics = dinv.physics.DecomposablePhysics(mask=torch.zeros(1, 1, 200, 200))
    with torch.random.fork_rng(devices=[]):
        dinv.sampling.DDRM(Recorder(), sigmas=[1.0])(torch.zeros(1, 1, 200, 200), physics)
    assert inputs == [(pytest.approx(0.5, rel=0.03), 1.0)]


def test_dpir_of_deepinv_is_undefined_without_noise():
    """`deepinv_dpir` therefore uses a minimum noise level."""
    levels, _, _ = dinv.optim.dpir.get_DPIR_params(0.0)
    assert levels[-1].isnan()


def test_images_that_the_network_cannot_halve_are_refused_before_any_work():
    with pytest.raises(CryobenchError, match="multiples of 16, got 24 x 24"):
        cb.solve("deepinv_diffpir", cb.operator("sumpool:4", shape=(24, 24)), torch.zeros(1, 4, 6, 6))


SPECS = ["deepinv_dps", "deepinv_ddrm", "deepinv_diffpir", "deepinv_dpir", "deepinv_red", "deepinv_tv_pgd:2,inner=5",
         "deepinv_wavelet_pgd:2"]  # fmt: skip
MEDIAN = "prior=deepinv_denoiser,prior.source=median"


@pytest.mark.parametrize("spec", SPECS)
def test_it_runs_by_name(spec):
    if "pgd" not in spec:
        spec += f":{MEDIAN}" + (",steps=2" if "dpir" not in spec else "")
    (record,) = cb.run(spec, "sumpool:16", images="0", floor=False)
    assert record.status == "ok", record.reason
    assert record.counters["operator_calls"] > 0
    assert record.values["psnr"][0] == record.values["psnr"][0]
    assert cb.solver(record.solver) == cb.solver(spec)


INVALID = ["deepinv_dps:steps=1", "deepinv_dps:weight=-1", "deepinv_ddrm:eta=2", "deepinv_ddrm:samples=0",
           "deepinv_diffpir:zeta=-1", "deepinv_red:lam=0", "deepinv_dpir:gain=0", "deepinv_tv_pgd:0",
           "deepinv_tv_pgd:lam=-1", "deepinv_tv_pgd:inner=0", "deepinv_wavelet_pgd:family=nothing",
           "deepinv_wavelet_pgd:level=0"]  # fmt: skip


@pytest.mark.parametrize("spec", INVALID)
def test_invalid_parameters_are_refused(spec):
    with pytest.raises(CryobenchError, match="deepinv"):
        cb.solver(spec)


def test_model_free_denoisers_work_in_every_method():
    measured = problem(operator("sumpool:4"), Wiener().draw(1))
    for method in (Dps, Ddrm, DiffPir, Red):
        assert method(ModelFree("median"), steps=3).solve(measured, rng=rng(1)).x.isfinite().all()
