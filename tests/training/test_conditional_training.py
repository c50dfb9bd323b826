"""Training `conditional` and `regression`: batches, losses from the papers' equations, and the exported network."""

from __future__ import annotations

import json

import pytest
import torch
from halves import Halves, Micrographs
from networks import film_unet

import cryobench as cb
from cryobench.core import Problem
from cryobench.errors import DataError, IncompatibleError, ParameterError
from cryobench.networks.film import preset
from cryobench.networks.refinement import TRAINING
from cryobench.operators.noise import NoNoise
from cryobench.priors.conditional import IMAGE, NOISE, SPREAD, Conditional
from cryobench.registry import installed
from cryobench.rng import Rng
from cryobench.solvers.conditional import Emdiffuse
from cryobench.solvers.conditional import Regression as RegressionSolver
from cryobench.solvers.interpolate import Interpolate
from cryobench.training import loop
from cryobench.training.objectives.conditional import ConditionalDiffusion, Regression
from cryobench.training.settings import Settings

CPU = torch.device("cpu")


class WithTruth(Micrographs):
    """Micrographs of one size whose truth is known."""

    def __init__(self, halves: Halves):
        halves._shapes = [(64, 64)] * len(halves)
        super().__init__(halves)

    @property
    def origin(self) -> dict[str, str]:
        return {"structure": "toy"}


class Unknown(Micrographs):
    """Micrographs whose truth is unknown."""

    def clean(self, index: int) -> None:
        return None


def samples(seed: int = 0, **options):
    objective = ConditionalDiffusion(patch=32, **options)
    return objective.samples([objective.examples(WithTruth(Halves()))], seed=seed, device=CPU)


def trained(out, objective: str, steps: int = 4, **changed) -> loop.Training:
    given = {"objective": objective, "steps": steps, "batch": 4, "warmup": 1, "lr": 2e-3, "checkpoint_every": 100}
    settings = Settings(data=("toy",), validation=(), **given | changed)
    run = loop.Training(settings, [WithTruth(Halves())], [], out, device=CPU)
    assert run.run()
    return run


