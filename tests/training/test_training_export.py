"""The folder is a diffusers pipeline of the averaged weights, and its card describes them."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from cryobench.priors.diffusion import Diffusion
from cryobench.training import export, loop
from cryobench.training.checkpoint import State
from cryobench.training.objectives import ddpm, pipeline


@pytest.fixture
def folder(run, tmp_path):
    run(tmp_path / "out", seed=5)
    return tmp_path / "out"


def test_diffusers_loads_the_folder_as_the_same_network(folder):
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    ours = Diffusion(str(folder)).load()
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for t in (0, 500, 999):
        with torch.no_grad():
            planes = pipeline.unet(torch.nn.functional.pixel_unshuffle(x, 4), t).sample
        v = torch.nn.functional.pixel_shuffle(planes, 4)
        prediction = ours.predict(x, t)
        a = pipeline.scheduler.alphas_cumprod[t]
        torch.testing.assert_close(prediction.x0, a.sqrt() * x - (1 - a).sqrt() * v, atol=2e-5, rtol=1e-5)
        assert pipeline.scheduler.config.prediction_type == "v_prediction"
        assert float(a) == pytest.approx(ours.alpha(t), rel=1e-5)


def test_the_weights_are_the_averaged_weights_of_the_checkpoint(folder):
    state = State.load(folder)
    assert state is not None
    weights = load_file(folder / pipeline.WEIGHTS)
    assert weights.keys() == state.averaged.keys()
    assert all(torch.equal(weights[name], state.averaged[name]) for name in weights)
    assert any(not torch.equal(weights[name], state.network[name]) for name in weights)


def test_the_card_lists_data_seed_steps_and_versions(folder, run):
    card = json.loads((folder / "cryobench.json").read_text())
    of_ddpm = {"network": "tiny", "turns": True, "target": "images", "levels": "uniform"}
    assert card["settings"] == run.settings(seed=5).to_dict() | of_ddpm
    assert (card["image_shape"], card["steps"]) == ([32, 32], 8)
    assert {"python", "torch", "diffusers", "accelerate", "cryobench"} <= card["versions"].keys()
    text = (folder / "README.md").read_text()
    assert f"- `{run.data}`" in text
    assert "| seed | 5 |" in text
    assert "8 steps of 4 images" in text
    assert f"| torch | {card['versions']['torch']} |" in text


def test_weights_are_renamed_before_the_card_that_describes_them(run, tmp_path, monkeypatch):
    """So a card never describes missing weights, whenever the run is killed."""
    placed = []
    whole_file = export.whole_file

    def recording(path):
        entered = whole_file(path)

        class Recording:
            def __enter__(self):
                return entered.__enter__()

            def __exit__(self, *error):
                entered.__exit__(*error)
                placed.append(path.name)

        return Recording()

    monkeypatch.setattr(export, "whole_file", recording)
    run(tmp_path / "out", steps=1)
    assert placed[-3:] == [Path(pipeline.WEIGHTS).name, "cryobench.json", "README.md"]
    assert set(placed[:-3]) == {"config.json", "scheduler_config.json", "model_index.json"}


def test_samples_are_drawn_from_the_averaged_weights(run, tmp_path, monkeypatch):
    import matplotlib.image

    monkeypatch.undo()  # the fixture disables samples
    monkeypatch.setattr(ddpm, "SHOWN", 4)
    run(tmp_path / "out", steps=2)
    sheet = matplotlib.image.imread(tmp_path / "out" / "samples" / "step_000002.png")
    assert sheet.std() > 0.05
    assert len(list((tmp_path / "out" / "samples").iterdir())) == 1


def test_the_checkpoint_is_written_before_samples_are_drawn(run, tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Training, "_draw_samples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out")
    state = State.load(tmp_path / "out")
    assert state is not None
    assert state.step == 8
