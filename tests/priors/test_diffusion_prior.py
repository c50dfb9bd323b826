"""Diffusion priors: eps, x_0 and denoising agree with diffusers' schedulers, and what cannot be a prior is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import LINEAR, cached, contents, pipeline, unet, write

from cryobench.core import meters
from cryobench.errors import CryobenchError, DataError, IncompatibleError, ParameterError
from cryobench.priors.diffusion import Diffusion, DiffusionModel, Embedded, Folds
from cryobench.priors.network import read_levels
from cryobench.registry import installed

PREDICTIONS = ["epsilon", "sample", "v_prediction"]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
STATED: dict[str, Any] = {"schedule": "linear:1000", "predicts": "epsilon"}


@pytest.fixture(scope="module")
def network():
    return unet()


@pytest.fixture(scope="module")
def packed(tmp_path_factory, network) -> Path:
    """A pipeline on disk; tests must not change it."""
    return pipeline(tmp_path_factory.mktemp("packed"), network)


@pytest.fixture
def folder(packed, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(packed, tmp_path / "model"))


def model(network, prediction: str = "epsilon", **schedule) -> DiffusionModel:
    return DiffusionModel(network, read_levels(LINEAR | schedule), prediction)


def images(seed: int = 0, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def refused(call, kind: type[CryobenchError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def change(path: Path, **values) -> None:
    """Change a JSON file; None removes a name."""
    changed = json.loads(path.read_text()) | values
    write(path, {name: value for name, value in changed.items() if value is not None or name not in values})


# ------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_eps_and_x0_are_those_of_diffusers_at_every_level(network, prediction, schedule):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    live = model(network, prediction, beta_schedule=schedule)
    settings = {"beta_schedule": schedule, "prediction_type": prediction, "clip_sample": False}
    ddpm, ddim = DDPMScheduler(**settings), DDIMScheduler(**settings)
    ddim.set_timesteps(1000)
    x = images()
    with torch.no_grad():
        for t in (0, 1, 500, 998):
            output = network(x, t).sample
            found = live.predict(x, t)
            wanted = ddpm.step(output, t, x, generator=torch.Generator()).pred_original_sample
            assert (found.x0 - wanted).abs().max() <= 1e-6 * wanted.abs().max()
            # diffusers takes eps = (x - signal x0) / noise for v and for x_0 alike; derived from the DDIM step
            a, b = float(ddim.alphas_cumprod[t]), float(ddim.alphas_cumprod[t - 1]) if t else 1.0
            step = ddim.step(output, t, x).prev_sample
            wanted = math.sqrt(b) * found.x0 + math.sqrt(1 - b) * found.eps
            assert (step - wanted).abs().max() <= 2e-6 * max(1.0, float(found.x0.abs().max()))
            assert (math.sqrt(a) * found.x0 + math.sqrt(1 - a) * found.eps - x).abs().max() < 1e-5


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 999), st.sampled_from(PREDICTIONS))
def test_eps_and_x0_sum_to_x_t_at_any_level_and_dtype(level, prediction):
    """sqrt(a) x_0 + sqrt(1 - a) eps = x_t for any network output; float64 input gives float64 output."""
    live = model(Constant(0.3), prediction)
    x = images().double()
    found = live.predict(x, level)
    sigma = float(torch.exp(between(live.sigmas.log(), level)))
    a = 1 / (1 + sigma**2)
    assert found.x0.dtype == found.eps.dtype == torch.float64
    assert (math.sqrt(a) * found.x0 + math.sqrt(1 - a) * found.eps - x).abs().max() < 1e-6


def between(values: torch.Tensor, level: float) -> torch.Tensor:
    low = min(math.floor(level), len(values) - 2)
    return torch.lerp(values[low], values[low + 1], level - low)


class Constant:
    """Replaces a network: constant output, and records the requested levels."""

    dtype = torch.float32

    def __init__(self, value: float, **config):
        self.value, self.asked = value, []
        self.config = {"sample_size": 16, "in_channels": 1, "out_channels": 1} | config

    def to(self, *_, **__):
        return self

    def __call__(self, h, t, return_dict):
        self.asked.append(float(t))
        return (torch.full_like(h, self.value),)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 999))
def test_the_level_of_a_sigma_inverts_the_sigma_of_a_level(level):
    live = model(Constant(0.0))
    sigma = float(between(live.sigmas.log(), level).exp())
    assert live.level_of(sigma) == pytest.approx(level, abs=1e-6)


def test_the_sigmas_increase():
    live = model(Constant(0.0))
    a = live.alphas_cumprod
    assert (live.sigmas.square() - (1 - a) / a).abs().max() < 1e-9 * live.sigmas[-1] ** 2
    assert (live.sigmas.diff() > 0).all()
    assert live.T == 1000
    assert [live.level_of(float(live.sigmas[t])) for t in (0, 1, 500, 999)] == pytest.approx([0, 1, 500, 999], abs=1e-9)
    assert [live.alpha(t) for t in (-1, 0, 999)] == [1.0, float(a[0]), float(a[-1])]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoising_is_continuous_in_sigma_and_agrees_with_the_levels(network, prediction):
    live = model(network, prediction)
    z = images()
    with torch.no_grad():
        for t in (0, 300, 700):
            sigma = float(live.sigmas[t])
            at = live.denoise(z, sigma)
            assert (at - live.predict(math.sqrt(live.alpha(t)) * z, t).x0).abs().max() < 1e-4
            for near in (sigma * (1 - 1e-4), sigma * (1 + 1e-4)):
                assert (live.denoise(z, near) - at).abs().max() < 1e-2 * (1 + sigma)
        steps = [live.denoise(z, float(s)) for s in torch.linspace(0.5, 0.52, 21)]
        jumps = torch.stack([(b - a).abs().max() for a, b in pairwise(steps)])
        assert jumps.max() < 3 * jumps.median()


def test_beyond_the_schedule_denoising_uses_its_end_levels():
    live = model(constant := Constant(0.5))
    live.denoise(images(), 1e-6)
    live.denoise(images(), 1e6)
    assert constant.asked == [0.0, 999.0]


def test_without_noise_the_image_is_returned_without_a_network_evaluation():
    live = model(constant := Constant(0.5), "sample")
    with meters.counting() as counts:
        assert live.denoise(z := images(), 0.0) is z
    assert constant.asked == []
    assert not counts.images


@pytest.mark.parametrize("sigma", [-1e-9, -1.0, math.nan, math.inf])
def test_an_invalid_noise_level_is_refused(sigma):
    live = model(Constant(0.0))
    for call in (lambda: live.denoise(images(), sigma), lambda: live.level_of(sigma)):
        assert "a noise level must be zero or positive, and finite" in refused(call, ParameterError)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_images_of_the_prior_are_those_of_ddim(network, prediction):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    live, noise = model(network, prediction), images(3)
    ddim = DDIMScheduler(prediction_type=prediction, clip_sample=True, set_alpha_to_one=True)
    ddim.set_timesteps(9)  # which makes its stride 1000 // 9 = 111, that of 10 levels from 999 to 0
    x, levels = noise, list(range(999, -1, -111))
    with torch.no_grad():
        for t in levels:
            x = ddim.step(network(x, t).sample, t, x, eta=0.0, use_clipped_model_output=True).prev_sample
    assert (live.generate(noise, 10) - x).abs().max() < 1e-4


def test_generation_uses_at_most_all_levels():
    live = DiffusionModel(constant := Constant(0.0), torch.linspace(0.99, 0.01, 7))
    live.generate(images(), 50)
    assert constant.asked == [6, 5, 4, 3, 2, 1, 0]
    assert "steps must be at least 1" in refused(lambda: live.generate(images(), 0), ParameterError)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_a_schedule_that_ends_in_pure_noise_gives_finite_images(network, prediction):
    live = model(network, prediction, rescale_betas_zero_snr=True)
    assert live.alpha(live.T - 1) == 0
    x = images()
    with torch.no_grad():
        found, output = live.predict(x, 999), network(x, 999).sample
    assert torch.equal(found.x0, output if prediction == "sample" else -output)
    assert torch.equal(found.eps, x)
    assert live.generate(x, 5).isfinite().all()
    for sigma in (float(live.sigmas[998]), 1e5):
        assert live.denoise(x * sigma, sigma).isfinite().all()


@pytest.mark.parametrize(
    ("alphas", "said"),
    [
        ([0.9, 0.5, 0.0], "ends in pure noise"),
        ([0.5, 0.9], "expected a_t"),
        ([0.9, math.nan], "expected a_t"),
        ([1.0, 0.9], "expected a_t"),
        ([0.9, -0.1], "expected a_t"),
        ([], "expected a_t"),
        ([[0.9, 0.5]], "expected a_t"),
    ],
)
def test_an_invalid_schedule_is_refused(alphas, said):
    assert said in refused(lambda: DiffusionModel(Constant(0.0), torch.tensor(alphas), "epsilon"))


def test_a_network_of_several_channels_works_on_unshuffled_images():
    network = unet(sample_size=8, in_channels=4, out_channels=4)
    live = model(network)
    x = images()
    assert (live.unshuffle, live.image_shape) == (2, (16, 16))
    with torch.no_grad():
        wanted = torch.nn.functional.pixel_shuffle(network(torch.nn.functional.pixel_unshuffle(x, 2), 400).sample, 2)
        assert torch.equal(live.network(x, 400), wanted)


def test_images_need_not_be_square():
    live = model(unet(sample_size=(16, 24)))
    assert live.image_shape == (16, 24)
    assert live.predict(torch.zeros(1, 1, 16, 24), 5).x0.shape == (1, 1, 16, 24)


def test_the_estimate_is_differentiable():
    live = model(unet().requires_grad_(False))
    x = images().requires_grad_()
    live.predict(x, 500).x0.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


# ------------------------------------------------------------------------------------------------------- loading


def test_a_folder_gives_the_network_that_was_saved(packed, network):
    live = Diffusion(str(packed)).load()
    x = images()
    with torch.no_grad():
        assert torch.equal(live.network(x, 10), network(x, 10).sample)
    assert not any(parameter.requires_grad for parameter in live.unet.parameters())
    assert not live.unet.training
    assert Diffusion(str(packed)).load() is live


def test_reading_a_network_draws_no_random_numbers(folder):
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    Diffusion(str(folder)).load()
    assert torch.rand(1) == wanted


@pytest.mark.parametrize(
    "form", ["root", "sharded", "half", "both", "pickle", "old names", "module.", "_orig_mod.", "module._orig_mod."]
)
def test_the_same_network_is_read_in_every_form(tmp_path, network, form):
    from safetensors.torch import load_file, save_file

    at, pickle = tmp_path / "unet", form == "pickle"
    if form == "root":
        network.save_pretrained(tmp_path)
    elif form == "sharded":
        network.save_pretrained(at, max_shard_size="20KB")
        assert len(list(at.glob("*.safetensors"))) > 1
    elif form == "pickle":
        network.save_pretrained(at, safe_serialization=False)
        assert "give pickle=true" in refused(lambda: Diffusion(str(tmp_path)).check((16, 16)))
    else:
        network.save_pretrained(at)
    if form in ("half", "both"):
        path = tmp_path / WEIGHTS
        save_file({name: tensor.half() for name, tensor in load_file(path).items()},
                  path.with_suffix(".fp16.safetensors"))  # fmt: skip
        if form == "half":
            path.unlink()
    if form == "old names":
        path = tmp_path / WEIGHTS
        now = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        weights = load_file(path)
        for new, old in now.items():
            weights = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in weights.items()}
        assert any(".query." in name for name in weights)
        save_file(weights, path)
    if form.endswith("."):
        path = tmp_path / WEIGHTS
        save_file({form + name: tensor for name, tensor in load_file(path).items()}, path)
    prior = Diffusion(str(tmp_path), pickle=pickle, **STATED)
    prior.check((16, 16))
    live = prior.load()
    assert {parameter.dtype for parameter in live.unet.parameters()} == {torch.float32}
    x = images()
    with torch.no_grad():
        difference = (live.network(x, 10) - network(x, 10).sample).abs().max()
    assert difference < (1e-2 if form == "half" else 1e-12)


@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]
)
def test_only_the_betas_and_prediction_type_of_a_scheduler_are_used(tmp_path, folder, name):
    import diffusers.schedulers

    values = {"beta_schedule": "scaled_linear", "beta_start": 1e-3, "beta_end": 0.01, "num_train_timesteps": 300}
    scheduler = getattr(diffusers.schedulers, name)(prediction_type="v_prediction", **values)
    scheduler.save_pretrained(folder / "scheduler")
    prior = Diffusion(str(folder))
    prior.check((16, 16))
    live = prior.load()
    assert live.prediction == "v_prediction"
    torch.testing.assert_close(live.alphas_cumprod, scheduler.alphas_cumprod.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("given", [{}, {"schedule": "linear:1000"}, {"predicts": "sample"}])
def test_a_network_without_a_schedule_is_refused_unless_it_is_stated(tmp_path, network, given):
    network.save_pretrained(tmp_path)
    prior = Diffusion(str(tmp_path), **given)
    for call in (lambda: prior.check((16, 16)), prior.load, prior.weights_digest):
        message = refused(call)
        assert "has a network without a noise schedule" in message
        assert "give schedule=, such as linear:1000 or squaredcos_cap_v2:1000, and predicts=" in message


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("linear:1000", {"beta_schedule": "linear"}),
        ("squaredcos_cap_v2:500", {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500}),
        ("scaled_linear:800:0.00085:0.012", {"beta_schedule": "scaled_linear", "num_train_timesteps": 800,
                                             "beta_start": 0.00085, "beta_end": 0.012}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_a_stated_schedule_is_that_of_diffusers(tmp_path, network, schedule, values, predicts):
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    network.save_pretrained(tmp_path)
    prior = Diffusion(str(tmp_path), schedule=schedule, predicts=predicts)
    live = prior.load()
    assert live.prediction == predicts
    assert torch.equal(live.alphas_cumprod, DDPMScheduler(**values).alphas_cumprod.double())
    assert prior.details()["predicts"] == predicts
    assert prior.details()["schedule"].items() >= values.items()
    assert prior.weights_digest() != Diffusion(str(tmp_path), schedule="linear:999", predicts=predicts).weights_digest()


def test_a_stated_schedule_must_agree_with_the_scheduler(packed):
    wanted = Diffusion(str(packed)).weights_digest()
    assert Diffusion(str(packed), **STATED).weights_digest() == wanted
    for wrong, said in (
        ({"predicts": "sample"}, "prediction_type 'epsilon', but 'sample' is stated"),
        ({"schedule": "linear:500"}, "num_train_timesteps 1000, but 500 is stated"),
    ):
        assert said in refused(Diffusion(str(packed), **wrong).load)


@pytest.mark.parametrize(
    "text",
    ["", "linear", "linear:", "linear:0", "linear:x", "linear:10:0.1", "linear:10:0.2:0.1", "linear:10:0:0.1",
     "cosine:1000", "squaredcos_cap_v2:10:0.1:0.2", "linear:10:nan:0.1", "linear:10000000000", "linear:10:0.1:1"],
)  # fmt: skip
def test_an_invalid_stated_schedule_is_refused(text):
    assert "expected schedule=NAME:STEPS" in refused(lambda: Diffusion("./x", schedule=text), ParameterError)


def test_a_schedule_is_part_of_a_spec():
    registry = installed()
    made = registry.make("solvers", "hqs:prior=./x,prior.schedule=linear:1000:0.0001:0.03,prior.predicts=sample")
    assert made.prior == Diffusion("./x", schedule="linear:1000:0.0001:0.03", predicts="sample")
    assert registry.make("solvers", str(registry.spec_of(made, full=True))) == made


def saved_checkpoint(run: Path, network: Any) -> Path:
    """A training run of diffusers: a pipeline with a schedule of its own, and a checkpoint with averaged weights."""
    pipeline(run, network, beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    write(run / "cryobench.json", {"trained_on": [{"structure": "3o21", "split": "train"}]})
    network.save_pretrained(run / "checkpoint-500" / "unet")
    unet(seed=1).save_pretrained(run / "checkpoint-500" / "unet_ema")
    averaged = run / "checkpoint-500" / "unet_ema" / "config.json"
    change(averaged, decay=0.9999, optimization_step=500)
    return run


@pytest.mark.parametrize(
    ("folder", "seed", "said"),
    [
        (".", 0, []),
        ("unet", 0, ["scheduler_config.json: squaredcos_cap_v2, 1000 steps, predicts sample"]),
        ("checkpoint-500", 1, ["the weights are those of unet_ema/, not of unet/", "predicts sample"]),
        ("checkpoint-500/unet", 0, ["predicts sample"]),
        ("checkpoint-500/unet_ema", 1, ["predicts sample"]),
        ("link", 1, ["unet_ema/", "predicts sample"]),
    ],
)
def test_a_network_of_a_training_run_has_the_schedule_of_the_run(tmp_path, network, folder, seed, said):
    run = saved_checkpoint(tmp_path / "run", network)
    (run / "link").symlink_to(run / "checkpoint-500")
    prior = Diffusion(str(run / folder))
    prior.check((16, 16))
    live, wanted = prior.load(), Diffusion(str(run)).load()
    assert (live.prediction, live.alpha(500)) == ("sample", wanted.alpha(500))
    x = images()
    with torch.no_grad():
        assert torch.equal(live.network(x, 10), unet(seed=seed)(x, 10).sample)
    notes = list(prior.notes())
    assert len(notes) == bool(said)
    assert all(text in notes[0] for text in said)
    assert prior.details()["predicts"] == "sample"
    assert prior.details()["schedule"]["beta_schedule"] == "squaredcos_cap_v2"
    assert [origin["structure"] for origin in prior.trained_on()] == ["3o21"]


def test_what_is_used_is_in_the_record_and_noted_once(tmp_path, network):
    import numpy as np

    import cryobench as cb

    run = saved_checkpoint(tmp_path / "run", network)
    np.save(tmp_path / "x.npy", images().numpy()[:, 0])
    spec = f"hqs:steps=2,prior=diffusion:{run / 'checkpoint-500'}"
    with pytest.warns(UserWarning, match="the weights are those of unet_ema/") as warned:
        (record,) = cb.run(spec, "sumpool:2", data=str(tmp_path / "x.npy"), images="0:1", floor=False)
    assert len([one for one in warned if "those of unet_ema" in str(one.message)]) == 1
    (prior,) = record.problem["priors"]
    assert prior["weights"] == ["unet_ema/diffusion_pytorch_model.safetensors"]
    assert prior["schedule_file"] == "../scheduler/scheduler_config.json"
    assert (prior["predicts"], prior["schedule"]["beta_schedule"]) == ("sample", "squaredcos_cap_v2")


def test_the_schedule_of_another_network_is_not_taken(tmp_path):
    run = pipeline(tmp_path / "run", unet())
    unet(block_out_channels=(8, 8)).save_pretrained(run / "other")
    assert "without a noise schedule" in refused(lambda: Diffusion(str(run / "other")).check((16, 16)))
    unet().save_pretrained(run / "a" / "b" / "c")
    assert "without a noise schedule" in refused(lambda: Diffusion(str(run / "a" / "b" / "c")).check((16, 16)))


def test_values_that_a_scheduler_lacks_are_the_defaults_of_its_class_or_must_be_stated(folder):
    from diffusers.schedulers.scheduling_lcm import LCMScheduler

    path, prior = folder / "scheduler" / "scheduler_config.json", Diffusion(str(folder))
    write(path, {"_class_name": "DDPMScheduler"})
    assert (prior.load().T, prior.load().prediction) == (1000, "epsilon")
    write(path, {"_class_name": "LCMScheduler"})
    torch.testing.assert_close(prior.load().alphas_cumprod, LCMScheduler().alphas_cumprod.double(), rtol=1e-6, atol=0)
    for name in ({}, {"_class_name": "MyScheduler"}):
        write(path, name | {"beta_schedule": "squaredcos_cap_v2"})
        for call in (lambda: prior.check((16, 16)), prior.load):
            assert "a noise schedule without prediction_type, num_train_timesteps; give schedule=" in refused(call)
        stated = Diffusion(str(folder), schedule="squaredcos_cap_v2:100", predicts="sample")
        assert (stated.load().T, stated.load().prediction) == (100, "sample")


@pytest.mark.parametrize(
    "values", [{"timestep_type": "continuous"}, {"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 3.0}]
)
def test_a_scheduler_that_changes_the_levels_is_refused(folder, values):
    change(folder / "scheduler" / "scheduler_config.json", **values)
    for call in (lambda: Diffusion(str(folder)).check((16, 16)), Diffusion(str(folder)).load):
        assert f"with {list(values)[-1]} " in refused(call)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "ScoreSdeVeScheduler"])
def test_a_schedule_without_betas_is_refused(folder, name):
    write(folder / "scheduler" / "scheduler_config.json", {"_class_name": name, "sigma_min": 0.002, "shift": 1.0})
    for call in (lambda: Diffusion(str(folder)).check((16, 16)), Diffusion(str(folder)).load):
        assert f"has a {name}, which is not defined by betas" in refused(call)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"in_channels": 3, "out_channels": 3},
            "3 input and 3 output channels; expected 1, or r^2 of both",
        ),
        ({"out_channels": 2}, "also predicts a variance"),
        ({"in_channels": 4}, "4 input and 1 output channels"),
        ({"num_class_embeds": 10}, "class-conditional network"),
        ({"class_embed_type": "timestep"}, "class-conditional network"),
        ({"time_embedding_type": "fourier"}, "has a network with a 'fourier' time embedding"),
        ({"sample_size": 18, "down_block_types": ["DownBlock2D"] * 3}, "which its 3 levels cannot halve 2 times"),
        ({"sample_size": [16, 17]}, "expected a multiple of 2"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "has a network with the blocks SkipDownBlock2D"),
        ({"down_block_types": []}, "down_block_types []"),
        ({"sample_size": "16"}, "sample_size '16'"),
        ({"sample_size": []}, "sample_size []"),
    ],
)
def test_a_network_for_other_images_is_refused_before_it_is_read(folder, values, said):
    change(folder / "unet" / "config.json", **values)
    (folder / WEIGHTS).write_bytes(b"")
    assert said in refused(lambda: Diffusion(str(folder)).check((16, 16)))


def test_an_unknown_prediction_type_is_refused(folder):
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="flow")
    for call in (lambda: Diffusion(str(folder)).check((16, 16)), Diffusion(str(folder)).load):
        assert "prediction type 'flow'" in refused(call)


def test_another_size_gives_what_a_network_of_that_size_gives(packed, tmp_path):
    prior = Diffusion(str(packed))
    assert prior.trained_shape == (16, 16)
    for shape in ((16, 16), (32, 32), (24, 40), (6, 2)):
        prior.check(shape)
        other = unet(sample_size=shape)  # the same weights
        x = torch.randn((2, 1, *shape), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(prior.load().network(x, 10), other(x, 10).sample)
    message = refused(lambda: prior.check((15, 30)), IncompatibleError)
    assert "takes images whose sides are multiples of 2, got 15 x 30; give --size" in message
    folder = pipeline(tmp_path, unet(sample_size=(16, 24)))
    assert Diffusion(str(folder)).trained_shape == (16, 24)
    # what is refused for another reason stays refused at every size
    spoiled = pipeline(tmp_path / "flow", None, prediction_type="flow")
    for shape in ((16, 16), (32, 32)):
        assert "prediction type 'flow'" in refused(lambda shape=shape: Diffusion(str(spoiled)).check(shape))


def test_a_network_without_a_size_takes_every_side_that_its_levels_can_halve(tmp_path):
    blocks = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3,
              "block_out_channels": (8, 16, 16)}  # fmt: skip
    network = unet(sample_size=None, in_channels=4, out_channels=4, **blocks)
    prior = Diffusion(str(pipeline(tmp_path, network)))
    live, (note,) = prior.load(), prior.notes()
    assert "does not state the size of its training images" in note
    for shape in ((16, 16), (8, 24), (32, 32)):
        prior.check(shape)
        assert live.predict(torch.zeros(1, 1, *shape), 3).x0.shape[2:] == shape
    for shape in ((30, 30), (12, 16), (16, 20)):
        message = refused(lambda shape=shape: prior.check(shape), IncompatibleError)
        assert "takes images whose sides are multiples of 8" in message
        with pytest.raises(RuntimeError):
            live.predict(torch.zeros(1, 1, *shape), 3)
    assert "give --size 32 to resample" in refused(lambda: prior.check((30, 30)), IncompatibleError)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda weights: {name: weights[name] for name in list(weights)[3:]}, "3 are missing ("),
        (lambda weights: weights | {"more": torch.zeros(2)}, "1 are unexpected (more)"),
        (lambda weights: {f"ema.{name}": tensor for name, tensor in weights.items()}, "are missing ("),
        (
            lambda weights: weights | {"conv_in.bias": torch.zeros(9)},
            "1 have a wrong shape (conv_in.bias (9,) for (8,))",
        ),
        (lambda weights: weights | {"conv_in.bias": torch.full((8,), math.nan)}, "1 are not finite (conv_in.bias)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, spoil, said):
    from safetensors.torch import load_file, save_file

    save_file(spoil(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    message = refused(Diffusion(str(folder)).load)
    assert "its weights do not fit unet/config.json: " in message
    assert said in message


def test_weights_with_and_without_a_prefix_are_refused(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    save_file(weights | {"module.conv_in.bias": torch.zeros(8)}, folder / WEIGHTS)
    assert "have some names with and without a prefix" in refused(Diffusion(str(folder)).load)


def test_a_pickle_with_prefixes_is_read(tmp_path, network):
    path = pipeline(tmp_path, network) / WEIGHTS
    path.unlink()
    weights = {f"module._orig_mod.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(weights, path.with_suffix(".bin"))
    live, x = Diffusion(str(tmp_path), pickle=True).load(), images()
    with torch.no_grad():
        assert torch.equal(live.network(x, 10), network(x, 10).sample)


def test_truncated_weights_are_refused_before_any_work(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    assert "download it again" in refused(lambda: Diffusion(str(folder)).check((16, 16)))
    assert "cannot be read" in refused(Diffusion(str(folder)).load)


@pytest.mark.parametrize("values", [{"beta_schedule": "square"}, {"num_train_timesteps": 0}, {"beta_end": 2.0}])
def test_invalid_betas_are_refused(folder, values):
    change(folder / "scheduler" / "scheduler_config.json", **values)
    assert "the prior in" in refused(Diffusion(str(folder)).load)


def test_a_network_that_cannot_be_built_is_refused(folder):
    change(folder / "unet" / "config.json", down_block_types=["NoBlock2D", "DownBlock2D"])
    assert "cannot be read" in refused(Diffusion(str(folder)).load)


def test_bfloat16_on_the_cpu_is_near_float32(packed):
    exact, coarse = (Diffusion(str(packed), precision=name).load() for name in ("float32", "bfloat16"))
    x = images().double()
    with torch.no_grad():
        one, other = exact.network(x, 300), coarse.network(x, 300)
    assert other.dtype == torch.float64
    assert 0 < (one - other).abs().max() < 0.05 * one.abs().max()


# -------------------------------------------------------------------------------------------- digests and staleness


def test_the_digest_depends_on_the_content_and_not_the_location(packed, folder):
    wanted = Diffusion(str(packed)).weights_digest()
    prior = Diffusion(str(folder))
    assert prior.weights_digest() == wanted
    change(folder / "unet" / "config.json", _name_or_path=str(folder), _diffusers_version="0.1")
    assert prior.weights_digest() == wanted
    change(folder / "scheduler" / "scheduler_config.json", beta_end=0.03)
    assert prior.weights_digest() != wanted


def test_replaced_weights_are_read_again(folder):
    prior = Diffusion(str(folder))
    digest, live, x = prior.weights_digest(), prior.load(), images()
    stat = (folder / WEIGHTS).stat()
    unet(seed=1).save_pretrained(folder / "unet")
    os.utime(folder / WEIGHTS, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    other = prior.load()
    with torch.no_grad():
        assert (other.network(x, 3) - live.network(x, 3)).abs().max() > 1e-3
    assert prior.weights_digest() != digest


def test_a_live_model_outlives_its_file(folder):
    live, x = Diffusion(str(folder)).load(), images()
    before = live.predict(x, 3).x0
    path = folder / WEIGHTS
    with path.open("r+b") as file:  # in place: visible to a process that has mapped the file
        file.write(bytes(path.stat().st_size))
    assert torch.equal(live.predict(x, 3).x0, before)


def test_a_relative_folder_refers_to_the_current_folder_at_creation(packed, monkeypatch, tmp_path):
    monkeypatch.chdir(packed.parent)
    prior = Diffusion(packed.name)
    monkeypatch.chdir(tmp_path)
    prior.check((16, 16))
    assert prior.weights_digest() == Diffusion(str(packed)).weights_digest()
    assert prior == Diffusion(packed.name)  # the same text is the same recipe
    assert "is not a folder" in refused(lambda: Diffusion(packed.name).check((16, 16)))


def test_the_card_states_the_training_images(folder):
    assert list(Diffusion(str(folder)).trained_on()) == []
    write(folder / "cryobench.json", {"trained_on": [{"structure": "3o21", "split": "train"}]})
    assert list(Diffusion(str(folder)).trained_on()) == [{"structure": "3o21", "split": "train"}]


def test_planning_with_a_prior_needs_neither_diffusers_nor_the_hub(packed, monkeypatch):
    for name in ("diffusers", "huggingface_hub", "accelerate"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it now raises
    prior = Diffusion(str(packed))
    prior.check((16, 16))
    assert prior.weights_digest()
    assert list(prior.trained_on()) == []


# --------------------------------------------------------------------------------------------------- specs and the hub


def test_a_repository_in_the_cache_is_a_prior_without_a_network(packed, network, tmp_path, monkeypatch):
    import socket

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked the network"))
    cached(tmp_path, "anon202628/empiar10076-ddpm-ema-cryoem-128x128", contents(packed))
    solver = installed().make("solvers", "hqs:prior=diffusion:hf:anon202628/empiar10076-ddpm-ema-cryoem-128x128")
    solver.prior.check((16, 16))
    x = images()
    with torch.no_grad():
        assert torch.equal(solver.prior.load().network(x, 10), network(x, 10).sample)
    assert solver.prior.weights_digest() == Diffusion(str(packed)).weights_digest()


@pytest.mark.parametrize(
    ("text", "prior"),
    [
        ("./x", Diffusion("./x")),
        ("..", Diffusion("..")),
        ("/abs/x", Diffusion("/abs/x")),
        ("~/x", Diffusion("~/x")),
        ("runs/x", Diffusion("runs/x")),
        ('"/a b,c/x@y"', Diffusion("/a b,c/x@y")),
        ("embedded", Embedded()),
        ("folds", Folds()),
        ("embedded,prior.precision=float32", Embedded(precision="float32")),
        ("diffusion", Diffusion()),
        ("diffusion:hf:owner/name", Diffusion("hf:owner/name")),
        ("diffusion:hf:owner/name,prior.revision=v2,prior.pickle=true", Diffusion("hf:owner/name", "v2", True)),
        ("diffusion:/abs/x,prior.precision=float32", Diffusion("/abs/x", precision="float32")),
        ("./x,prior.precision=bfloat16", Diffusion("./x", precision="bfloat16")),
    ],
)
@pytest.mark.parametrize("solver", ["hqs", "cryosense"])
def test_a_prior_is_a_spec_a_name_or_a_folder_and_its_spec_makes_it_again(solver, text, prior):
    registry = installed()
    made = registry.make("solvers", f"{solver}:prior={text}")
    assert made.prior == prior
    for full in (False, True):
        again = str(registry.spec_of(made, full=full))
        assert registry.make("solvers", again) == made
        assert str(registry.spec_of(registry.make("solvers", again), full=full)) == again


def test_unknown_names_are_errors_that_list_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry = installed()

    def make(text: str):
        return lambda: registry.make("solvers", text)

    assert "did you mean 'embedded'?" in refused(make("hqs:prior=embeded"), CryobenchError)
    assert "prior=./" not in refused(make("hqs:prior=mine"), CryobenchError)
    (tmp_path / "mine").mkdir()
    assert "for the folder mine, write prior=./mine" in refused(make("hqs:prior=mine"), CryobenchError)
    wanted = "prior expects a DenoisingPrior, such as 'diffusion', got 'dct'"
    assert wanted in refused(make("hqs:prior=dct"), CryobenchError)
    assert "did you mean 'precision'?" in refused(make("hqs:prior=/a,prior.precison=float32"), CryobenchError)


@pytest.mark.parametrize(("source", "revision"), [("", "main"), (" ", "main"), ("hf:owner/name", " ")])
def test_an_empty_source_or_revision_is_refused(source, revision):
    assert "is empty" in refused(lambda: Diffusion(source, revision), ParameterError)
