"""The conditional U-Net: its parts, against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from networks import film_unet

from cryobench.errors import DataError, ParameterError
from cryobench.networks.film import PRESETS, FilmConfig, FilmUNet, level_embedding, preset

SMALL = FilmConfig(8, (1, 2), blocks=1, dropout=0.0, conditions=2, places=3)


@torch.no_grad()
def forward(net: FilmUNet, noisy, condition, level, place):
    """The network of one level pair and one block each, by functions of torch, from the papers."""
    import torch.nn.functional as F

    w = dict(net.named_parameters())

    def conv(x, name, **options):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def norm(x, name):
        x = x.double()
        groups = x.reshape(len(x), 8, -1)
        groups = (groups - groups.mean(2, True)) / (groups.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        scale, shift = (w[f"{name}.{part}"].double()[:, None, None] for part in ("weight", "bias"))
        return (groups.reshape(x.shape) * scale + shift).float()

    def silu(x):
        return x / (1 + torch.exp(-x))

    angles = level[:, None] * torch.tensor([10_000.0 ** (-i / 4) for i in range(4)])
    e = torch.cat([angles.cos(), angles.sin()], 1)
    e = silu(e @ w["level.0.weight"].T + w["level.0.bias"]) @ w["level.2.weight"].T + w["level.2.bias"]
    e = e + w["place.weight"][place]

    def block(x, name):
        h = conv(silu(norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        film = silu(e) @ w[f"{name}.film.weight"].T + w[f"{name}.film.bias"]
        scale, shift = film[:, : h.shape[1], None, None], film[:, h.shape[1] :, None, None]
        h = conv(silu(norm(h, f"{name}.norm2") * (1 + scale) + shift), f"{name}.conv2", padding=1)
        return h + (conv(x, f"{name}.skip") if f"{name}.skip.weight" in w else x)

    def attention(x, name):
        C = x.shape[1]
        q, k, v = conv(norm(x, f"{name}.norm"), f"{name}.qkv").flatten(2).split(C, 1)
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(C), dim=2)
        return x + conv(torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape), f"{name}.out")

    a = conv(torch.cat([condition, noisy], 1), "first", padding=1)
    b = block(a, "down.0")
    c = conv(b, "down.1", stride=2, padding=1)
    d = block(c, "down.2")
    h = block(attention(block(d, "middle.0"), "middle.1"), "middle.2")
    h = block(torch.cat([h, d], 1), "up.0")
    h = block(torch.cat([h, c], 1), "up.1")
    h = conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3), "up.2", padding=1)
    h = block(torch.cat([h, b], 1), "up.3")
    h = block(torch.cat([h, a], 1), "up.4")
    return conv(silu(norm(h, "norm")), "last", padding=1)


def test_the_network_is_that_of_the_papers():
    """One head of attention: 16 channels."""
    draw = torch.Generator().manual_seed(1)
    noisy, condition = (torch.randn(2, c, 12, 8, generator=draw) for c in (1, 2))
    level, place = torch.tensor([0.3, 0.9]), torch.tensor([2, 0])
    net = film_unet(SMALL, deviation=0.2)
    expected = forward(net, noisy, condition, level, place)
    with torch.no_grad():
        found = net(noisy, condition, level, place)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_new_network_predicts_zero():
    net = FilmUNet(PRESETS["tiny"])
    x = torch.randn(1, 1, 16, 16)
    assert (net(x, x, torch.tensor([0.5])) == 0).all()


def test_levels_are_embedded_as_cosines_and_sines():
    found = level_embedding(torch.tensor([0.0, 0.5]), 4)
    assert found[0].tolist() == [1, 1, 0, 0]
    assert found[1].tolist() == pytest.approx([math.cos(0.5), math.cos(0.005), math.sin(0.5), math.sin(0.005)])


def test_the_presets_have_the_stated_sizes():
    with torch.device("meta"):
        count = {name: sum(p.numel() for p in FilmUNet(preset(name)).parameters()) for name in PRESETS}
    assert count["tiny"] == pytest.approx(0.67e6, rel=0.01)
    assert count["published"] == pytest.approx(14.5e6, rel=0.01)


def test_impossible_architectures_are_refused():
    with pytest.raises(ParameterError, match="unknown network 'huge'; expected one of tiny, published"):
        preset("huge")
    for change in ({"base": 12}, {"multipliers": ()}, {"dropout": 1.0}, {"conditions": 0}):
        with pytest.raises(DataError, match="is no U-Net: base must be a multiple of 8"):
            FilmConfig(**{"base": 8, "multipliers": (1,)} | change)
