"""Reading a network with the loader of diffusers: local files only, without executing code or printing."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path

import pytest
import torch
from networks import pipeline, unet, write

from cryobench.errors import DataError
from cryobench.priors.model_folder import find_model
from cryobench.priors.network import read_network, side_factor

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    return pipeline(tmp_path, unet())


def test_reading_makes_no_connection_and_prints_nothing(folder, monkeypatch, capfd):
    from diffusers.utils import logging

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connects"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("connects"))
    unet().save_pretrained(folder / "unet", max_shard_size="20KB")
    capfd.readouterr()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    read_network(find_model(str(folder)))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_weights_that_do_not_fit_are_reported_by_the_error_alone(folder, capfd):
    unet(block_out_channels=(8, 8)).save_pretrained(folder / "other")
    (folder / "other" / Path(WEIGHTS).name).replace(folder / WEIGHTS)
    capfd.readouterr()
    with pytest.raises(DataError, match=r"do not fit unet/config.json: .* have a wrong shape \(") as caught:
        read_network(find_model(str(folder)))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_the_configuration_is_that_of_the_file(folder):
    config = read_network(find_model(str(folder))).config
    assert str(folder) not in str(dict(config))


class Code:
    def __reduce__(self):
        return (print, ("code in a pickle ran",))


def test_code_in_a_pickle_is_refused_even_where_pickles_are_allowed(folder, capfd):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).with_suffix(".bin").write_bytes(pickle.dumps({"conv_in.weight": Code()}, protocol=2))
    with pytest.raises(DataError, match=r"cannot be read by diffusers \(.*\); expected a UNet2DModel") as caught:
        read_network(find_model(str(folder), pickle=True))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_remote_code_in_a_configuration_is_not_loaded(folder):
    config = dict(find_model(str(folder)).unet_config)
    (folder / "unet" / "mine.py").write_text("raise SystemExit('remote code ran')")
    write(folder / "unet" / "config.json", config | {"auto_map": {"AutoModel": "mine.Mine"}})
    read_network(find_model(str(folder)))


@pytest.mark.parametrize(
    ("down", "up"),
    [("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D"),
     ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"), ("KDownBlock2D", "KUpBlock2D")],
)  # fmt: skip
@pytest.mark.parametrize("levels", [1, 3])
def test_a_network_takes_the_sides_that_its_levels_can_halve(down, up, levels):
    network = unet(block_out_channels=(32,) * levels, down_block_types=(down,) * levels, up_block_types=(up,) * levels)
    factor = side_factor(network.config)
    assert factor == 2 ** (levels - 1)
    for side in (9, 10, 12):
        x = torch.zeros(1, 1, side, 16)
        if side % factor:
            with pytest.raises(RuntimeError):
                network(x, 5)
        else:
            assert network(x, 5).sample.shape == x.shape
