"""Soft masks of maps, [D, D, D] with the centre at voxel D // 2."""

from __future__ import annotations

import torch

from cryobench.errors import ParameterError
from cryobench.metrics.within import centre_distance, raised_cosine
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.shells import radial_frequency


def soft_ball(
    side: int,
    radius_pixels: float,
    edge_pixels: float,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """1 within a radius of the centre, falling to 0 as a raised cosine over `edge_pixels` outside it, [D, D, D]."""
    beyond = centre_distance((side,) * 3, device) - radius_pixels
    return _soft(beyond, edge_pixels).to(dtype)


def mask_of(
    volume: torch.Tensor,
    *,
    threshold: float | None = None,
    low_pass_pixels: float | None = None,
    extend_pixels: float = 3.0,
    edge_pixels: float = 6.0,
) -> torch.Tensor:
    """The mask of a map [D, D, D], in the steps of `relion_mask_create` and with the default widths of its interface.

    The map is low-passed to `low_pass_pixels` (a Gaussian that is 1/2 at this resolution; None: not), and compared with
    `threshold`, by default the one that separates two classes best (Otsu 1979, IEEE Trans. Syst. Man Cybern. 9:62).
    The mask is 1 within `extend_pixels` of voxels at or above the threshold, and falls to 0 as a raised cosine over
    `edge_pixels`. It has the dtype of the map. Raises `ParameterError` if no voxel is above the threshold.
    """
    from scipy.ndimage import distance_transform_edt
    from skimage.filters import threshold_otsu

    smooth = volume.double() if low_pass_pixels is None else low_passed(volume.double(), low_pass_pixels)
    array = smooth.cpu().numpy()
    level = float(threshold_otsu(array)) if threshold is None else threshold
    above = array >= level
    if not above.any() or above.all():
        what = "every voxel" if above.any() else "no voxel"
        raise ParameterError(
            f"{what} of the map is above the threshold {level:.4g} of its mask; give one between {array.min():.4g} and "
            f"{array.max():.4g}, or the radius of a ball"
        )
    distance = torch.from_numpy(distance_transform_edt(~above))
    return _soft(distance - extend_pixels, edge_pixels).to(volume)


def low_passed(volume: torch.Tensor, resolution_pixels: float) -> torch.Tensor:
    """A map [D, D, D] times a Gaussian in Fourier space that is 1/2 at a resolution."""
    frequency = radial_frequency(volume.shape, volume.device)
    return irfftn(rfftn(volume, 3) * torch.exp2(-((frequency * resolution_pixels) ** 2)).to(volume), volume.shape)


def _soft(beyond: torch.Tensor, edge: float) -> torch.Tensor:
    """The mask at signed distances from its border, in voxels; without an edge it is 1 up to the border."""
    return raised_cosine(beyond / edge) if edge > 0 else (beyond <= 0).double()
