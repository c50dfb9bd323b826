"""Fourier transforms of real images, rounded the same whatever the batch and the number of threads.

On the CPU they are scipy's: those of torch round by how many images there are, or by how many threads share them, and
with them a result would change with its batch. On other devices, and where a gradient is asked for, they are torch's.
"""

from __future__ import annotations

from typing import Literal

import torch


def rfft2(images: torch.Tensor, norm: Literal["backward", "ortho", "forward"] = "backward") -> torch.Tensor:
    """Half spectra [..., H, W // 2 + 1] of real images [..., H, W], in the precision of the images."""
    if not _scipys(images):
        return torch.fft.rfft2(images, norm=norm)
    from scipy.fft import rfft2

    return torch.from_numpy(rfft2(images.detach().numpy(), norm=norm, workers=torch.get_num_threads()))


def irfft2(spectrum: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Real images [..., H, W] of half spectra [..., H, W // 2 + 1], `shape` = (H, W)."""
    if not _scipys(spectrum):
        return torch.fft.irfft2(spectrum, s=shape)
    from scipy.fft import irfft2

    spectrum = spectrum.detach().resolve_conj()
    return torch.from_numpy(irfft2(spectrum.numpy(), s=shape, workers=torch.get_num_threads()))


def _scipys(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and not (torch.is_grad_enabled() and x.requires_grad)
