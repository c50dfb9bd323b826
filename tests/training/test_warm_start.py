"""Runs that start from the weights of a prior."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from runs import assert_same
from safetensors.torch import load_file

from cryobench.errors import DataError, IncompatibleError
from cryobench.priors.diffusion import Diffusion
from cryobench.training import export
from cryobench.training.objectives import pipeline


@pytest.fixture
def first(run, tmp_path):
    """A prior."""
    run(tmp_path / "first", seed=5)
    return tmp_path / "first"


def test_a_run_starts_from_the_weights_of_the_prior(run, first, tmp_path):
    training = run.training(tmp_path / "second", warm_start=str(first))
    weights = load_file(first / pipeline.WEIGHTS)
    for network in (training.network, training.averaged):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert (training.step, training.optimizer.state_dict()["state"]) == (0, {})


def test_a_run_continues_after_the_prior_was_deleted(run, first, tmp_path):
    whole = run(tmp_path / "whole", warm_start=str(first))
    training = run.training(tmp_path / "stopped", warm_start=str(first))
    training.run(lambda: training.step == 4)
    shutil.rmtree(first)
    assert_same(run(tmp_path / "stopped", warm_start=str(first)), whole)
    assert export.read_card(tmp_path / "stopped") == export.read_card(tmp_path / "whole")


def test_the_card_lists_the_training_images_of_the_prior(run, first, tmp_path, monkeypatch):
    """Training images of the prior are not held out for a run that starts from it."""
    ours, theirs = {"structure": "3mht", "split": "train", "seed": "0"}, {"structure": "6zu5", "split": "", "seed": "0"}
    card = json.loads((first / "cryobench.json").read_text()) | {"trained_on": [theirs, ours]}
    (first / "cryobench.json").write_text(json.dumps(card))
    monkeypatch.setattr("cryobench.training.images.Images.origins", [ours])
    run(tmp_path / "second", steps=3, warm_start=str(first))
    run(tmp_path / "third", steps=2, warm_start=str(tmp_path / "second"))
    assert Diffusion(str(tmp_path / "second")).trained_on() == [theirs, ours]
    assert Diffusion(str(tmp_path / "third")).trained_on() == [theirs, ours]
    card = export.read_card(tmp_path / "third")
    assert [earlier["steps"] for earlier in card["before"]] == [8, 3]
    assert card["before"][0]["settings"]["seed"] == 5
    text = (tmp_path / "third" / "README.md").read_text()
    assert f"Training started from the weights of `{tmp_path / 'second'}`, after 8 + 3 steps of earlier runs." in text
    assert "before" not in export.read_card(first)
    assert "Training started" not in (first / "README.md").read_text()


def test_a_prior_without_a_card_is_recorded_as_unknown(run, first, tmp_path):
    (first / "cryobench.json").unlink()
    run(tmp_path / "second", warm_start=str(first))
    assert export.read_card(tmp_path / "second")["before"] == [{"steps": None, "settings": None}]
    text = (tmp_path / "second" / "README.md").read_text()
    assert f"Training started from the weights of `{first}`. " in text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("unet/config.json", {"block_out_channels": [8, 32]}, r"block_out_channels is \[8, 32\], expected \[16, 32\]"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "predicts epsilon, expected v_prediction"),
    ],
)
def test_another_network_is_refused(run, first, tmp_path, name, value, message):
    path = first / name
    path.write_text(json.dumps(json.loads(path.read_text()) | value))
    with pytest.raises(IncompatibleError, match=message) as error:
        run(tmp_path / "second", warm_start=str(first))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "second" / "checkpoint.pt").exists()


def test_images_of_another_size_and_missing_priors_are_refused(run, first, tmp_path):
    with pytest.raises(IncompatibleError, match="was trained on images of 128 x 128, got 32 x 32"):
        run(tmp_path / "second", warm_start="embedded")
    with pytest.raises(DataError, match="is not a folder"):
        run(tmp_path / "second", warm_start="nowhere")
