"""`n2n` and the network that it uses."""

from __future__ import annotations

import itertools
import json

import networks
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import cryobench as cb
from cryobench.core import Imaging, Problem
from cryobench.errors import DataError, ParameterError
from cryobench.networks.files import CONFIG, WEIGHTS
from cryobench.networks.unet import UNet, UNetConfig
from cryobench.operators.identity import Identity
from cryobench.operators.noise import NoNoise
from cryobench.priors.denoiser import Denoiser
from cryobench.registry import installed
from cryobench.rng import Rng
from cryobench.solvers.n2n import N2n

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    """A network with random weights and a card."""
    torch.manual_seed(5)
    made = networks.denoiser(tmp_path / "net", UNet(UNetConfig((4, 6), unshuffle=2)))
    card = {"trained_on": [{"structure": "3mht"}], "halves": ["ab", "cd"], "steps": 3}
    (made / "cryobench.json").write_text(json.dumps(card))
    return made


def problem(y: torch.Tensor) -> Problem:
    operator = Identity().build(Imaging(tuple(y.shape[2:])), {}, dtype=y.dtype, device=CPU)
    return Problem(operator, y, NoNoise(), torch.zeros(len(y), 1, 1, 1, dtype=y.dtype))


def solve(solver, y: torch.Tensor) -> torch.Tensor:
    return solver.solve(problem(y), rng=Rng(0, [str(i) for i in range(len(y))])).x


def test_the_network_sees_the_whole_image_with_mean_0_and_deviation_1(folder):
    y = 7 + 3 * torch.randn(3, 1, 40, 56, generator=torch.Generator().manual_seed(0))
    x = solve(installed().make("solvers", f"n2n:model={folder}"), y)
    network = Denoiser(str(folder)).load()
    for image, found in zip(y, x, strict=True):
        mean, deviation = image.mean(), image.std(correction=0)
        expected = mean + deviation * network((image[None] - mean) / deviation)[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_affine_map_of_the_image_maps_the_result(folder):
    y = torch.randn(1, 1, 48, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solver = N2n(Denoiser(str(folder)))
    torch.testing.assert_close(solve(solver, 100 + 20 * y), 100 + 20 * solve(solver, y), atol=1e-4, rtol=1e-6)


def test_tiles_give_the_whole(folder):
    y = torch.randn(2, 1, 130, 150, generator=torch.Generator().manual_seed(2))
    model = Denoiser(str(folder))
    torch.testing.assert_close(solve(N2n(model, tile=32), y), solve(N2n(model), y), atol=5e-6, rtol=0)


def test_turns_average_the_results_for_the_turned_images(folder):
    """Also of images that are not square; each result is turned back, by NumPy here."""
    y = torch.randn(2, 1, 40, 64, generator=torch.Generator().manual_seed(4))
    model = Denoiser(str(folder))
    expected = []
    for flip, quarters in itertools.product((False, True), range(4)):
        image = np.rot90(np.flip(y.numpy(), -2) if flip else y.numpy(), quarters, (-2, -1))
        found = np.rot90(solve(N2n(model), torch.from_numpy(image.copy())).numpy(), -quarters, (-2, -1))
        expected.append(np.flip(found, -2) if flip else found)
    done: list[tuple[int, int]] = []
    solver = N2n(model, tile=32, turns=True)
    found = solver.solve(problem(y), rng=Rng(0, ["0", "1"]), progress=lambda *now: done.append(now)).x
    torch.testing.assert_close(found, torch.from_numpy(np.mean(expected, axis=0)), atol=1e-5, rtol=0)
    assert not torch.allclose(found, solve(N2n(model), y), atol=1e-3)
    assert [k for k, _ in done] == list(range(1, done[-1][1] + 1))


def test_a_constant_image_stays_finite(folder):
    assert solve(N2n(Denoiser(str(folder))), torch.full((1, 1, 16, 16), 3.0)).isfinite().all()


def test_other_operators_and_small_images_are_refused_with_a_reason(folder):
    solver = N2n(Denoiser(str(folder)))
    operator = cb.operator("sumpool:4", shape=(16, 16))
    y = operator.A(torch.zeros(1, 1, 16, 16))
    of_pooling = Problem(operator, y, NoNoise(), torch.zeros(1, 1, 1, 1))
    assert solver.unsupported(of_pooling) == "n2n removes noise from images; it needs the operator identity"
    assert "at least 4 x 4 pixels, got 3 x 8" in str(solver.unsupported(problem(torch.zeros(1, 1, 3, 8))))
    assert solver.unsupported(problem(torch.zeros(1, 1, 8, 8))) is None


def test_the_weights_decide_the_digest_and_the_card_what_it_was_trained_on(folder, tmp_path):
    model = Denoiser(str(folder))
    assert list(model.trained_on()) == [{"structure": "3mht"}, {"half": "ab"}, {"half": "cd"}]
    before = model.weights_digest()
    copy = tmp_path / "copy"
    folder.rename(copy)
    assert Denoiser(str(copy)).weights_digest() == before
    network = UNet(UNetConfig((4, 6), unshuffle=2))
    save_file(network.state_dict(), copy / WEIGHTS)
    assert Denoiser(str(copy)).weights_digest() != before
    stated = Denoiser(str(copy)).details()["denoiser"]
    assert (stated["radius"], stated["stride"]) == (network.config.radius, 4)


def test_a_packaged_network_in_half_precision_is_used_without_a_model(folder, monkeypatch):
    y = torch.randn(1, 1, 32, 40, generator=torch.Generator().manual_seed(3))
    expected = solve(N2n(Denoiser(str(folder))), y)
    halves = {name: tensor.half() for name, tensor in Denoiser(str(folder)).load().state_dict().items()}
    save_file(halves, folder / WEIGHTS)
    monkeypatch.setattr("cryobench.priors.denoiser.PACKAGED_FOLDER", folder)
    found = solve(installed().make("solvers", "n2n"), y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)
    assert not torch.equal(found, expected)


def test_a_missing_network_is_said_in_one_line(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("cryobench.priors.denoiser.PACKAGED_FOLDER", tmp_path / "none")
    for spec, message in (
        ("n2n", r"no denoising network; train one .* and give it as model=\./FOLDER"),
        (f"n2n:model={tmp_path}", f"is no folder of a denoising network: it has no {CONFIG}"),
    ):
        with pytest.raises(DataError, match=message) as error:
            installed().make("solvers", spec).model.check((32, 32))
        assert "\n" not in str(error.value)
    with pytest.raises(ParameterError, match="tile must be a positive number of pixels, got 0"):
        N2n(Denoiser(str(folder)), tile=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (CONFIG, "{", "cannot be read"),
        (CONFIG, "[]", "holds a list; expected an object"),
        (CONFIG, '{"architecture": "vit"}', "states the architecture 'vit'; expected 'unet'"),
        (CONFIG, '{"architecture": "unet", "channels": "x", "unshuffle": 1}', "is no U-Net"),
        (CONFIG, '{"architecture": "unet", "channels": [4, 8], "unshuffle": 2}', "cannot be read as the weights"),
        (WEIGHTS, "not safetensors", "cannot be read as the weights"),
    ],
)
def test_damaged_files_are_said_in_one_line(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        Denoiser(str(folder)).load()
    assert "\n" not in str(error.value)
