"""`denoiser`: a network that removes the noise of an image, trained on pairs of noisy images or on clean ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch

from cryobench.core import Prior, Shape
from cryobench.errors import DataError, described
from cryobench.networks import tiles
from cryobench.networks.files import CONFIG, WEIGHTS, read_config, read_json, read_network
from cryobench.networks.unet import UNet
from cryobench.priors.model_folder import CARD

PACKAGED = "packaged"
PACKAGED_FOLDER = Path(__file__).parent / "embedded_n2n"
"""Of the network in the package; written by tools/pack_n2n.py."""


@dataclass(frozen=True)
class Denoiser(Prior):
    """A denoising network in a folder, as `cryobench train --objective noise2noise` or `supervised` writes it.

    It takes images of any size, of mean 0 and standard deviation 1.
    """

    location_fields = ("source",)

    source: Annotated[str, "a folder; packaged: the network of this installation, if it has one"] = PACKAGED
    _base: Path | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.source != PACKAGED and not self.source.startswith(("/", "~")):
            # a relative path refers to the current folder now, which may change before the network is loaded
            object.__setattr__(self, "_base", Path.cwd())

    @property
    def folder(self) -> Path:
        """The folder of the network. Raises `DataError` if there is none."""
        if self.source == PACKAGED:
            if not (PACKAGED_FOLDER / CONFIG).exists():
                raise DataError("this installation has no denoising network; train one with `cryobench train "
                                "--objective noise2noise`, and give it as model=./FOLDER")  # fmt: skip
            return PACKAGED_FOLDER
        folder = (self._base or Path()) / Path(self.source).expanduser()
        if not (folder / CONFIG).exists():
            raise DataError(f"{self.source} is no folder of a denoising network: it has no {CONFIG}; give one that "
                            "`cryobench train --objective noise2noise` wrote")  # fmt: skip
        return folder

    def load(self, device: torch.device | str = "cpu") -> UNet:
        """The network on a device, cached after it is read. Raises `DataError` if it cannot be read."""
        return _loaded(self.folder, self.weights_digest(), str(device))

    def prepare(self, device: torch.device) -> None:
        self.load(device)

    def check(self, shape: Shape) -> None:
        tiles.check_sides(read_config(self.folder), *shape)

    def weights_digest(self) -> str:
        """SHA-256 of architecture and weights, independent of their place."""
        folder = self.folder
        return _digest(folder, tuple((folder / name).stat() for name in (CONFIG, WEIGHTS) if (folder / name).exists()))

    def trained_on(self) -> Sequence[Mapping[str, str]]:
        """The origins of the training images, and the digest of each half of a micrograph it was trained on as `half`;
        empty without a card."""
        card = self.card
        return [*card.get("trained_on", ()), *({"half": digest} for digest in card.get("halves", ()))]

    def details(self) -> Mapping[str, Any]:
        config = read_config(self.folder)
        return {"denoiser": {"weights": self.weights_digest(), "radius": config.radius, "stride": config.stride}}

    @property
    def card(self) -> Mapping[str, Any]:
        """The card that `cryobench train` writes; empty without one."""
        path = self.folder / CARD
        return read_json(path) if path.exists() else {}


@lru_cache(maxsize=8)
def _digest(folder: Path, stamp: object) -> str:
    """`stamp` is a cache key: it changes when the files do."""
    digest = hashlib.sha256(repr(read_config(folder)).encode())
    try:
        digest.update((folder / WEIGHTS).read_bytes())
    except OSError as error:
        raise DataError(f"{folder / WEIGHTS} cannot be read ({described(error)}); copy the folder again") from error
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _loaded(folder: Path, digest: str, device: str) -> UNet:
    return read_network(folder).to(device)
