"""Gaps of volumes as training samples, and `conditional` and `regression` on them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from networks import film_unet

from cryobench.core import Stack
from cryobench.errors import DataError, IncompatibleError, ParameterError, ResultsError
from cryobench.networks.restoring import Restorer
from cryobench.priors.conditional import NOISE, SPREAD, VELOCITY, Conditional
from cryobench.registry import installed
from cryobench.training import loop
from cryobench.training.examples import StackExamples
from cryobench.training.gaps import GapPatches
from cryobench.training.objectives import conditional
from cryobench.training.objectives.conditional import ConditionalDiffusion, Regression
from cryobench.training.settings import Settings

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Fewer sampling steps for figures and fewer patches for the scale of residuals."""
    monkeypatch.setattr(conditional, "SHOWN_STEPS", 2)
    monkeypatch.setattr(conditional, "_RESIDUALS", 32)


class Volumes(Stack):
    """Random volumes, smooth along all axes if `smooth`."""

    label = "volumes"

    def __init__(self, shape=(7, 8, 9), count: int = 2, smooth: float = 0.0):
        from scipy.ndimage import gaussian_filter

        rng = np.random.default_rng(0)
        self.shape = shape
        found = [rng.normal(size=shape) for _ in range(count)]
        self.volumes = [(5 + 3 * gaussian_filter(each, smooth)).astype(np.float32) for each in found]

    def __len__(self) -> int:
        return len(self.volumes)

    def read(self, index: int) -> np.ndarray:
        return self.volumes[index]


def gaps(stack: Stack, **changed) -> GapPatches:
    given = {"gap": 3, "side": 4, "axes": "zyx", "joint": False, "blur": 0.0, "seed": 0, "turns": True}
    return GapPatches([StackExamples(stack)], **given | changed, device=CPU, of="train")


def windows(volume: np.ndarray, axes: str, side: int, sections: int):
    """Every stack of neighbouring sections across the axes, in every orientation: bytes -> axis."""
    scaled = (torch.from_numpy(volume) - float(volume.mean(dtype=np.float64))) / float(volume.std(dtype=np.float64))
    found = {}
    for axis in ("zyx".index(name) for name in axes):
        blocks = scaled.movedim(axis, 0)
        for start in itertools.product(*(range(n - m + 1) for n, m in zip(blocks.shape, (sections, side, side),
                                                                          strict=True))):  # fmt: skip
            z, y, x = start
            block = blocks[z : z + sections, y : y + side, x : x + side]
            for turned in (torch.rot90(each, k, (1, 2)) for each in (block, block.mT) for k in range(4)):
                for whole in (turned, turned.flip(0)):
                    found[whole.numpy().round(3).tobytes()] = axis
    return found


@pytest.mark.parametrize(("axes", "joint"), [("zyx", True), ("yx", True), ("z", False)])
def test_a_sample_is_a_gap_of_a_volume_in_some_orientation(axes, joint):
    stack = Volumes(count=1)
    known = windows(stack.volumes[0], axes, 4, 4)
    batch = gaps(stack, axes=axes, joint=True).batch(0, 60)
    one = gaps(stack, axes=axes, joint=False).batch(0, 60)
    axes_seen = set()
    for ends, between in zip(batch.input, batch.target, strict=True):
        whole = torch.cat([ends[:1], between, ends[1:]])
        axes_seen.add(known[whole.contiguous().numpy().round(3).tobytes()])
    assert axes_seen == {"zyx".index(name) for name in axes}
    if not joint:
        assert one.place is not None
        assert set(one.place.tolist()) == {0, 1}
        torch.testing.assert_close(one.input, batch.input)
        torch.testing.assert_close(one.target[:, 0], batch.target[torch.arange(60), one.place])


