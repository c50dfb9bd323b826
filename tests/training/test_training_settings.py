"""Schedules and network architectures."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel

from cryobench.errors import IncompatibleError, ParameterError
from cryobench.registry import installed
from cryobench.training.objectives.architectures import ARCHITECTURES
from cryobench.training.settings import Settings


def settings(**given) -> Settings:
    return Settings(**{"data": ("a.npy",), **given})


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_learning_rate_is_that_of_diffusers(warmup):
    ours = settings(steps=40, warmup=warmup, lr=0.3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, 40)
    theirs = []
    for _ in range(41):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    rates = [ours.learning_rate(step) for step in range(40)]
    # the warm-up is one step ahead of theirs, whose first update has rate 0
    assert rates[:warmup] == pytest.approx(theirs[1 : warmup + 1])
    assert rates[warmup:] == pytest.approx(theirs[warmup:40])
    assert max(rates) == pytest.approx(0.3)


def test_the_decay_of_the_average_is_that_of_diffusers_after_its_first_step():
    ours = settings(ema=0.9)
    theirs = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.9)
    assert [ours.decay(step) for step in range(1, 200)] == [theirs.get_decay(step + 1) for step in range(1, 200)]
    assert ours.decay(0) == 0.1  # theirs drops the initial weights at once


def test_settings_survive_a_checkpoint_and_older_checkpoints_are_read():
    ours = settings(validation=("b.npy",), patience=7, objective="noise2noise:patch=64")
    assert Settings.from_dict(ours.to_dict()) == ours
    plain = {name: value for name, value in ours.to_dict().items() if name not in ("objective", "preload", "bfloat16")}
    for old, spec in (({"network": "tiny", "turns": False, "target": "clean", "levels": "mixed"},
                       "ddpm:tiny,turns=false,target=clean,levels=mixed"),
                      ({"preset": "small", "target": "images"}, "ddpm")):  # fmt: skip
        full = str(installed().spec_of(installed().make("objectives", spec), full=True))
        assert Settings.from_dict(plain | old) == dataclasses.replace(ours, objective=full)


def test_only_durations_rate_and_intervals_may_change_in_a_continued_run():
    ours = settings(validation=("b.npy",))
    free = {"steps": 5, "lr": 1.0, "patience": 9, "validate_every": 1, "sample_every": 1, "checkpoint_every": 1,
            "preload": "ram"}  # fmt: skip
    assert ours.differences(dataclasses.replace(ours, **free)) == []
    fixed = {"data": ("c.npy",), "validation": (), "objective": "ddpm:tiny", "batch": 1, "warmup": 1, "ema": 0.5,
             "clip": 2.0, "seed": 1, "warm_start": "embedded", "bfloat16": True, "networks": "abc"}  # fmt: skip
    for name, value in fixed.items():
        assert ours.differences(dataclasses.replace(ours, **{name: value})) == [name]
    assert set(free) | set(fixed) == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be positive, got 0"),
        ({"lr": float("nan")}, "lr must be positive, got nan"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\), got 1"),
        ({"preload": "disk"}, "preload must be one of auto, none, ram, device, got 'disk'"),
        ({"data": ()}, "at least one source of images, got none; give --data"),
        ({"patience": 5}, "patience=5 requires a validation loss; give --validation"),
    ],
)
def test_invalid_settings_are_refused(given, message):
    with pytest.raises(ParameterError, match=message):
        settings(**given)


@pytest.mark.parametrize("side", [128, 256])
def test_the_published_network_is_that_of_the_paper(side):
    with torch.device("meta"):  # its structure, without the memory of its 113 million weights
        ours = ARCHITECTURES[f"cryosense-{side}"].build((side, side))
        published = UNet2DModel(
            sample_size=side, in_channels=1, out_channels=1, layers_per_block=2,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
        )  # fmt: skip
    given, expected = ({k: v for k, v in net.config.items() if not k.startswith("_")} for net in (ours, published))
    assert given == expected
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in published.named_parameters()}
    assert ARCHITECTURES[f"cryosense-{side}"].prediction == "epsilon"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cryosense-128", (64, 64), "for images of 128 x 128, got 64 x 64; resample them to 128"),
        ("cryosense-256", (128, 128), "for images of 256 x 256, got 128 x 128; resample them to 256"),
        ("small", (8, 8), "multiple of 16, got 8 x 8; resample them to 16"),
        ("small", (100, 100), "multiple of 16, got 100 x 100; resample them to 96"),
        ("tiny", (32, 48), "square images whose side is a multiple of 8, got 32 x 48"),
    ],
)
def test_images_of_an_unsupported_size_are_refused_with_a_supported_one(name, shape, message):
    with pytest.raises(IncompatibleError, match=message):
        ARCHITECTURES[name].check(shape)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_smallest_images_of_a_network_pass_through_it(name):
    side = {"tiny": 8, "small": 16}[name]
    network = ARCHITECTURES[name].build((side, side))
    planes = torch.zeros(1, 16, side // 4, side // 4)
    assert network(planes, 0, return_dict=False)[0].shape == planes.shape