def test_a_batch_depends_on_seed_and_number_only():
    whole = samples(turns=True).batch(5, 6)
    parts = [samples(turns=True).batch(5, 6, part) for part in (slice(0, 2), slice(2, 6))]
    for name in ("condition", "target", "noise", "level"):
        torch.testing.assert_close(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert not torch.equal(samples(seed=1).batch(5, 6).level, whole.level)


def test_levels_and_noise_have_their_distributions():
    """The share of levels above gamma is that of uniform steps: t / T at gamma_t."""
    batch = samples().batch(0, 2000)
    gammas = TRAINING.gammas()
    for t in (200, 1000, 1800):
        assert float((batch.level > gammas[t]).double().mean()) == pytest.approx(t / 2000, abs=4 * 0.5 / 2000**0.5)
    assert float(batch.noise.std()) == pytest.approx(1, abs=0.01)
    assert float(batch.noise.mean()) == pytest.approx(0, abs=0.01)


def test_patches_are_a_spread_of_deviations_wide():
    batch = samples().batch(0, 200)
    assert float(batch.condition.std()) == pytest.approx(1 / SPREAD, rel=0.05)


def test_noise_of_the_stated_deviation_is_added_to_clean_images():
    """The scale is that of the noisy image: condition minus target is noise of deviation s / sqrt(1 + s^2)."""

    class Clean(WithTruth):
        def read(self, index):
            return self._halves.truth(index)

    objective = ConditionalDiffusion(patch=32, noise=0.5)
    batch = objective.samples([objective.examples(Clean(Halves()))], seed=0, device=CPU).batch(0, 300)
    added = (batch.condition - batch.target) * SPREAD
    assert float(added.std()) == pytest.approx(0.5 / 1.25**0.5, rel=0.02)
    assert float(batch.condition.std()) == pytest.approx(1 / SPREAD, rel=0.1)
    assert abs(float((added * batch.noise).mean())) < 0.01
    for wrong in ({"noise": 0.0}, {"noise": 0.5, "target": "other"}):
        with pytest.raises(ParameterError, match="noise"):
            ConditionalDiffusion(patch=32, **wrong)


def test_an_operator_measures_the_images_and_the_floor_is_the_condition(tmp_path):
    """Against the operator and `interpolate`, on the scale of the image; then a run on the same operator."""

    class Clean(WithTruth):
        def read(self, index):
            return self._halves.truth(index)

    stack, spec = Clean(Halves(count=2, side=64)), "decimate:2@blur:1.2"
    recipe = installed().make("operators", spec)
    examples = Regression(patch=32, operator=recipe).examples(stack)
    both = examples.read(1)
    x = torch.from_numpy(stack.read(1))[None, None]
    x = (x - x.mean()) / x.std(correction=0)
    operator = cb.operator(spec, shape=(64, 64))
    problem = Problem(operator, operator.A(x), NoNoise(), torch.zeros(1, 1, 1, 1))
    torch.testing.assert_close(both[1], x[0, 0], rtol=1e-5, atol=1e-5)
    expected = Interpolate().solve(problem, rng=Rng(0, ["0"])).x[0, 0]
    torch.testing.assert_close(both[0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(examples.read(1, (slice(3, 9), slice(5, 6))), both[:, 3:9, 5:6])
    noisy = Regression(patch=32, operator=recipe, noise=0.3).examples(stack)
    torch.testing.assert_close(noisy.read(1), noisy.read(1))
    measured = (noisy.read(1) - both)[0, ::2, ::2]
    assert float(measured.std()) == pytest.approx(0.3, rel=0.1)
    other = Regression(patch=32, operator=recipe, noise=0.3).examples(Clean(Halves(count=2, side=64, seed=1)))
    clean = Regression(patch=32, operator=recipe).examples(Clean(Halves(count=2, side=64, seed=1)))
    drawn = [each.flatten() for each in ((noisy.read(1) - both)[0], (other.read(1) - clean.read(1))[0])]
    assert abs(float(torch.corrcoef(torch.stack(drawn))[0, 1])) < 0.2  # other images of the same name and number
    settings = Settings(data=("toy",), objective=f'regression:patch=32,operator="{spec}"', steps=40, batch=4, warmup=1,
                        lr=2e-3, checkpoint_every=100)  # fmt: skip
    assert loop.Training(settings, [stack], [], tmp_path / "net", device=CPU).run()
    solver = RegressionSolver(Conditional(str(tmp_path / "net")))
    assert solver.unsupported(problem) is None
    found = solver.solve(problem, rng=Rng(0, ["0"])).x
    assert (found - x).square().mean() < 0.9 * (both[0] - x).square().mean()
    other = cb.operator("decimate:4", shape=(64, 64))
    reason = solver.unsupported(Problem(other, other.A(x), NoNoise(), torch.zeros(1, 1, 1, 1)))
    assert (
        reason
        == "its network was trained for an operator with C = 4, this one has C = 16; train another with operator="
    )
    whole = Problem(cb.operator("identity", shape=(64, 64)), x, NoNoise(), torch.zeros(1, 1, 1, 1))
    wanted = "its network inverts an operator; it needs the operator that it was trained for"
    assert solver.unsupported(whole) == wanted
    with pytest.raises(ParameterError, match="noise and operator are for images without noise; leave out target=other"):
        Regression(patch=32, operator=recipe, target="other")


def test_a_training_step_is_that_of_the_equation():
    """One step of Adam on the loss || f(sqrt(gamma) x + sqrt(1 - gamma) eps, c, gamma) - eps ||^2, written here."""
    batch = samples().batch(0, 4)
    networks = film_unet(preset("tiny")), film_unet(preset("tiny"))
    objective = ConditionalDiffusion(patch=32)
    losses = objective.losses(networks[0], batch)
    g = batch.level.float()[:, None, None, None]
    noised = torch.sqrt(g) * batch.target + torch.sqrt(1 - g) * batch.noise
    output = networks[1](noised, batch.condition, batch.level)
    expected = torch.stack([torch.mean((output[j] - batch.noise[j]) ** 2) for j in range(4)])
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-7)
    for network, loss in zip(networks, (losses.mean(), expected.mean()), strict=True):
        network.zero_grad()
        loss.backward()
    before = {name: weights.detach().clone() for name, weights in networks[1].named_parameters()}
    torch.optim.Adam(networks[0].parameters(), lr=5e-5).step()
    for (name, found), own in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        gradient = own.grad.double()
        stepped = before[name].double() - 5e-5 * gradient / (gradient.abs() + 1e-8)  # the first step of Adam
        significant = gradient.abs() > 1e-6
        torch.testing.assert_close(found.double()[significant], stepped[significant], rtol=1e-5, atol=1e-6)


def test_the_loss_of_regression_is_the_squared_error():
    batch, network = samples().batch(0, 3), film_unet(preset("tiny"))
    found = Regression(patch=32).losses(network, batch)
    image = batch.condition + network(torch.zeros_like(batch.condition), batch.condition, torch.ones(3))
    torch.testing.assert_close(found, ((image - batch.target) ** 2).mean((1, 2, 3)))


def test_regression_learns_to_denoise_and_its_folder_says_what_it_is(tmp_path):
    trained(tmp_path / "net", "regression:network=tiny,patch=32", steps=60)
    model = Conditional(str(tmp_path / "net"))
    assert (model.predicts, model.patch) == (IMAGE, 32)
    assert list(model.trained_on()) == [{"structure": "toy"}]
    held_out = Halves(count=1, seed=7)
    stack = WithTruth(held_out)
    y, truth = (torch.from_numpy(image)[None, None] for image in (held_out.whole(0)[0], stack.clean(0)))
    problem = Problem(cb.operator("identity", shape=(64, 64)), y, NoNoise(), torch.zeros(1, 1, 1, 1))
    x = RegressionSolver(model).solve(problem, rng=Rng(0, ["0"])).x
    assert (x - truth).square().mean() < 0.5 * (y - truth).square().mean()


def test_conditional_networks_are_exported_and_sampled(tmp_path):
    trained(tmp_path / "net", "conditional:network=tiny,patch=32")
    model = Conditional(str(tmp_path / "net"))
    assert model.predicts == NOISE
    assert json.loads((tmp_path / "net" / "cryobench.json").read_text())["settings"]["target"] == "clean"
    y = torch.from_numpy(Halves(count=1).whole(0)[:1, :40, :40])[None]
    problem = Problem(cb.operator("identity", shape=(40, 40)), y, NoNoise(), torch.zeros(1, 1, 1, 1))
    found = Emdiffuse(model, samples=2, steps=3).solve(problem, rng=Rng(0, ["0"]))
    assert found.x.isfinite().all()
    assert found.deviation is not None


def test_a_run_starts_from_another_network_of_the_same_architecture(tmp_path):
    trained(tmp_path / "first", "conditional:network=tiny,patch=32")
    trained(tmp_path / "second", "conditional:network=tiny,patch=32", steps=2, warm_start=str(tmp_path / "first"))
    card = json.loads((tmp_path / "second" / "cryobench.json").read_text())
    assert card["before"][0]["steps"] == 4


def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path):
    unknown = Unknown(Halves())
    with pytest.raises(DataError, match=r"clean images of .* are not known; give target=other"):
        ConditionalDiffusion(patch=32).examples(unknown)
    assert len(ConditionalDiffusion(patch=32, target="other").examples(unknown)) == 3
    with pytest.raises(ParameterError, match="patch must be a multiple of 4 pixels"):
        ConditionalDiffusion(patch=30)
    with pytest.raises(ParameterError, match="unknown network 'small'; expected one of tiny, published"):
        Regression(network="small")
    trained(tmp_path / "first", "conditional:network=tiny,patch=32", steps=1)
    folder = tmp_path / "first" / "config.json"
    folder.write_text(json.dumps(json.loads(folder.read_text()) | {"base": 8}))
    with pytest.raises(IncompatibleError, match="has a different network"):
        trained(tmp_path / "second", "conditional:network=tiny,patch=32", steps=1,
                warm_start=str(tmp_path / "first"))  # fmt: skip
