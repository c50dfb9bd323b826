"""Small random networks, in folders and hub caches with the layout of diffusers and the hub's client."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cryobench.networks.files import CONFIG, WEIGHTS, config_values
from cryobench.networks.film import FilmConfig, FilmUNet
from cryobench.networks.unet import UNet
from cryobench.priors.conditional import PATCH, PREDICTS

COMMIT = "c" * 40
LINEAR = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
          "num_train_timesteps": 1000, "prediction_type": "epsilon"}  # fmt: skip


def unet(seed: int = 0, **changes: Any):
    """A random `UNet2DModel` of 16 x 16 images; `changes` to its configuration."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    values = {
        "sample_size": 16, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(**(values | changes)).eval()


def pipeline(folder: Path, network: Any = None, **scheduler: Any) -> Path:
    """A folder with the layout of a diffusers pipeline. `scheduler`: changes to the linear DDPM."""
    (network or unet()).save_pretrained(folder / "unet")
    write(folder / "scheduler" / "scheduler_config.json", LINEAR | scheduler)
    write(folder / "model_index.json", {"_class_name": "DDPMPipeline"})
    return folder


def denoiser(folder: Path, network: UNet) -> Path:
    """A new folder with a denoising network, in the layout of `cryobench train`, without a card."""
    folder.mkdir()
    save_file(network.state_dict(), folder / WEIGHTS)
    write(folder / CONFIG, config_values(network.config))
    return folder


def film_unet(config: FilmConfig, seed: int = 0, deviation: float = 0.1) -> FilmUNet:
    """A network with random weights everywhere, also in the layers that begin as zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = FilmUNet(config).eval()
        for weights in made.parameters():
            torch.nn.init.normal_(weights, std=deviation)
    return made


def conditional(folder: Path, network: FilmUNet, predicts: str, patch: int) -> Path:
    """A new folder with a network of `conditional` or `regression`, in the layout of `cryobench train`."""
    folder.mkdir()
    save_file(network.state_dict(), folder / WEIGHTS)
    write(folder / CONFIG, config_values(network.config, **{PREDICTS: predicts, PATCH: patch}))
    return folder


def write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def cached(cache: Path, name: str, files: Mapping[str, bytes], *, commit: str = COMMIT, ref: str = "main") -> Path:
    """Files of a repository in the layout of the hub's cache: blobs, a snapshot of links to them, and a branch."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    (repository / "blobs").mkdir(exist_ok=True)
    for path, content in files.items():
        blob = repository / "blobs" / f"{commit[:8]}-{path.replace('/', '-')}"
        blob.write_bytes(content)
        link = snapshot / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def transformer_weights(*, side: int = 28, width: int = 24, depth: int = 2) -> dict[str, torch.Tensor]:
    """Random weights in the layout of Cryo-IEF, with a projection head and a second encoder. Needs timm."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=side, patch_size=14, in_chans=1, embed_dim=width, depth=depth, num_heads=2, num_classes=0
    )
    state = {f"base_encoder.{key}": value.clone() for key, value in network.state_dict().items()}
    for block in range(depth):
        at = f"base_encoder.blocks.{block}.norm2"
        state[f"{at}.running_mean"] = torch.randn(width)
        state[f"{at}.running_var"] = torch.rand(width) + 0.5
        state[f"{at}.num_batches_tracked"] = torch.tensor(7)
        state[f"{at}.weight"], state[f"{at}.bias"] = torch.rand(width) + 0.5, torch.randn(width)
    state["base_encoder.head.0.weight"] = torch.randn(8, width)
    state["momentum_encoder.cls_token"] = torch.zeros(1, 1, width)
    return state