def test_a_batch_depends_on_seed_and_number_only():
    stack = Volumes()
    whole = gaps(stack).batch(3, 6)
    parts = [gaps(stack).batch(3, 6, part) for part in (slice(0, 1), slice(1, 6))]
    for name in ("input", "target", "place"):
        torch.testing.assert_close(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert not torch.equal(gaps(stack, seed=1).batch(3, 6).input, whole.input)


def test_each_of_the_two_sections_is_blurred_half_of_the_time():
    from scipy.ndimage import gaussian_filter

    stack = Volumes(shape=(12, 12, 12))
    sharp, blurred = (gaps(stack, blur=blur, joint=True).batch(0, 200) for blur in (0.0, 1.0))
    torch.testing.assert_close(sharp.target, blurred.target)
    changed = (sharp.input != blurred.input).any(3).any(2)
    shares = [float(share.double().mean()) for share in (changed[:, 0], changed[:, 1], changed.all(1))]
    assert shares == pytest.approx([0.5, 0.5, 0.25], abs=4 * 0.5 / math.sqrt(200))
    j = int(changed[:, 0].nonzero()[0])
    expected = gaussian_filter(sharp.input[j, 0].numpy(), 1.0, mode="nearest")
    np.testing.assert_allclose(blurred.input[j, 0].numpy(), expected, atol=1e-6)


def test_large_volumes_are_scaled_by_some_of_their_sections(monkeypatch):
    stack = Volumes(shape=(40, 16, 16), count=1)
    monkeypatch.setattr("cryobench.training.gaps.MEASURED", 10 * 256)
    ends = gaps(stack, turns=False, axes="z", joint=True).batch(0, 1).input.double()
    planes = stack.volumes[0][[i * 39 // 9 for i in range(10)]].astype(np.float64)
    sections = (stack.volumes[0] - planes.mean()) / planes.std()
    assert any(np.allclose(sections[z, y : y + 4, x : x + 4], ends[0, 0].numpy(), atol=1e-5)
               for z, y, x in itertools.product(range(40), range(13), range(13)))  # fmt: skip


def batch_of(objective, count: int = 4):
    return objective.samples([objective.examples(Volumes((24, 24, 24), smooth=1.5))], seed=0, device=CPU).batch(
        0, count
    )


@pytest.mark.parametrize("joint", [True, False])
def test_regression_adds_to_linear_interpolation(joint):
    objective = Regression(patch=16, gap=4, joint=joint)
    network = film_unet(objective._config)
    batch = batch_of(objective)
    times = torch.arange(1, 4).expand(4, 3) / 4 if joint else (batch.place[:, None] + 1) / 4
    first, second = batch.condition[:, :1], batch.condition[:, 1:]
    linear = (1 - times)[..., None, None] * first + times[..., None, None] * second
    found = network(torch.zeros_like(batch.target), batch.condition, torch.ones(4), batch.place)
    expected = (linear + found - batch.target).square().mean((1, 2, 3))
    torch.testing.assert_close(objective.losses(network, batch), expected)
    network.last.weight.data.zero_()
    network.last.bias.data.zero_()
    assert float(objective.losses(network, batch).mean().detach()) < float(batch.target.square().mean())


@pytest.mark.parametrize(("predict", "joint"), [("noise", False), ("velocity", True)])
def test_the_loss_of_diffusion_is_that_of_the_equation(predict, joint):
    objective = ConditionalDiffusion(patch=16, gap=3, joint=joint, predict=predict)
    network = film_unet(objective._config)
    batch = batch_of(objective)
    assert batch.noise.shape == batch.target.shape == (4, 2 if joint else 1, 16, 16)
    g = batch.level.float()[:, None, None, None]
    y = g.sqrt() * batch.target + (1 - g).sqrt() * batch.noise
    wanted = batch.noise if predict == "noise" else g.sqrt() * batch.noise - (1 - g).sqrt() * batch.target
    expected = (network(y, batch.condition, batch.level, batch.place) - wanted).square().mean((1, 2, 3))
    torch.testing.assert_close(objective.losses(network, batch), expected, rtol=1e-5, atol=1e-6)


def trained(out, objective: str, stack: Stack, **changed) -> Conditional:
    given = {"objective": objective, "steps": 3, "batch": 4, "warmup": 1, "lr": 2e-3, "checkpoint_every": 100}
    run = loop.Training(Settings(data=("toy",), **given | changed), [stack], [], out, device=CPU)
    assert run.run()
    return Conditional(str(out))


def test_diffusion_of_what_a_regression_leaves(tmp_path, monkeypatch):
    """Targets have the stated deviation, and the folder is complete: it holds the regression and the scale."""
    monkeypatch.chdir(tmp_path)
    stack = Volumes((24, 24, 24), smooth=1.5)
    mean = trained(tmp_path / "mean", "regression:gap=4,joint=true,patch=16", stack)
    spec = "conditional:gap=4,joint=true,patch=16,predict=velocity,mean=./mean"
    found = trained(tmp_path / "net", spec, stack)
    assert (found.predicts, mean.mean) == (VELOCITY, None)
    assert found.mean is not None
    assert found.mean.weights_digest() == mean.weights_digest()
    assert found.weights_digest() != mean.weights_digest()
    objective = ConditionalDiffusion(patch=16, gap=4, joint=True, mean=mean)
    samples = objective.samples([objective.examples(stack)], seed=0, device=CPU)
    scale = found.load().scale
    targets = torch.cat([samples.batch(k, 16).target for k in range(2)]) / scale
    assert float(targets.square().mean().sqrt()) == pytest.approx(1 / SPREAD, rel=1e-5)
    plain = ConditionalDiffusion(patch=16, gap=4, joint=True).samples(
        [objective.examples(stack)], seed=0, device=CPU
    ).batch(0, 4)  # fmt: skip
    with torch.no_grad():
        left = plain.target - Restorer(mean.load(), 16).image(plain.condition)
    torch.testing.assert_close(samples.batch(0, 4).target, left, rtol=1e-4, atol=1e-6)
    network, batch = objective.build(samples), samples.batch(0, 4)
    scaled = dataclasses.replace(batch, target=batch.target / scale)
    plainly = ConditionalDiffusion(patch=16, gap=4, joint=True).losses(network, scaled)
    torch.testing.assert_close(objective.losses(network, batch), plainly)
    card = json.loads((tmp_path / "net" / "cryobench.json").read_text())
    assert card["settings"]["mean"] == {"source": "./mean"}
    with pytest.raises(IncompatibleError, match=r"--warm-start .* predicts the image, this objective the noise; give"):
        ConditionalDiffusion(patch=16, gap=4, joint=True).initialise(network, str(tmp_path / "mean"), samples)
    with pytest.raises(ParameterError, match="predicts the velocity; give a network of the objective regression"):
        ConditionalDiffusion(patch=16, gap=4, joint=True, mean=found)
    others = {
        "with gap=3,joint=true": {"gap": 3, "joint": True},
        "with gap=4,joint=false": {"gap": 4},
        "without gap": {},
    }
    for wanted, options in others.items():
        with pytest.raises(ParameterError, match=f"restores something else; train a regression {wanted}"):
            ConditionalDiffusion(patch=16, mean=mean, **options)


def test_a_residual_needs_its_regression(tmp_path):
    """A run is not continued with another one, and a folder without it is refused."""
    stack = Volumes((24, 24, 24), smooth=1.5)
    trained(tmp_path / "mean", "regression:gap=2,patch=16", stack, steps=1)
    spec = f"conditional:gap=2,patch=16,mean={tmp_path / 'mean'}"
    settings = Settings(data=("toy",), objective=spec, steps=4, batch=4, warmup=1, lr=2e-3, checkpoint_every=1)
    assert not loop.Training(settings, [stack], [], tmp_path / "net", device=CPU).run(lambda: True)
    assert loop.Training(settings, [stack], [], tmp_path / "net", device=CPU).run()
    shutil.rmtree(tmp_path / "mean")
    trained(tmp_path / "mean", "regression:gap=2,patch=16", stack, steps=2)
    with pytest.raises(ResultsError, match=r"holds another training run \(networks was "):
        loop.Training(settings, [stack], [], tmp_path / "net", device=CPU)
    shutil.rmtree(tmp_path / "net" / "mean")
    with pytest.raises(DataError, match="samples what a regression leaves, but its folder mean has none; copy"):
        Conditional(str(tmp_path / "net")).weights_digest()


@pytest.mark.parametrize("spec", ["regression:gap=2,patch=16", "conditional:gap=2,patch=16"])
def test_losses_need_no_more_of_a_network_than_its_output(spec):
    """As in several processes, where the network is wrapped."""
    objective = installed().make("objectives", spec)
    network, batch = film_unet(objective._config), batch_of(objective)

    class Wrapped(torch.nn.Module):
        module = network

        def forward(self, *inputs):
            return network(*inputs)

    torch.testing.assert_close(objective.losses(Wrapped(), batch), objective.losses(network, batch))


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path):
    stack = Volumes((24, 24, 24), smooth=1.5)
    spec = "conditional:gap=4,patch=16,blur=1"
    whole = trained(tmp_path / "whole", spec, stack, steps=4)
    settings = Settings(data=("toy",), objective=spec, steps=4, batch=4, warmup=1, lr=2e-3, checkpoint_every=1)
    stops = iter([False, True])
    assert not loop.Training(settings, [stack], [], tmp_path / "part", device=CPU).run(lambda: next(stops))
    assert loop.Training(settings, [stack], [], tmp_path / "part", device=CPU).run()
    assert Conditional(str(tmp_path / "part")).weights_digest() == whole.weights_digest()
    assert whole.predicts == NOISE
    assert (whole.config.gap, whole.config.places, whole.config.images) == (4, 3, 1)
    assert next((tmp_path / "whole" / "samples").glob("*.png")).stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gap": 1}, "gap must be at least 2, the distance of sections with one between, got 1"),
        ({"joint": True}, "are of gaps between sections; give gap, such as gap=4"),
        ({"gap": 4, "noise": 0.5}, "gap fills volumes as they are; leave out noise, operator and target"),
        ({"gap": 4, "axes": "zz"}, "axes must be some of zyx, each once, got 'zz'"),
        ({"gap": 4, "axes": ""}, "axes must be some of zyx, each once, got ''"),
        ({"gap": 4, "blur": -1.0}, "blur must be zero or a positive number of pixels, got -1"),
    ],
)
def test_impossible_gaps_are_refused(options, message):
    with pytest.raises(ParameterError, match=message):
        Regression(patch=16, **options)


def test_volumes_without_room_or_contrast_are_refused():
    class Images(Volumes):
        def __init__(self):
            super().__init__((8, 8, 8))
            self.shape = (8, 8)

    with pytest.raises(DataError, match="holds images of 8 x 8; gaps between sections need volumes"):
        gaps(Images())
    with pytest.raises(DataError, match="is 7 x 8 x 9; a patch of sections across z needs 8 x 4 x 4: give a smaller"):
        gaps(Volumes(), gap=7, axes="z").batch(0, 1)
    flat = Volumes(count=1)
    flat.volumes[0][:] = 2
    with pytest.raises(DataError, match="is constant or not finite"):
        gaps(flat).batch(0, 1)
    flat.volumes[0][0, 0, 0] = np.nan
    with pytest.raises(DataError, match="is constant or not finite"):
        gaps(flat).batch(0, 1)
