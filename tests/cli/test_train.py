"""`cryobench train` on the command line."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from cryobench.training import loop
from cryobench.training.checkpoint import State
from cryobench.training.images import Images
from cryobench.training.objectives import ddpm

SMALL = ("--network", "tiny", "--steps", 4, "--batch", 2, "--warmup", 1, "--checkpoint-every", 2)


def test_help_lists_every_setting(cli):
    code, out, _ = cli("train", "--help")
    assert code == 0
    for option in ("--data", "--validation", "--network", "--warm-start", "--steps", "--batch", "--lr", "--warmup",
                   "--ema", "--clip", "--no-turns", "--patience", "--seed", "--checkpoint-every", "--device",
                   "--out"):  # fmt: skip
        assert option in out
    assert "--preset" not in out
    assert "the same command continues" in " ".join(out.split())


def test_a_finished_run_is_left_unchanged(cli, blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(ddpm, "SHOWN", 2)
    code, out, err = cli("train", "--data", blobs, "--out", "prior", *SMALL)
    assert (code, out) == (0, "")
    assert "training for 4 steps" in err
    assert "step 2 of 4: saved; mean loss of the last 2 steps" in err
    assert "the model is in prior; use it as prior=./prior" in err
    assert (tmp_path / "prior" / "samples" / "step_000004.png").exists()
    written = [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "prior").rglob("*"))]
    code, _, err = cli("train", "--data", blobs, "--out", "prior", *SMALL)
    assert code == 0
    assert "nothing to do: all 4 steps are done" in err
    assert [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "prior").rglob("*"))] == written
    code, _, err = cli("train", "--data", blobs, "--out", "prior", *SMALL, "--quiet")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_step_and_the_message_says_how_to_continue(cli, blobs, tmp_path, monkeypatch, number, code):
    monkeypatch.setattr(loop.Training, "_draw_samples", lambda self: None)
    batch = Images.batch

    def interrupt(self, step, *rest):
        if step == 0:
            os.kill(os.getpid(), number)
        return batch(self, step, *rest)

    before = signal.getsignal(number)
    monkeypatch.setattr(Images, "batch", interrupt)
    result = cli("train", "--data", blobs, "--out", "prior", *SMALL)
    assert result[0] == code
    assert "stopped after step 1 of 4; the same command continues from the last checkpoint in prior" in result[2]
    state = State.load(tmp_path / "prior")
    assert state is not None
    assert state.step == 1
    assert signal.getsignal(number) is before
    code, _, err = cli("train", "--data", blobs, "--out", "prior", *SMALL)
    assert code == 0
    assert "continuing after step 1 of 4" in err


def test_a_second_interrupt_stops_at_once(cli, blobs, tmp_path, monkeypatch):
    def interrupt(self, step, *rest):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Images, "batch", interrupt)
    code, _, err = cli("train", "--data", blobs, "--out", "prior", *SMALL)
    assert code == 130
    assert "stopped; the same command continues from the last checkpoint in prior" in err
    assert State.load(tmp_path / "prior") is None


def test_a_failed_run_gives_exit_code_1(cli, blobs, monkeypatch):
    monkeypatch.setattr(loop.Training, "_losses", lambda self, network, batch: batch.level.requires_grad_() * np.nan)
    code, _, err = cli("train", "--data", blobs, "--out", "prior", *SMALL)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: at step 1 the loss is nan")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("--network", "huge"),
            "unknown network 'huge'; expected one of tiny, small, medium, cryosense-128, cryosense-256",
        ),
        (("--preset", "tiny"), "--preset is now called --network; give --network tiny"),
        (("--steps", 0), "steps must be at least 1, got 0"),
        (("--network", "cryosense-128"), "the network is for images of 128 x 128, got 32 x 32"),
        (("--data", "gone.npy"), "gone.npy"),
        (("--patience", 5), "give --validation"),
        (("--validation", "odd.npy"), "training images are 32 x 32, validation images 24 x 24"),
        (("--device", "tpu"), "--device must be cpu, cuda, cuda:N or auto, got 'tpu'"),
        (("--out", "taken"), "cannot train into taken: Not a directory"),
    ],
)
def test_an_invalid_request_gives_one_line_and_exit_code_2(cli, blobs, tmp_path, given, message):
    np.save(tmp_path / "odd.npy", np.random.default_rng(0).normal(size=(2, 24, 24)).astype(np.float32))
    (tmp_path / "taken").write_text("")
    code, out, err = cli("train", "--data", blobs, "--out", "prior", *SMALL, *given)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "prior" / "checkpoint.pt").exists()


def test_the_same_images_for_training_and_validation_give_a_warning(cli, blobs, monkeypatch):
    monkeypatch.setattr(loop.Training, "_draw_samples", lambda self: None)
    monkeypatch.setattr(ddpm.Ddpm, "validated", 2)
    _, _, err = cli("train", "--data", blobs, "--validation", "./blobs.npy", "--out", "prior", *SMALL, "--quiet")
    assert err.startswith("warning: some images are used for both training and validation")
    assert err.count("\n") == 1
