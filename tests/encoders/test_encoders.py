"""Encoders: principal components of filtered images, features of a diffusion network and of a vision transformer."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from networks import pipeline, transformer_weights, unet
from PIL import Image
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from cryobench.encoders import vit
from cryobench.encoders.diffusion import DiffusionEncoder
from cryobench.encoders.pca import Pca
from cryobench.encoders.vit import Vit, eight_bits, network_of
from cryobench.errors import CryobenchError, DataError, DependencyError, ParameterError
from cryobench.priors.diffusion import Diffusion
from cryobench.registry import installed


def noisy(count: int = 12, side: int = 16) -> torch.Tensor:
    return torch.randn((count, side, side), generator=torch.Generator().manual_seed(1))


def test_pca_is_that_of_filtered_images():
    images, side = noisy(), 16
    transfer = torch.rand((12, side, side // 2 + 1), generator=torch.Generator().manual_seed(2)) - 0.5
    spectrum = np.fft.rfft2(images.double().numpy())
    k = np.hypot(np.fft.fftfreq(side, 1 / side)[:, None], np.arange(side // 2 + 1)[None])
    # the coefficients of real images along the first column come in pairs, so the filter must be even there
    transfer[:, :, 0] = transfer[:, :, 0] + transfer.roll(-1, 1).flip(1)[:, :, 0]
    c = transfer.double().numpy()
    filtered = np.fft.irfft2(np.where((k > 0) & (k <= 4), spectrum * c / (c**2 + 0.5), 0), s=(side, side))
    expected = PCA(3, svd_solver="full").fit_transform(filtered.reshape(12, -1))
    found = Pca(3, lowpass=0.5, wiener=0.5).features(images, transfer, 1.0).numpy()
    assert found.shape == (12, 3)
    # of each component scikit-learn's sign is another convention
    np.testing.assert_allclose(found * np.sign((found * expected).sum(axis=0)), expected, atol=1e-9)


def test_pca_of_few_images_has_fewer_components_and_refuses_what_leaves_nothing():
    assert Pca(16).features(noisy(5), None, 1.0).shape == (5, 5)
    with pytest.raises(
        ParameterError, match=r"leaves no frequency of images of 16 x 16; give a lowpass of at least 0.125"
    ):
        Pca(lowpass=0.1).features(noisy(), None, 1.0)


def test_diffusion_features_are_the_means_of_the_middle_block(tmp_path):
    prior = Diffusion(str(pipeline(tmp_path / "model", unet(sample_size=16))))
    encoder = DiffusionEncoder(prior, sigma=0.7, batch=5)
    images = noisy()
    found = encoder.features(images, None, 1.0)
    model, level = prior.load(), prior.load().level_of(0.7)
    seen = []
    handle = model.unet.mid_block.register_forward_hook(lambda module, given, output: seen.append(output))
    x = (images - images.mean(dim=(1, 2), keepdim=True)) / images.std(dim=(1, 2), keepdim=True, correction=0)
    with torch.no_grad():
        model.network((0.5 * x / (1 + 0.7**2) ** 0.5)[:, None], level)
    handle.remove()
    torch.testing.assert_close(found, seen[0].double().mean(dim=(2, 3)), atol=1e-4, rtol=1e-4)
    # images of another size are resampled, and their scale and offset do not matter
    torch.testing.assert_close(encoder.features(5 * images + 3, None, 1.0), found, atol=1e-4, rtol=1e-4)
    assert encoder.features(noisy(2, 20), None, 1.0).shape == (2, found.shape[1])


def test_diffusion_needs_a_prior_that_states_a_size(tmp_path):
    encoder = DiffusionEncoder(Diffusion(str(pipeline(tmp_path / "model", unet(sample_size=None)))))
    with pytest.raises(DataError, match="does not state the size of its training images"):
        encoder.features(noisy(), None, 1.0)


def checkpoint(**sizes: int) -> dict[str, torch.Tensor]:
    pytest.importorskip("timm", reason="the extra vit (timm) is not installed")
    return transformer_weights(**sizes)


def class_token(state: dict[str, torch.Tensor], x: torch.Tensor, heads: int) -> torch.Tensor:
    """The class token of the layout, written out. x: [N, D, D]."""
    w = {key.removeprefix("base_encoder."): value for key, value in state.items()}
    f = torch.nn.functional
    t = f.conv2d(x[:, None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14).flatten(2).mT
    width = t.shape[-1]
    t = torch.cat([w["cls_token"].expand(len(t), 1, width), t], dim=1) + w["pos_embed"]

    def layer(t, name):
        return f.layer_norm(t, (width,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def linear(t, name):
        return t @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for block in range(2):
        at = f"blocks.{block}"
        q, k, v = linear(layer(t, f"{at}.norm1"), f"{at}.attn.qkv").unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        t = t + linear((weights @ v).transpose(1, 2).flatten(2), f"{at}.attn.proj")
        at_norm = f"{at}.norm2"
        n = (t - w[f"{at_norm}.running_mean"]) / (w[f"{at_norm}.running_var"] + 1e-5).sqrt()
        n = n * w[f"{at_norm}.weight"] + w[f"{at_norm}.bias"]
        t = t + linear(f.gelu(linear(n, f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
    return layer(t, "norm")[:, 0]


def test_a_transformer_gives_the_class_token_of_the_published_layout(tmp_path):
    state = checkpoint()
    save_file(state, tmp_path / "model.safetensors")
    images = noisy(5, 20)
    found = Vit(str(tmp_path), heads=2, batch=2).features(images, None, 1.0)
    token = class_token(state, (eight_bits(images, 28) - vit._MEAN) / vit._DEVIATION, 2)
    torch.testing.assert_close(found, torch.nn.functional.normalize(token.double(), dim=1), atol=1e-5, rtol=1e-4)
    torch.save({"state_dict": state}, tmp_path / "one.pt")
    other = Vit(str(tmp_path / "one.pt"), heads=2)
    torch.testing.assert_close(other.features(images, None, 1.0), found, atol=1e-6, rtol=1e-5)


def test_images_of_a_transformer_are_those_of_pillow_in_8_bits():
    images = noisy(3, 40)
    for image, got in zip(images.numpy(), eight_bits(images, 28), strict=True):
        resized = np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC))
        expected = (resized - resized.min()) / (resized.max() - resized.min()) * 255
        assert np.abs(got.numpy() * 255 - np.floor(expected)).max() <= 1  # rounding next to a step
        assert np.mean(got.numpy() * 255 == np.floor(expected)) > 0.98
    assert not eight_bits(torch.ones(1, 8, 8), 28).any()


def test_the_transformer_of_cryo_ief_has_its_size():
    state = checkpoint(side=224, width=384, depth=12)
    network = network_of(state, "it", 12)
    assert (network.patch_embed.img_size, len(network.blocks)) == ((224, 224), 12)
    assert sum(part.numel() for part in network.parameters()) == pytest.approx(21.5e6, rel=0.02)


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.clear(), r"has no keys base_encoder\.\*"),
    (lambda s: s.pop("base_encoder.pos_embed"), "has no key base_encoder.pos_embed"),
    (lambda s: s.update({"base_encoder.patch_embed.proj.weight": torch.zeros(24, 3, 14, 14)}), "one channel, squares"),
    (lambda s: s.update({"base_encoder.pos_embed": torch.zeros(1, 7, 24)}), "has 7 positions; expected a square"),
    (lambda s: s.update({"base_encoder.more": torch.zeros(1)}), "does not fit.*more"),
])  # fmt: skip
def test_other_layouts_are_refused_in_one_line(change, message):
    state = checkpoint()
    change(state)
    with pytest.raises(DataError, match=message) as refused:
        network_of(state, "it", 2)
    assert "\n" not in str(refused.value)


def test_folders_without_a_checkpoint_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"nowhere does not exist; give a folder with model\.safetensors"):
        Vit(str(tmp_path / "nowhere")).weights_digest()
    with pytest.raises(DataError, match=r"has no model\.safetensors, and of \.pt files it has none"):
        Vit(str(tmp_path)).check((16, 16))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"model\.safetensors cannot be read"):
        Vit(str(tmp_path)).features(noisy(), None, 1.0)
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", None)
    with pytest.raises(DependencyError, match=r"needs timm; install it with `pip install cryobench\[vit\]`"):
        Vit(str(tmp_path)).check((16, 16))


@pytest.mark.parametrize(("spec", "message"), [
    ("pca:0", "components must be at least 1, got 0"),
    ("pca:lowpass=2", "lowpass must be above 0 and at most 1, got 2"),
    ("pca:wiener=0", "wiener must be positive, got 0"),
    ("diffusion:0", "sigma must be positive, got 0"),
    ("diffusion:batch=0", "batch must be at least 1, got 0"),
    ("vit:./model,heads=0", "heads must be at least 1, got 0"),
    ("vit:./model,deviation=0", "the deviation positive, got 0.53"),
])  # fmt: skip
def test_parameters_that_make_no_sense_are_refused(spec, message):
    with pytest.raises(CryobenchError, match=message):
        installed().make("encoders", spec)
