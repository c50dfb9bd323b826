"""`denoiser`: a network that removes the noise of an image, trained on pairs of noisy images or on clean ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cryobench.core import Shape
from cryobench.errors import DataError
from cryobench.networks import tiles
from cryobench.networks.files import CONFIG
from cryobench.priors.network_folder import NetworkFolder

PACKAGED = "packaged"
PACKAGED_FOLDER = Path(__file__).parent / "embedded_n2n"
"""Of the network in the package; written by tools/pack_n2n.py."""


@dataclass(frozen=True)
class Denoiser(NetworkFolder):
    """A denoising network in a folder, as `cryobench train --objective noise2noise` or `supervised` writes it.

    It takes images of any size, of mean 0 and standard deviation 1.
    """

    architecture, objective, kind = "unet", "noise2noise", "denoising network"

    source: Annotated[str, "a folder; packaged: the network of this installation, if it has one"] = PACKAGED

    @property
    def relative(self) -> bool:
        return self.source != PACKAGED and super().relative

    @property
    def folder(self) -> Path:
        """The folder of the network. Raises `DataError` if there is none."""
        if self.source != PACKAGED:
            return super().folder
        if not (PACKAGED_FOLDER / CONFIG).exists():
            raise DataError("this installation has no denoising network; train one with `cryobench train --objective "
                            "noise2noise`, and give it as model=./FOLDER")  # fmt: skip
        return PACKAGED_FOLDER

    def check(self, shape: Shape) -> None:
        tiles.check_sides(self.config, *shape)

    def details(self) -> Mapping[str, Any]:
        config = self.config
        return {"denoiser": {"weights": self.weights_digest(), "radius": config.radius, "stride": config.stride}}
