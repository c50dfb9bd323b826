"""LPIPS against the package `lpips`, with weights that are made here: nothing is downloaded."""

from __future__ import annotations

import hashlib
import socket
import warnings
from pathlib import Path

import pytest
import torch
from cases import alone, case_of, images, measure

from cryobench.metrics import perceptual
from cryobench.metrics.perceptual import Lpips

NAME = "alexnet-owt-7be5be79.pth"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture
def torch_home(tmp_path, monkeypatch) -> Path:
    """An empty cache of torch: the folder of the weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory) -> Path:
    """A file of weights as torchvision's, drawn at random."""
    from torchvision.models import alexnet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("weights") / NAME
        features = alexnet().features.state_dict(prefix="features.")
    torch.save(features, path)
    return path


@pytest.fixture
def weights(torch_home, alexnet) -> Path:
    (torch_home / NAME).symlink_to(alexnet)
    return torch_home / NAME


def reference(alexnet: Path):
    """The package's network, with these weights."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = torch.load(alexnet, weights_only=True)
    features = {name: state[f"features.{name.split('.', 1)[1]}"] for name in network.net.state_dict()}
    network.net.load_state_dict(features)
    return network


def test_against_the_package(weights, alexnet):
    truth, x = images(3, (64, 64)), images(3, (64, 64), seed=1)
    found = measure(Lpips(), case_of(truth), x)
    with torch.no_grad():
        wanted = reference(alexnet)(*(image.float().repeat(1, 3, 1, 1) for image in (x, truth))).flatten()
    torch.testing.assert_close(found.values["lpips"], wanted.double())
    assert not found.unmeasured
    assert found.values["lpips"].min() > 1e-3


def test_the_truth_itself_and_an_image_alone(weights):
    truth, x = images(3, (40, 56)), images(3, (40, 56), seed=1)
    case = case_of(truth)
    assert measure(Lpips(), case, truth.clone()).values["lpips"].tolist() == [0, 0, 0]
    many, one = measure(Lpips(), case, x), measure(Lpips(), alone(case, 1), x[1:2])
    torch.testing.assert_close(one.values["lpips"], many.values["lpips"][1:2], rtol=1e-5, atol=1e-7)


def test_pixels_outside_a_circle_do_not_matter(weights):
    truth, x = images(1, (64, 64)), images(1, (64, 64), seed=1)
    case = case_of(truth, within=[20.0])
    y = torch.arange(64) - 32
    other = torch.where(y[:, None] ** 2 + y**2 > 400, 0.9, x)
    inside, changed, whole = (
        measure(Lpips(), c, image).values["lpips"] for c, image in ((case, x), (case, other), (case_of(truth), x))
    )
    assert torch.equal(inside, changed)
    assert not torch.allclose(inside, whole)


def test_weights_that_are_absent_are_named_and_nothing_is_downloaded(torch_home):
    measured = measure(Lpips(), case_of(images(2, (64, 64))), images(2, (64, 64), seed=1))
    assert measured.values["lpips"].isnan().all()
    reason = measured.unmeasured["lpips"]
    assert "AlexNet's weights are not on this machine" in reason
    assert NAME in reason
    assert "\n" not in reason


@pytest.mark.parametrize("content", [b"", b"not weights"])
def test_damaged_weights_are_named(torch_home, content):
    (torch_home / NAME).write_bytes(content)
    measured = measure(Lpips(), case_of(images(1, (64, 64))), images(1, (64, 64)))
    assert measured.values["lpips"].isnan().all()
    assert f"{torch_home / NAME} cannot be used" in measured.unmeasured["lpips"]
    assert "\n" not in measured.unmeasured["lpips"]


def test_weights_of_another_network_are_named(torch_home):
    torch.save({"features.0.weight": torch.zeros(3)}, torch_home / NAME)
    assert "cannot be used" in measure(Lpips(), case_of(images(1, (64, 64))), images(1, (64, 64))).unmeasured["lpips"]


def test_images_that_are_too_small_have_no_number(weights):
    side = perceptual.MIN_SIDE
    measured = measure(Lpips(), case_of(images(1, (side, side))), images(1, (side, side), seed=1))
    assert measured.values["lpips"].isfinite().all()
    measured = measure(Lpips(), case_of(images(1, (64, side - 1))), images(1, (64, side - 1)))
    assert measured.values["lpips"].isnan().all()
    assert f"{side} pixels" in measured.unmeasured["lpips"]


def test_cells_with_and_without_weights_have_different_hashes(torch_home, alexnet):
    assert Lpips().weights_digest() == perceptual.ABSENT
    (torch_home / NAME).write_bytes(alexnet.read_bytes())
    assert Lpips().weights_digest() == hashlib.sha256(alexnet.read_bytes()).hexdigest()


def test_loading_draws_no_random_number(weights):
    perceptual._network.cache_clear()
    before = torch.random.get_rng_state()
    measure(Lpips(), case_of(images(1, (64, 64))), images(1, (64, 64)))
    assert torch.equal(torch.random.get_rng_state(), before)
