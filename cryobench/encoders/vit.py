"""`vit`: features of a vision transformer in a checkpoint, as that of Cryo-IEF is published.

The checkpoint is `model.safetensors` (or a `.pt` file with tensors alone), whose keys `base_encoder.*` are those of a
`VisionTransformer` of timm with one channel; its projection head, `base_encoder.head*`, is not used. Where it has
running means, the second norm of each block is a batch norm over all tokens, in evaluation mode. Cryo-IEF's `vit_small`
has patches of 14, 12 blocks of width 384 with 12 heads, and images of 224 x 224. As published, an image is resampled
to that size by bicubic interpolation, mapped from its minimum and maximum to 0 to 255, truncated to 8 bits, divided by
255, and standardised by the mean and deviation of the training images. The features are the class token after the last
norm, divided by its length.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from cryobench.core import Encoder, Shape
from cryobench.errors import DataError, DependencyError, ParameterError, described, reason_of
from cryobench.file_state import FileState

_PREFIX, _HEAD = "base_encoder.", "head"
_MEAN, _DEVIATION = 0.53786290141223, 0.11803331075935841
"""Of the training images of Cryo-IEF, on the scale from 0 to 1."""
_LAYOUT = "a checkpoint of Cryo-IEF has keys base_encoder.* of a timm VisionTransformer with one channel"


@dataclass(frozen=True)
class Vit(Encoder):
    """Features of a vision transformer: the class token of a checkpoint as Cryo-IEF publishes it.

    The folder has `model.safetensors` with the keys `base_encoder.*`. Width, depth, patches and side of the images
    are those of the weights. Needs timm (the extra `vit`).
    """

    location_fields = ("folder",)
    folder: Annotated[str, "folder with model.safetensors, or the file"]
    heads: Annotated[int, "attention heads, which the weights do not state; 12 in vit_small and vit_base"] = 12
    mean: Annotated[float, "mean of the training images on the scale from 0 to 1"] = _MEAN
    deviation: Annotated[float, "standard deviation of the training images"] = _DEVIATION
    batch: Annotated[int, "images at once"] = 16
    _base: Path = field(init=False, repr=False, compare=False, default=Path())

    def __post_init__(self) -> None:
        if not self.folder.strip():
            raise ParameterError("vit: the folder is empty; give one with model.safetensors")
        for name in ("heads", "batch"):
            if getattr(self, name) < 1:
                raise ParameterError(f"vit: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.deviation < math.inf or not math.isfinite(self.mean):
            raise ParameterError(
                f"vit: mean and deviation must be finite and the deviation positive, got {self.mean:g} and "
                f"{self.deviation:g}"
            )
        # a relative path refers to the current folder now, which may change before the weights are read
        object.__setattr__(self, "_base", Path.cwd())

    def check(self, shape: Shape) -> None:
        """Raise `DataError` where there is no checkpoint, and `DependencyError` without timm."""
        self._file()
        _transformer()

    def weights_digest(self) -> str:
        """SHA-256 of the file, independent of its location."""
        return _digest(FileState.of(self._file(), "checkpoint"))

    def features(self, images: torch.Tensor, transfer: torch.Tensor | None, pixel_size: float) -> torch.Tensor:
        network = _loaded(FileState.of(self._file(), "checkpoint"), self.heads, str(images.device))
        side = network.patch_embed.img_size[0]
        found = []
        with torch.no_grad():
            for some in images.split(self.batch):
                x = (eight_bits(some, side) - self.mean) / self.deviation
                token = network.forward_features(x[:, None])[:, 0].double()
                found.append(functional.normalize(token, dim=1))
        return torch.cat(found)

    def _file(self) -> Path:
        given = self._base / Path(self.folder).expanduser()
        if given.is_file():
            return given
        if not given.is_dir():
            raise DataError(f"vit: {given} does not exist; give a folder with model.safetensors")
        if (given / "model.safetensors").is_file():
            return given / "model.safetensors"
        others = sorted(given.glob("*.pt"))
        if len(others) != 1:
            found = "none" if not others else ", ".join(path.name for path in others)
            raise DataError(
                f"vit: {given} has no model.safetensors, and of .pt files it has {found}; expected one checkpoint, or "
                "give the file"
            )
        return others[0]


def eight_bits(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images [N, D, D] resampled to a side, each from 0 to 1 in 256 steps; a constant image is 0. float32."""
    images = images - images[:, :1, :1]  # a constant image stays one
    x = functional.interpolate(images[:, None].float(), (side, side), mode="bicubic", antialias=True)[:, 0]
    low, high = x.amin(dim=(1, 2), keepdim=True), x.amax(dim=(1, 2), keepdim=True)
    unit = (x - low) / torch.where(high > low, high - low, 1.0)
    return (unit * 255).floor() / 255


