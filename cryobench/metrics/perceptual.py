"""Perceptual similarity to the truth, of the features of a network trained on photographs or of phase and gradient."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from cryobench.core import Case, Column, Measured, Metric, Reconstruction
from cryobench.errors import DependencyError, described
from cryobench.extras import of_extra
from cryobench.metrics.missing import not_measured
from cryobench.metrics.within import inside, mean_inside
from cryobench.numerics.linalg import one_channel, per_item

ABSENT = "absent"
MIN_SIDE = 31
"""Shortest side, in pixels, for which all of AlexNet's layers have an output."""
FSIM_SIDE = 16
"""Shortest side, in pixels, of images for `fsim`: its coarsest filter has a wavelength of 48 pixels."""


@dataclass(frozen=True)
class Lpips(Metric):
    """Learned perceptual image patch similarity (Zhang et al. 2018, CVPR, equation 1): the distance between deep
    features of the two images, version 0.1 with AlexNet, as the package `lpips` computes it.

    The data range is mapped to [-1, 1], and the image is repeated in three channels. Pixels outside the circle, if
    there is one, are set to the truth's mean inside it. The features were learned on photographs, not on particles,
    and weighted by human judgements of similarity. AlexNet's weights, 233 MiB, are read from torch's cache
    ($TORCH_HOME/hub/checkpoints) and never downloaded: without them the column is empty, with the reason.
    """

    columns = (Column("lpips", "lower"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        if min(case.truth.shape[2:]) < MIN_SIDE:
            return not_measured(self, case, f"AlexNet needs images of {MIN_SIDE} pixels a side or more")
        try:
            network = _network(alexnet_weights(), case.truth.device)
        except DependencyError as error:
            return not_measured(self, case, str(error))
        outside = per_item(mean_inside(case, case.truth.double()), case.truth)
        images = [
            (2 * case.unit_range(torch.where(inside(case), x.double(), outside)) - 1).float().expand(-1, 3, -1, -1)
            for x in (reconstruction.x, case.truth)
        ]
        with torch.no_grad():
            return Measured({"lpips": network(*images).flatten().double()})

    def weights_digest(self) -> str:
        """SHA-256 of AlexNet's weights, or `ABSENT`, so that cells with and without the weights are distinct."""
        try:
            weights = alexnet_weights()
        except DependencyError:
            return ABSENT
        return weights.digest


@dataclass(frozen=True)
class Fsim(Metric):
    """Feature similarity (Zhang, Zhang, Mou and Zhang 2011, IEEE Trans. Image Process. 20:2378) of phase congruency and
    gradient, as the package `piq` computes it, on intensities in [0, 1], which are clipped; for volumes the mean over
    the sections across z. Of the whole image. Needs the extra `fsim`.
    """

    dims = (2, 3)
    columns = (Column("fsim", "higher"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        if min(case.truth.shape[-2:]) < FSIM_SIDE:
            return not_measured(self, case, f"its filters need images of {FSIM_SIDE} pixels a side or more")
        if case.within is not None:
            return not_measured(self, case, "it has no value for a part of an image")
        try:
            import piq
        except Exception as error:  # incompatible builds of torch and torchvision raise more than ImportError
            return not_measured(self, case, f"piq cannot be imported ({described(error)}); install cryobench[fsim]")
        images = [case.unit_range(one_channel(x)).clamp(0, 1) for x in (reconstruction.x, case.truth)]
        x, truth = (image.reshape(-1, 1, *image.shape[-2:]) for image in images)
        values = [piq.fsim(a[None], b[None], data_range=1.0, chromatic=False) for a, b in zip(x, truth, strict=True)]
        return Measured({"fsim": torch.stack(values).reshape(len(case.truth), -1).mean(dim=1).double()})


@dataclass(frozen=True)
class _Weights:
    """A weights file, identified by size and modification time."""

    path: Path
    size: int
    changed: int

    @property
    def digest(self) -> str:
        return _digest(self)


def alexnet_weights() -> _Weights:
    """AlexNet's weights in torch's cache. Raises `DependencyError` if they are absent."""
    try:
        with of_extra("perceptual"):
            import lpips  # noqa: F401
            from torchvision.models import AlexNet_Weights
    except DependencyError:
        raise
    except Exception as error:  # incompatible builds of torch and torchvision raise more than ImportError
        raise DependencyError(f"torchvision cannot be imported: {described(error)}") from error
    name = AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        found = path.stat()
    except OSError as error:
        raise DependencyError(
            f"AlexNet's weights are not on this machine ({name}); `python -c \"import torchvision; "
            "torchvision.models.alexnet(weights='IMAGENET1K_V1')\"` fetches them"
        ) from error
    return _Weights(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1)
def _digest(weights: _Weights) -> str:
    with weights.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1)
def _network(weights: _Weights, device: torch.device) -> Any:
    """The LPIPS network with these weights. Raises `DependencyError` if they are not AlexNet's.

    The package creates a network without weights, which are then loaded from the file; otherwise it would download
    missing weights.
    """
    try:
        import lpips

        # initialising layers draws random numbers, which must not change the global random state; lpips calls
        # torchvision in a deprecated way
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        state = torch.load(weights.path, map_location="cpu", weights_only=True)
        for part in network.net.children():
            for number, layer in part.named_children():
                named = f"features.{number}."
                layer.load_state_dict({key: state[named + key] for key in layer.state_dict()})
    except Exception as error:  # unpickling, torch and the packages raise many kinds of errors
        raise DependencyError(f"AlexNet's weights {weights.path} cannot be used: {described(error)}") from error
    return network.float().eval().to(device)
