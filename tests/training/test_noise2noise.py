"""Training denoisers: pairs of patches, the validation loss, where data are kept, and the exported network."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from halves import Halves, Micrographs
from runs import assert_same, forked, printed

from cryobench.errors import CryobenchError, DataError, IncompatibleError, ParameterError
from cryobench.numerics.symmetry import transformed
from cryobench.priors.denoiser import Denoiser
from cryobench.sources.stacks import File
from cryobench.training import export, log, loop, patches
from cryobench.training.checkpoint import State
from cryobench.training.examples import PairExamples, StackExamples
from cryobench.training.objectives.restoration import Noise2Noise, Supervised
from cryobench.training.patches import Pair, Patches, measured_rows
from cryobench.training.preload import Kept, choose_place
from cryobench.training.settings import Settings

CPU = torch.device("cpu")
SMALL = "noise2noise:network=tiny,patch=32"


@dataclasses.dataclass
class Run:
    """A run of 6 steps on small micrographs, with a checkpoint every 2."""

    halves: Halves

    def training(self, out: Path, **changed) -> loop.Training:
        given = {"objective": SMALL, "steps": 6, "batch": 2, "warmup": 1, "lr": 1e-3, "checkpoint_every": 2,
                 "validate_every": 3}  # fmt: skip
        validation = changed.pop("held_out", None)
        names = {"data": ("halves",), "validation": () if validation is None else ("others",)}
        settings = Settings(**names | given | changed)
        others = [] if validation is None else [Micrographs(validation)]
        return loop.Training(settings, [Micrographs(self.halves)], others, out, device=CPU)

    def __call__(self, out: Path, **changed) -> State:
        assert self.training(out, **changed).run()
        state = State.load(out)
        assert state is not None
        return state


@pytest.fixture
def run(monkeypatch) -> Run:
    monkeypatch.setattr(loop.Training, "_draw_samples", lambda self: None)
    monkeypatch.setattr(Noise2Noise, "validated", 4)
    return Run(Halves())


def pairs(halves: Halves, *, seed: int = 0, turns: bool = False, swap: bool = False, side: int = 32) -> Patches:
    return Patches(
        [PairExamples(Micrographs(halves))], side=side, seed=seed, turns=turns, swap=swap, device=CPU, of="t"
    )


# ------------------------------------------------------------------------------------------------------ batches


def test_a_pair_is_a_window_of_both_halves_on_the_scale_of_the_input():
    halves = Halves(count=1, noise=(1.0, 2.0))
    whole = halves.whole(0).astype(np.float64)
    mean, deviation = whole[0].mean(), whole[0].std()
    batch = pairs(halves).batch(0, 16)
    places = set()
    for a, b in zip(batch.input[:, 0].numpy(), batch.target[:, 0].numpy(), strict=True):
        found = np.argwhere(np.isclose(whole[0], a[0, 0] * deviation + mean, atol=1e-4))
        (place,) = [(y, x) for y, x in found if whole[0][y : y + 32, x : x + 32].shape == (32, 32)
                    and np.allclose(whole[0][y : y + 32, x : x + 32], a * deviation + mean, atol=1e-3)]  # fmt: skip
        y, x = place
        np.testing.assert_allclose(whole[1][y : y + 32, x : x + 32], b * deviation + mean, atol=1e-3)
        places.add((int(y), int(x)))
    assert len(places) == 16


def test_exchanged_halves_take_the_scale_of_the_other_half():
    halves = Halves(count=1, noise=(0.1, 3.0))
    plain, swapped = pairs(halves).batch(0, 32), pairs(halves, swap=True).batch(0, 32)
    exchanged = ~(plain.input == swapped.input).flatten(1).all(1)
    assert 6 < int(exchanged.sum()) < 26
    whole = halves.whole(0).astype(np.float64)
    first, second = ((half.mean(), half.std()) for half in whole)
    a = plain.target[exchanged].double() * first[1] + first[0]
    torch.testing.assert_close(swapped.input[exchanged].double(), (a - second[0]) / second[1], atol=1e-5, rtol=1e-5)


def test_turns_move_both_patches_together_and_take_all_eight():
    halves = Halves(count=1)
    plain, turned = pairs(halves).batch(0, 64), pairs(halves, turns=True).batch(0, 64)
    kinds = set()
    for j in range(64):
        (kind,) = [k for k in range(8) if torch.equal(transformed(plain.input[j], k), turned.input[j])]
        assert torch.equal(transformed(plain.target[j], kind), turned.target[j])
        kinds.add(kind)
    assert kinds == set(range(8))


@pytest.mark.parametrize("processes", [2, 3])
def test_a_batch_does_not_depend_on_the_number_of_processes_or_on_earlier_ones(processes):
    whole, share = pairs(Halves(), turns=True, swap=True).batch(5, 6), 6 // processes
    fresh = pairs(Halves(), turns=True, swap=True)
    parts = [fresh.batch(5, 6, slice(k * share, (k + 1) * share)) for k in range(processes)]
    assert torch.equal(torch.cat([part.input for part in parts]), whole.input)
    assert torch.equal(torch.cat([part.target for part in parts]), whole.target)
    assert not torch.equal(pairs(Halves(), seed=1, turns=True, swap=True).batch(5, 6).input, whole.input)


def test_patches_come_from_everywhere():
    """All places of all micrographs, the first and the last row and column among them."""
    halves = Halves(count=2, side=36)
    seen = set()
    halves.read = lambda index, window=None: (  # type: ignore[method-assign]
        seen.add((index, window[0].start, window[1].start)) if window[0].stop - window[0].start == 32 else None,
        halves.whole(index)[(slice(None), *window)],
    )[1]
    pairs(halves).batch(0, 5000)
    shapes = [halves.shape(index) for index in range(2)]
    assert seen == {(i, y, x) for i, (h, w) in enumerate(shapes) for y in range(h - 31) for x in range(w - 31)}


def test_the_scale_of_a_large_micrograph_is_that_of_rows_all_over_it(monkeypatch):
    assert measured_rows(100, 200) == [slice(0, 100)]
    rows = measured_rows(7420, 7676)
    assert (rows[0].start, rows[-1].stop) == (0, 7420)
    assert 0.9 * 2**22 < 7676 * sum(part.stop - part.start for part in rows) <= 2**22
    gaps = np.diff([part.start for part in rows])
    assert gaps.min() >= gaps.max() - 1 > 16
    monkeypatch.setattr(patches, "MEASURED", 2**14)
    halves = Halves(count=1, side=256)
    whole = halves.whole(0)
    batch = pairs(halves).batch(0, 1)
    assert halves.read_pixels <= 2**14 + 32 * 32
    (y, x) = np.argwhere(np.isclose((whole[0] - whole[0].mean()) / whole[0].std(), batch.input[0, 0, 0, 0], atol=0.05))[
        0
    ]
    assert (y, x) != (None, None)


def test_unusable_micrographs_are_named_in_one_line():
    halves = Halves()
    with pytest.raises(DataError, match=r"micrograph mic00. of halves is .* smaller than a patch of 128 x 128"):
        pairs(halves, side=128).batch(0, 4)
    halves.whole = lambda index: np.full((2, *halves.shape(index)), 3, np.float32)  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"micrograph mic00. of halves is constant or not finite"):
        pairs(halves).batch(0, 1)
    with pytest.raises(ParameterError, match=r"patch must be a multiple of 16 pixels .* got 40; give 32"):
        Noise2Noise(patch=40)
    with pytest.raises(ParameterError, match="unknown network 'cryosense-128'; expected one of tiny, small, published"):
        Noise2Noise(network="cryosense-128")


def test_a_source_without_halves_or_truth_is_refused(blobs):
    stack = File(str(blobs)).open()
    with pytest.raises(
        DataError, match=r"blobs\.npy has one image of each specimen; .* give micrographs in two halves"
    ):
        Noise2Noise().examples(stack)
    with pytest.raises(DataError, match=r"the clean images of blobs\.npy are not known"):
        Supervised().examples(stack)


# --------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize("noise", [(1.0, 1.0), (1.0, 3.0), (3.0, 1.0)])
def test_the_validation_loss_estimates_the_error_to_the_truth(noise):
    """For any network, here a blur, and however noisy the other half is."""
    halves = Halves(count=4, side=256, noise=noise)
    kernel = torch.ones(1, 1, 5, 5) / 25

    def network(x):
        return torch.nn.functional.conv2d(x, kernel, padding=2)

    off, losses, errors, raw = [], [], [], []
    for index in range(4):
        truth, whole = halves.truth(index), halves.whole(index)
        mean, deviation = whole[0].mean(), whole[0].std()
        a, b, s = (torch.from_numpy((image - mean) / deviation)[None, None] for image in (*whole, truth))
        f = network(a)
        losses.append(float(Noise2Noise().validation_losses(network, Pair(a, b))))
        errors.append(float((f - s).square().mean()))
        raw.append(float((f - b).square().mean()))
        off.append(a * b - 2 * f * b - s * s + 2 * f * s)  # of each pixel, with independent noise
    pixels = torch.cat([each.flatten() for each in off]).double()
    deviation = float(pixels.std()) / len(pixels) ** 0.5
    assert abs(np.mean(losses) - np.mean(errors)) < 4 * deviation
    assert np.mean(raw) - np.mean(errors) > 20 * deviation  # the training loss is far from it


# ---------------------------------------------------------------------------------------------- where data are kept


@pytest.mark.parametrize("objective", [SMALL, "supervised:patch=32", "ddpm:tiny"])
def test_the_weights_do_not_depend_on_where_the_data_are_kept(run, tmp_path, objective):
    if not objective.startswith("noise2noise"):
        run.halves._shapes = [(48, 48)] * 3  # a stack of images of one shape
    states = {place: run(tmp_path / place, objective=objective, preload=place) for place in ("none", "ram", "device")}
    assert_same(states["none"], states["ram"])
    assert_same(states["none"], states["device"])


def test_data_in_memory_are_read_once_and_streamed_ones_only_as_needed(run, tmp_path):
    pixels = sum(h * w for h, w in map(run.halves.shape, range(3)))
    run(tmp_path / "ram", preload="ram")
    assert run.halves.read_pixels == pixels
    run.halves.read_pixels = 0
    run(tmp_path / "none", preload="none")
    of_patches = 7 * 2 * 32 * 32  # of the steps, and of the check of the last checkpoint
    assert run.halves.read_pixels <= pixels + of_patches  # all of each once, for its scale


def test_a_finished_run_reads_nothing(run, tmp_path):
    run(tmp_path / "out", preload="ram")
    run.halves.read_pixels = 0
    run(tmp_path / "out", preload="ram")
    assert run.halves.read_pixels == 0


@pytest.mark.slow
@pytest.mark.parametrize("preload", ["none", "ram"])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(run, tmp_path, preload):
    held_out = Halves(count=2, seed=7)
    long = {"steps": 12, "held_out": held_out, "preload": preload}
    whole = run(tmp_path / "whole", **long | {"preload": "ram"})
    out, step = tmp_path / "killed", random.randint(2, 8)
    child = forked(lambda: run(out, **long), tmp_path / "output.txt")
    path = out / log.NAME
    while child.is_alive() and not (path.exists() and path.read_text().count("\n") > step):
        time.sleep(0.001)
    child.kill()
    child.join()
    assert child.exitcode == -9, printed(tmp_path / "output.txt")
    assert_same(run(out, **long), whole)
    assert path.read_text() == (tmp_path / "whole" / log.NAME).read_text()
    assert {p.name for p in out.rglob("*")} == {p.name for p in (tmp_path / "whole").rglob("*")}


def test_the_place_is_chosen_by_size_and_free_memory(monkeypatch):
    gib = 2**30
    monkeypatch.setattr("cryobench.training.preload._free_memory", lambda: 8 * gib)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * gib, 0))
    cuda = torch.device("cuda")
    assert choose_place("auto", gib, 10 * gib, CPU) == "ram"
    assert choose_place("auto", 5 * gib, 10 * gib, CPU) == "none"  # more than half
    assert choose_place("auto", gib, gib // 2, CPU) == "none"  # the run needs less than it would read
    assert choose_place("auto", gib, 10 * gib, cuda) == "device"
    assert choose_place("auto", 3 * gib, 10 * gib, cuda) == "ram"
    assert choose_place("none", 1, 10 * gib, cuda) == "none"
    assert choose_place("device", gib, 0, CPU) == "ram"
    for preload, device in (("ram", CPU), ("device", cuda)):
        with pytest.raises(
            ParameterError, match=rf"--preload {preload} needs 9.66 GB, but .* free; give --preload none"
        ):
            choose_place(preload, 9 * gib, 0, device)


def test_the_memory_of_streamed_data_does_not_depend_on_their_number():
    """A stack of 10^8 micrographs of 57 million pixels: nothing is read or listed but what is drawn."""
    halves = Halves(count=1, side=128)
    halves._shapes = type("Many", (), {"__len__": lambda self: 10**8, "__getitem__": lambda self, i: (128, 128)})()
    batch = pairs(halves).batch(3, 4)
    assert batch.input.shape == (4, 1, 32, 32)


def test_an_error_of_a_reading_thread_ends_the_run(run, tmp_path):
    read = run.halves.read

    def failing(index, window=None):
        if index == 1:
            raise DataError("mic001 is gone")
        return read(index, window)

    run.halves.read = failing
    with pytest.raises(DataError, match="mic001 is gone"):  # what was trained before is kept
        run.training(tmp_path / "out", preload="none", steps=50).run()
    run.halves.read = read
    run(tmp_path / "out", preload="none", steps=50 if State.load(tmp_path / "out") else 6)


def test_kept_examples_are_the_examples():
    examples = PairExamples(Micrographs(Halves()))
    kept, window = Kept(PairExamples(Micrographs(Halves()))), (slice(3, 20), slice(5, 9))
    for loaded, index in itertools.product((False, True), range(3)):
        if loaded:
            kept.keep(CPU)
            kept.load()
        assert torch.equal(kept.read(index), examples.read(index))
        assert torch.equal(kept.read(index, window), examples.read(index)[:, 3:20, 5:9])
        assert kept.digests(index) == examples.digests(index)
        assert (kept.name(index), kept.shape(index)) == (examples.name(index), examples.shape(index))
    assert kept.nbytes == sum(2 * 4 * h * w for h, w in map(Halves().shape, range(3)))
    stack = StackExamples(Micrographs(Halves(count=1)), clean=True)
    assert stack.nbytes == 2 * 4 * 96 * 112
    assert torch.equal(stack.read(0, window), stack.read(0)[:, 3:20, 5:9])


# ------------------------------------------------------------------------------------------------------- result


def test_the_result_is_a_network_with_a_card_that_lists_the_halves_it_has_seen(run, tmp_path):
    held_out = Halves(count=1, seed=7)
    state = run(tmp_path / "net", held_out=held_out, steps=3, batch=1)
    model = Denoiser(str(tmp_path / "net"))
    weights = model.load().state_dict()
    assert weights.keys() == state.averaged.keys()
    assert all(torch.equal(weights[name], state.averaged[name]) for name in weights)
    card = json.loads((tmp_path / "net" / "cryobench.json").read_text())
    training = run.training(tmp_path / "another", steps=3, batch=1)
    used = {index for _, index in training.samples._chosen(0, 3)}  # type: ignore[attr-defined]
    assert 0 < len(used) < 3 or used == {0, 1, 2}
    assert card["halves"] == sorted(digest for index in used for digest in Halves().digests(index))
    assert set(run.halves.digested) == used
    assert not set(held_out.digests(0)) & set(card["halves"])
    assert [origin["half"] for origin in model.trained_on()] == card["halves"]
    assert (card["settings"]["network"], card["settings"]["patch"], card["steps"]) == ("tiny", 32, 3)
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert (config["channels"], config["radius"], config["stride"]) == ([16, 32, 64, 128], 103, 16)
    text = (tmp_path / "net" / "README.md").read_text()
    assert text.startswith("# A denoising network for micrographs\n")
    assert "3 steps of 1 patches of 32 x 32 pixels" in text
    assert "n2n:model=./FOLDER" in text


def test_training_reduces_the_error_to_the_truth(run, tmp_path):
    """By far below that of the noisy image, which it has never seen without noise."""
    halves, held_out = Halves(count=6, side=128), Halves(count=2, side=128, seed=9)
    state = Run(halves)(tmp_path / "net", held_out=held_out, steps=60, batch=4, lr=2e-3, warmup=5, validate_every=60,
                        checkpoint_every=60, ema=0.9)  # fmt: skip
    truth, (a, _) = held_out.truth(0), held_out.whole(0)
    mean, deviation = a.mean(), a.std()
    y, s = (torch.from_numpy((image - mean) / deviation)[None, None] for image in (a, truth))
    y, s = y[..., :128, :112], s[..., :128, :112]
    with torch.no_grad():
        error = float((Denoiser(str(tmp_path / "net")).load()(y) - s).square().mean())
    assert error < 0.4 * float((y - s).square().mean())
    assert state.best == pytest.approx(error, rel=0.5)


def test_bfloat16_rounds_the_steps_and_continues(run, tmp_path):
    """The losses are those of float32 up to the 8 bits of bfloat16, and the state stays in float32."""
    exact, rounded = run(tmp_path / "exact"), run(tmp_path / "rounded", bfloat16=True)
    losses = [pd.read_csv(tmp_path / name / "loss.csv").loss.dropna().to_numpy() for name in ("exact", "rounded")]
    difference = np.abs(losses[1] / losses[0] - 1)
    assert difference.max() < 2**-6
    assert difference.min() > 0
    assert all(tensor.dtype == torch.float32 for tensor in rounded.network.values())
    assert not torch.equal(exact.network["last.weight"], rounded.network["last.weight"])
    steps = iter([False, False, True])
    assert not run.training(tmp_path / "stopped", bfloat16=True).run(lambda: next(steps))
    assert_same(rounded, run(tmp_path / "stopped", bfloat16=True))


def test_a_run_starts_from_another_network_and_lists_its_halves(run, tmp_path):
    run(tmp_path / "first")
    second = Run(Halves(seed=5))
    training = second.training(tmp_path / "second", warm_start=str(tmp_path / "first"))
    first = Denoiser(str(tmp_path / "first")).load().state_dict()
    assert all(torch.equal(tensor, first[name]) for name, tensor in training.averaged.state_dict().items())
    training.run()
    before, after = (set(export.read_card(tmp_path / name)["halves"]) for name in ("first", "second"))
    assert before < after
    with pytest.raises(IncompatibleError, match="has a different network"):
        second.training(tmp_path / "third", warm_start=str(tmp_path / "first"), objective="noise2noise:small,patch=32")
    with pytest.raises(CryobenchError, match="is no folder of a denoising network"):
        second.training(tmp_path / "third", warm_start=str(tmp_path))


def test_a_folder_of_another_objective_is_refused(run, tmp_path):
    run(tmp_path / "net")
    with pytest.raises(CryobenchError, match=r"another training run \(objective was noise2noise:.*, is supervised:"):
        run.training(tmp_path / "net", objective="supervised:patch=32")
    (tmp_path / "net" / "checkpoint.pt").unlink()
    with pytest.raises(CryobenchError, match=r"holds a model but no checkpoint\.pt"):
        run.training(tmp_path / "net")


def test_a_figure_shows_input_output_and_target(run, tmp_path, monkeypatch):
    import matplotlib.image

    monkeypatch.undo()
    run(tmp_path / "net", steps=1)
    assert [path.name for path in (tmp_path / "net" / "samples").iterdir()] == ["step_000001.png"]
    assert matplotlib.image.imread(tmp_path / "net" / "samples" / "step_000001.png").std() > 0.05
