"""The images of a training run: reproducible in any order; distribution of noise, levels and symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cryobench.errors import DataError
from cryobench.io.scaling import minmax
from cryobench.numerics.symmetry import transformed
from cryobench.sources.simulate import Simulate
from cryobench.sources.stacks import File
from cryobench.training.examples import StackExamples
from cryobench.training.images import Images, scaled
from cryobench.training.objectives.ddpm import timesteps
from cryobench.training.preload import Kept

CPU = torch.device("cpu")


def images(*paths, seed=3, turns=True):
    return Images(
        [StackExamples(File(str(path)).open()) for path in paths], seed=seed, turns=turns, device=CPU, of="train"
    )


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_a_batch_does_not_depend_on_the_number_of_processes(blobs, processes):
    whole = images(blobs).batch(5, 6)
    share = 6 // processes
    parts = [images(blobs).batch(5, 6, slice(k * share, (k + 1) * share)) for k in range(processes)]
    for name in ("x0", "noise", "level"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_a_step_does_not_depend_on_earlier_ones_and_differs_from_other_steps_and_seeds(blobs):
    sequence = images(blobs)
    first = [sequence.batch(step, 4) for step in range(4)]
    again = images(blobs).batch(3, 4)
    assert torch.equal(again.x0, first[3].x0)
    assert torch.equal(again.noise, first[3].noise)
    assert not torch.equal(first[2].noise, first[3].noise)
    assert not torch.equal(images(blobs, seed=4).batch(3, 4).noise, again.noise)


def test_levels_are_stratified_over_a_batch_and_uniform_over_steps(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "least.npy", rng.normal(size=(1, 2, 2)).astype(np.float32))  # the images do not matter here
    sequence = images(tmp_path / "least.npy")
    levels = torch.stack([sequence.batch(step, 8).level for step in range(200)])
    # one in each eighth of (0, 1), every time
    assert ((levels * 8).floor().sort(dim=1).values == torch.arange(8)).all()
    # and each place of a batch has all levels: Kolmogorov and Smirnov's distance stays below 1.63 / sqrt(n) in 99%
    for place in range(8):
        ordered = levels[:, place].sort().values
        assert (ordered - (torch.arange(200) + 0.5) / 200).abs().max() < 1.63 / 200**0.5


ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def test_levels_are_uniform_in_t_or_half_of_them_in_the_logarithm_of_sigma():
    place = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    uniform = timesteps(place, ALPHAS, "uniform")
    assert torch.equal(uniform.bincount(), torch.full((1000,), 100))
    mixed = timesteps(place, ALPHAS, "mixed")
    assert torch.equal(mixed[place < 0.5].bincount(), torch.full((1000,), 50))
    sigma = ((1 - ALPHAS) / ALPHAS).sqrt()[mixed[place >= 0.5]]
    assert sigma.min() == pytest.approx(0.02, rel=0.2)  # the levels are coarse there
    assert sigma.max() == pytest.approx(20, rel=0.02)
    for low, high in ((0.05, 0.5), (0.2, 2.0), (1.0, 10.0)):  # a decade, of three
        share = ((sigma > low) & (sigma < high)).double().mean()
        assert share == pytest.approx(math.log(10) / math.log(1000), abs=0.02)


@pytest.mark.parametrize("clean", [False, True])
def test_images_that_are_kept_are_read_in_blocks_and_give_the_same_batches(clean, monkeypatch):
    def examples():
        return StackExamples(Simulate("3mht+2nwl", snr=2.0, size=16, count=22, split="train").open(), clean=clean)

    monkeypatch.setattr("cryobench.training.preload._BLOCK", 4 * 16 * 16 * (1 + clean) * 5)
    kept = Kept(examples())
    kept.keep(CPU)
    read = []
    monkeypatch.setattr(StackExamples, "read_block", _recorded(StackExamples.read_block, read))
    kept.load()
    assert [list(block) for block in read] == [list(range(k, min(k + 5, 22))) for k in range(0, 22, 5)]
    whole = examples().read_block(range(22))
    assert torch.equal(kept.read_block([3, 21, 3]), whole[[3, 21, 3]])
    assert torch.equal(kept.read(7), whole[7])
    assert torch.equal(kept.read(7, (slice(2, 5), slice(0, 4))), whole[7, :, 2:5, :4])
    batches = [Images([each], seed=1, turns=True, device=CPU, of="train").batch(2, 6) for each in (kept, examples())]
    # a particle that is simulated in another block differs by rounding
    torch.testing.assert_close(batches[0].x0, batches[1].x0, rtol=0, atol=1e-5)
    assert torch.equal(batches[0].noise, batches[1].noise)


def _recorded(read, calls):
    def recording(self, indices):
        calls.append(indices)
        return read(self, indices)

    return recording


def test_clean_targets_are_on_the_scale_of_their_noisy_images():
    stack = Simulate("3mht", snr=0.5, size=32, count=64).open()
    noisy, clean = (
        Images([StackExamples(stack, clean=target)], seed=3, turns=False, device=CPU, of="train").batch(0, 8).x0
        for target in (False, True)
    )
    # what lies between is white noise: its mean is nothing beside its deviation, of which the structure has less
    noise = (noisy - clean).flatten(1)
    assert (noise.mean(1).abs() < 5 * noise.std(1) / 32).all()
    assert (noisy.amax((1, 2, 3)) == 1).all()
    assert (clean.flatten(1).std(1) < noise.std(1)).all()
    for i in range(64):  # the first of them is an image of the stack
        scaling = minmax(stack.read(i), "")
        if np.allclose(scaling.apply(stack.read(i)), noisy[0, 0], atol=1e-5):
            expected = scaling.apply(stack.clean(i))
            np.testing.assert_allclose(clean[0, 0], expected, atol=1e-4)
            return
    raise AssertionError("no such image")


def test_clean_targets_that_are_not_known_are_refused(blobs):
    stack = StackExamples(File(str(blobs)).open(), clean=True)
    with pytest.raises(DataError, match=r"the clean images of .* are not known; train on the images as they are"):
        Images([stack], seed=0, turns=False, device=CPU, of="train").batch(0, 1)


def test_noise_is_standard_normal(blobs):
    noise = torch.cat([images(blobs).batch(step, 8).noise for step in range(8)]).double()  # 65 536 numbers
    assert abs(noise.mean()) < 5 / noise.numel() ** 0.5
    assert abs(noise.square().mean() - 1) < 5 * (2 / noise.numel()) ** 0.5
    assert abs((noise**4).mean() - 3) < 5 * (96 / noise.numel()) ** 0.5


def test_the_turns_are_the_eight_symmetries_of_a_square():
    image = torch.arange(16.0).reshape(4, 4)
    all_eight = {tuple(transformed(image, kind).flatten().tolist()) for kind in range(8)}
    assert len(all_eight) == 8
    assert tuple(image.flatten().tolist()) in all_eight
    products = {tuple(transformed(transformed(image, a), b).flatten().tolist()) for a in range(8) for b in range(8)}
    assert products == all_eight  # closed: a group


def test_turns_apply_all_eight_symmetries_and_are_optional(tmp_path):
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "one.npy", one)
    shown = images(tmp_path / "one.npy").batch(0, 64).x0
    assert len({tuple(image.flatten().tolist()) for image in shown}) == 8
    plain = images(tmp_path / "one.npy", turns=False).batch(0, 64).x0
    assert (plain == plain[0]).all()
    assert (plain.min(), plain.max()) == (-1, 1)
    torch.testing.assert_close(plain[0, 0], torch.from_numpy(2 * (one[0] - one.min()) / np.ptp(one) - 1))


def test_sources_alternate_and_every_image_of_each_is_drawn(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("a", 3), ("b", 5)):
        stack = rng.normal(size=(count, 8, 8)).astype(np.float32)
        stack[:, 0, 0] = {"a": 50, "b": -50}[name]  # the brightest or the darkest, wherever the image is from
        np.save(tmp_path / f"{name}.npy", stack)
    x0 = images(tmp_path / "a.npy", tmp_path / "b.npy", turns=False).batch(0, 200).x0[:, 0]
    assert (x0[0::2, 0, 0] == 1).all()
    assert (x0[1::2, 0, 0] == -1).all()
    assert len({tuple(image.flatten().tolist()) for image in x0[0::2]}) == 3
    assert len({tuple(image.flatten().tolist()) for image in x0[1::2]}) == 5


def test_an_image_without_contrast_is_named():
    stack = torch.stack([torch.arange(4.0).reshape(2, 2), torch.ones(2, 2)])
    with pytest.raises(DataError, match=r"image 17 of a\.npy is constant or not finite"):
        scaled(stack, stack, ["image 4 of a.npy", "image 17 of a.npy"])


def test_volumes_are_refused(blobs):
    stack = File(str(blobs)).open()
    stack.__class__ = type("Volumes", (type(stack),), {"shape": (4, 32, 32)})
    with pytest.raises(DataError, match=r"trained on 2-D images, got blobs.npy 4 x 32 x 32; give other data"):
        Images([StackExamples(stack)], seed=0, turns=False, device=CPU, of="train")


def test_stacks_of_different_sizes_are_refused(tmp_path, blobs):
    np.save(tmp_path / "small.npy", np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32))
    with pytest.raises(DataError, match=r"blobs.npy 32 x 32, small.npy 16 x 16; resample them to one, with size="):
        images(blobs, tmp_path / "small.npy")
