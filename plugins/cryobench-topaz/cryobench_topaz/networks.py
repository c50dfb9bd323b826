"""The two-dimensional denoising networks that topaz-em ships: their weights, and what tiles need to know of each.

The classes are those of the installed package. Its own loader is not used: it needs pkg_resources, which setuptools
has removed, and unpickles without `weights_only`.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution

import torch
from torch import nn

from cryobench.errors import DataError, DependencyError, described

INSTALL = "install it: pip install 'topaz-em==0.3.20'"


@dataclass(frozen=True)
class Convolutions:
    """Convolutions one after another, at full resolution. widths: of their kernels, in pixels."""

    widths: tuple[int, ...]
    bytes_per_pixel: int

    stride = 1

    @property
    def radius(self) -> int:
        return sum(width // 2 for width in self.widths)


@dataclass(frozen=True)
class UNet:
    """A U-Net that halves an image `depth` times by maxima over 2 x 2 pixels, and doubles it by repetition.

    At full resolution it has a convolution of width `first` and at the end three of width `last`; on each coarser level
    one of width 3 on the way down and, except on the coarsest, two of width 3 on the way up. The decoder of a level
    takes what the encoder hands down to this level, after the maximum: at full resolution the image itself.
    """

    depth: int
    first: int
    last: int
    bytes_per_pixel: int

    @property
    def stride(self) -> int:
        return 2**self.depth

    @property
    def radius(self) -> int:
        """An output pixel depends on no input pixel that is farther away along an axis."""
        distances = []
        for pixel in range(self.stride):
            low, high = self._decoded(pixel, pixel, 0)
            distances += [pixel - low, high - pixel]
        return max(distances)

    def _decoded(self, low: int, high: int, level: int) -> tuple[int, int]:
        """The interval of the image on which the interval [low, high] of the output of a level depends."""
        if level == self.depth:
            return self._encoded(low - 1, high + 1, level)
        reach = 3 * (self.last // 2) if level == 0 else 2
        low, high = low - reach, high + reach
        below = self._decoded(low // 2, high // 2, level + 1)
        beside = self._encoded(low, high, level)
        return min(below[0], beside[0]), max(below[1], beside[1])

    def _encoded(self, low: int, high: int, level: int) -> tuple[int, int]:
        """The same for the input of the decoder of a level."""
        for finer in reversed(range(level)):
            reach = self.first // 2 if finer == 0 else 1
            low, high = 2 * low - reach, 2 * high + 1 + reach
        return low, high


@dataclass(frozen=True)
class Shipped:
    """A network of topaz-em. file: of its weights; sha256: of that file, by which results are those of this network."""

    file: str
    sha256: str
    config: Convolutions | UNet


SHIPPED = {
    "unet": Shipped(
        "unet_L2_v0.2.2.sav",
        "02709ad0bfe382f221b7ed9d4f9c14981689c2e0222e004036f925a002819c3e",
        UNet(5, first=11, last=5, bytes_per_pixel=1250),
    ),
    "unet-small": Shipped(
        "unet_small_L1_v0.2.2.sav",
        "bae9b9f81de2d115cc3d6b41854de2e23178962487a8d2c9e6744cc2348ce352",
        UNet(3, first=11, last=5, bytes_per_pixel=1250),
    ),
    "fcnn": Shipped(
        "fcnn_L1_v0.2.2.sav",
        "f95402e81e00b44f5f0569511929e24495b7939eee94120d2ffb0cc3844f87d3",
        Convolutions((11, 11, 11), bytes_per_pixel=750),
    ),
    "affine": Shipped(
        "affine_L1_v0.2.2.sav",
        "b1520173a87954ccd1df641a071d712d795763baf735d0f4fcc8f0ba0dd7aa35",
        Convolutions((31,), bytes_per_pixel=70),
    ),
    "unet-v0.2.1": Shipped(
        "unet_L2_v0.2.1.sav",
        "a29f4ef2518ad11590e52b825fa847670d5e6f969dcd9867d6724468b383ea33",
        UNet(5, first=7, last=3, bytes_per_pixel=1250),
    ),
}
"""By the names that `topaz denoise --model` takes. (Bepler, Kelley, Noble & Berger 2020, Nat. Commun. 11:5208.)"""


def build(config: Convolutions | UNet) -> nn.Module:
    """Topaz's module of an architecture in `SHIPPED`, with random weights. Raises `ImportError` if it is missing."""
    from topaz.denoising.models import AffineDenoise, DenoiseNet2, UDenoiseNet, UDenoiseNetSmall

    match config:
        case UNet(depth=5):
            return UDenoiseNet(base_width=config.first, top_width=config.last)
        case UNet():
            return UDenoiseNetSmall(width=config.first, top_width=config.last)
        case Convolutions(widths=(width,)):
            return AffineDenoise(max_size=width)
        case _:
            return DenoiseNet2(64, width=config.widths[0])


class Network(nn.Module):
    """A network of topaz-em, [B, 1, H, W] -> [B, 1, H, W], for images of mean 0 and standard deviation 1."""

    def __init__(self, shipped: Shipped, module: nn.Module):
        super().__init__()
        self.config, self.module = shipped.config, module
        for part in module.modules():
            if isinstance(part, nn.LeakyReLU):
                part.inplace = True  # each follows a convolution: one array of features less

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


def weights(name: str) -> dict[str, torch.Tensor]:
    """The weights of a network of topaz-em, from the files of the installed package, which is not imported.

    Raises `DependencyError` if it is not installed, and `DataError` for a file with other weights than those known.
    """
    shipped = SHIPPED[name]
    try:
        path = distribution("topaz-em").locate_file(f"topaz/pretrained/denoise/{shipped.file}")
        content = path.read_bytes()
    except (PackageNotFoundError, OSError) as error:
        raise DependencyError(f"topaz-em's network {name} cannot be read ({described(error)}); {INSTALL}") from error
    if hashlib.sha256(content).hexdigest() != shipped.sha256:
        raise DataError(f"{path} holds other weights than those of topaz-em 0.3.20; {INSTALL}")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


@lru_cache(maxsize=2)
def load(name: str, device: str = "cpu") -> Network:
    """A network of topaz-em for evaluation, on a device, cached. Raises what `weights` raises."""
    shipped, state = SHIPPED[name], weights(name)
    try:
        module = build(shipped.config)
    except ImportError as error:
        raise DependencyError(f"topaz cannot be imported ({described(error)}); {INSTALL}") from error
    module.load_state_dict(state)
    return Network(shipped, module).eval().requires_grad_(False).to(device)
