"""Fourier transforms of real images and volumes whose rounding does not depend on batch size or number of threads.

On the CPU scipy is used: the rounding of torch's transforms depends on the number of images and threads, so results
would depend on the batch size. On other devices, and where a gradient is needed, torch is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch


def rfftn(
    images: torch.Tensor, dims: int = 2, norm: Literal["backward", "ortho", "forward"] = "backward"
) -> torch.Tensor:
    """Half spectra [..., *S[:-1], S[-1] // 2 + 1] of real images [..., *S] with `dims` axes, in the same precision."""
    axes = tuple(range(-dims, 0))
    if not _use_scipy(images):
        return torch.fft.rfftn(images, dim=axes, norm=norm)
    from scipy.fft import rfftn

    return torch.from_numpy(rfftn(images.detach().numpy(), axes=axes, norm=norm, workers=torch.get_num_threads()))


def irfftn(spectrum: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Real images [..., *S] from half spectra [..., *S[:-1], S[-1] // 2 + 1], `shape` = S."""
    axes = tuple(range(-len(shape), 0))
    if not _use_scipy(spectrum):
        return torch.fft.irfftn(spectrum, s=tuple(shape), dim=axes)
    from scipy.fft import irfftn

    spectrum = spectrum.detach().resolve_conj()
    return torch.from_numpy(irfftn(spectrum.numpy(), s=tuple(shape), axes=axes, workers=torch.get_num_threads()))


def padded_rfftn(images: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """`rfftn` of real images [..., *S] with zeros after them up to `shape`, axis by axis: lines of zeros are not
    transformed."""
    axes = range(-1, -len(shape) - 1, -1)
    if not _use_scipy(images):
        x = torch.fft.rfft(images, n=shape[-1], dim=-1)
        for axis in axes[1:]:
            x = torch.fft.fft(x, n=shape[axis], dim=axis)
        return x
    from scipy.fft import fft, rfft

    workers = torch.get_num_threads()
    array = rfft(images.detach().numpy(), n=shape[-1], axis=-1, workers=workers)
    for axis in axes[1:]:
        array = fft(array, n=shape[axis], axis=axis, workers=workers)
    return torch.from_numpy(array)


def cropped_irfftn(spectrum: torch.Tensor, shape: Sequence[int], kept: Sequence[int]) -> torch.Tensor:
    """The first `kept` pixels along each axis of `irfftn(spectrum, shape)`, the transpose of `padded_rfftn` up to a
    factor: lines that are cropped are not transformed."""
    if not _use_scipy(spectrum):
        for axis in range(-len(shape), -1):
            spectrum = torch.fft.ifft(spectrum, dim=axis).narrow(axis, 0, kept[axis])
        return torch.fft.irfft(spectrum, n=shape[-1], dim=-1)[..., : kept[-1]].contiguous()
    from scipy.fft import ifft, irfft

    workers = torch.get_num_threads()
    array: Any = spectrum.detach().resolve_conj().numpy()
    for axis in range(-len(shape), -1):
        array = ifft(array, axis=axis, workers=workers)
        array = array[(..., slice(kept[axis]), *[slice(None)] * (-axis - 1))]
    array = irfft(array, n=shape[-1], axis=-1, workers=workers)
    return torch.from_numpy(array[..., : kept[-1]].copy())


def half_frequencies(shape: Sequence[int], device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """The frequencies of a half spectrum along each axis, cycles/pixel, float64: one tensor per axis, which broadcasts
    over [*S[:-1], S[-1] // 2 + 1]."""
    options = {"dtype": torch.float64, "device": device}
    axes = [torch.fft.fftfreq(n, **options) for n in shape[:-1]] + [torch.fft.rfftfreq(shape[-1], **options)]
    return [k.reshape(-1, *[1] * (len(shape) - 1 - axis)) for axis, k in enumerate(axes)]


def whole_spectrum(half: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Expand values that are equal at k and -k from the layout of `rfftn` [..., *S[:-1], S[-1] // 2 + 1] to `fftn`."""
    width = shape[-1]
    mirrored = half[..., 1 : (width + 1) // 2].flip(-1)
    for axis, n in zip(range(-len(shape), -1), shape[:-1], strict=True):
        mirrored = mirrored.index_select(axis, -torch.arange(n, device=half.device) % n)
    return torch.cat([half, mirrored], dim=-1)


def _use_scipy(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and not (torch.is_grad_enabled() and x.requires_grad)