@lru_cache(maxsize=8)
def _digest(state: FileState) -> str:
    try:
        with state.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"vit: {state.path} cannot be read: {reason_of(error)}") from error


@lru_cache(maxsize=2)
def _loaded(file: FileState, heads: int, device: str) -> Any:
    path = file.path
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch have their own exceptions
        raise DataError(f"vit: {path} cannot be read: {described(error)}") from error
    return network_of(state, str(path), heads).to(device)


def network_of(state: object, where: str, heads: int) -> Any:
    """The network of a checkpoint, in evaluation mode. where: the file, for messages.

    Raises `DataError` for keys or shapes of another layout, and `DependencyError` without timm.
    """
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    weights = {} if not isinstance(state, Mapping) else {
        str(key).removeprefix(_PREFIX): value for key, value in state.items()
        if str(key).startswith(_PREFIX) and not str(key).startswith(_PREFIX + _HEAD)
    }  # fmt: skip
    if not weights:
        raise DataError(f"vit: {where} has no keys {_PREFIX}*; {_LAYOUT}")
    for needed in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        if needed not in weights:
            raise DataError(f"vit: {where} has no key {_PREFIX}{needed}; {_LAYOUT}")
    patches, positions = weights["patch_embed.proj.weight"], weights["pos_embed"]
    if patches.ndim != 4 or patches.shape[1] != 1 or patches.shape[2] != patches.shape[3]:
        raise DataError(f"vit: {where} has patches of shape {list(patches.shape)}, expected [width, 1, p, p]: "
                        "one channel, squares")  # fmt: skip
    width, patch, grid = patches.shape[0], patches.shape[2], math.isqrt(positions.shape[1] - 1)
    if grid**2 + 1 != positions.shape[1]:
        raise DataError(
            f"vit: {where} has {positions.shape[1]} positions; expected a square number and 1 for the class token"
        )
    if width % heads:
        raise DataError(f"vit: {where} has width {width}, which {heads} heads do not divide; give vit:heads=")
    depth = 1 + max(int(found[1]) for key in weights if (found := re.match(r"blocks\.(\d+)\.", key)))
    network = _transformer()(
        img_size=grid * patch,
        patch_size=patch,
        in_chans=1,
        num_classes=0,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=weights["blocks.0.mlp.fc1.weight"].shape[0] / width,
    )
    if "blocks.0.norm2.running_mean" in weights:
        for block in network.blocks:
            block.norm2 = _TokenNorm(width)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"vit: {where} does not fit: {' '.join(str(error).split())[:300]}; {_LAYOUT}") from error
    return network.eval()


class _TokenNorm(nn.BatchNorm1d):
    """A batch norm over all tokens of all images, [B, N, C]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.flatten(0, 1)).view_as(input)


def _transformer() -> Any:
    """timm's `VisionTransformer`. Raises `DependencyError` without timm."""
    try:
        from timm.models.vision_transformer import VisionTransformer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DependencyError("the encoder vit needs timm; install it with `pip install cryobench[vit]`") from error
    return VisionTransformer
