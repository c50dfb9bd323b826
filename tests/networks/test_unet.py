"""The U-Net against an independent version in plain PyTorch, and the receptive field and stride that it states."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cryobench.errors import DataError, ParameterError
from cryobench.networks.unet import PRESETS, UNet, UNetConfig, preset


def plain(weights: dict[str, torch.Tensor], x: torch.Tensor, r: int, levels: int) -> torch.Tensor:
    """The network written out with indexing instead of pixel-shuffling, pooling and interpolation."""

    def block(name: str, h: torch.Tensor) -> torch.Tensor:
        for k in (0, 2):
            h = F.conv2d(h, weights[f"{name}.{k}.weight"], weights[f"{name}.{k}.bias"], padding=1)
            h = torch.maximum(h, 0.1 * h)
        return h

    h = torch.stack([x[:, 0, i::r, j::r] for i in range(r) for j in range(r)], dim=1)
    kept = []
    for level in range(levels):
        if level:
            h = (h[:, :, ::2, ::2] + h[:, :, 1::2, ::2] + h[:, :, ::2, 1::2] + h[:, :, 1::2, 1::2]) / 4
        h = block(f"down.{level}", h)
        kept.append(h)
    for level in reversed(range(levels - 1)):
        doubled = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        h = block(f"up.{level}", torch.cat([doubled, kept[level]], dim=1))
    h = torch.einsum("oi,bihw->bohw", weights["last.weight"][:, :, 0, 0], h) + weights["last.bias"][None, :, None, None]
    out = torch.empty_like(x)
    for i in range(r):
        for j in range(r):
            out[:, 0, i::r, j::r] = h[:, i * r + j]
    return out


def network(config: UNetConfig, seed: int = 0) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet(config)
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize("name", ["tiny", "published"])
def test_the_output_and_a_training_step_are_those_of_a_plain_version(name):
    config = PRESETS[name]
    ours = network(config).double()  # in float32 sums differ by their order, by 1.4e-6
    theirs = {key: tensor.clone().requires_grad_() for key, tensor in ours.state_dict().items()}
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 2, 1, 64, 48, generator=g, dtype=torch.float64)
    f = ours(a)
    again = plain(theirs, a, config.unshuffle, len(config.channels))
    assert (f - again).abs().max() < 1e-12 * f.abs().max()
    optimizers = [torch.optim.SGD(ours.parameters(), lr=1e-3), torch.optim.SGD(theirs.values(), lr=1e-3)]
    for output, optimizer in zip((f, again), optimizers, strict=True):
        (output - b).square().mean().backward()
        optimizer.step()
    before = network(config).double().state_dict()
    for key, tensor in ours.state_dict().items():
        assert (tensor - theirs[key]).abs().max() < 1e-12
        assert not torch.equal(tensor, before[key])


@pytest.mark.parametrize(
    "config", [*PRESETS.values(), UNetConfig((3,)), UNetConfig((2, 3), unshuffle=3), UNetConfig((2, 2, 2))], ids=str
)
def test_the_receptive_field_is_that_of_the_gradient(config):
    """With positive weights no dependence cancels: the gradient of an output pixel shows all that it depends on."""
    net = UNet(UNetConfig((2,) * len(config.channels), config.unshuffle)).double()  # the same in fewer channels
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 0.2)
    side = -(-2 * (config.radius + config.stride) // config.stride) * config.stride
    x = torch.ones(1, 1, config.stride, 2 * side, dtype=torch.float64, requires_grad=True)
    out = net(x)
    farthest = 0
    for pixel in range(side, side + config.stride):
        (gradient,) = torch.autograd.grad(out[0, 0, 0, pixel], x, retain_graph=True)
        seen = gradient[0, 0].abs().sum(0).nonzero()[:, 0]
        farthest = max(farthest, pixel - int(seen.min()), int(seen.max()) - pixel)
    assert farthest == config.radius


@pytest.mark.parametrize("config", PRESETS.values(), ids=str)
def test_a_shift_by_the_stride_shifts_the_output_and_a_smaller_one_does_not(config):
    net = network(UNetConfig((4,) * len(config.channels), config.unshuffle)).double()
    stride, halo = config.stride, -(-config.radius // config.stride) * config.stride
    g = torch.Generator().manual_seed(2)
    x = torch.randn(1, 1, stride, 2 * halo + 4 * stride, dtype=torch.float64, generator=g)
    with torch.no_grad():
        inner = slice(halo + stride, halo + 2 * stride)
        whole = net(x)[..., inner]
        shifted = net(x.roll(stride, -1))[..., inner.start + stride : inner.stop + stride]
        assert (shifted - whole).abs().max() < 1e-12 * whole.abs().max()
        less = stride // 2
        shifted = net(x.roll(less, -1))[..., inner.start + less : inner.stop + less]
        assert (shifted - whole).abs().max() > 1e-3 * whole.abs().max()


def test_the_presets_have_the_stated_sizes():
    counts = {name: sum(p.numel() for p in UNet(config).parameters()) for name, config in PRESETS.items()}
    assert counts == {"tiny": 487_492, "small": 1_947_268, "published": 1_946_305}
    assert PRESETS["published"] == UNetConfig((32, 64, 128, 256), unshuffle=1)


def test_what_is_no_network_is_refused_in_one_line():
    with pytest.raises(ParameterError, match="unknown network 'huge'; expected one of tiny, small, published"):
        preset("huge")
    with pytest.raises(DataError, match=r"channels \[\] and unshuffle 1; expected positive numbers"):
        UNetConfig(())
