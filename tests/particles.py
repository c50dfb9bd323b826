"""Simulated particles for tests of solvers, independent of the package's simulator."""

from __future__ import annotations

import numpy as np
import torch


def simulated(n: int, size: int, *, seed: int = 0, snr: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The images that enter the operator, and the clean ones on their scale, [n, 1, size, size] float32 in [-1, 1].

    A compact random chain of 4000 atoms, projected, blurred to 2 pixels, modulated by a CTF (300 kV, 1.5 to 1.8 µm,
    1.5 Å per pixel), with white noise of the given signal-to-noise ratio, if any.
    """
    rng = np.random.default_rng(seed)
    fine = 4 * size
    k = np.fft.fftfreq(size)
    k2 = k[:, None] ** 2 + k[None] ** 2
    keep = np.fft.ifftshift(np.arange(size) - size // 2)
    images, clean = [], []
    for _ in range(n):
        chain = np.zeros((4000, 2))
        for i in range(1, len(chain)):
            chain[i] = 0.997 * chain[i - 1] + 0.08 * rng.normal(size=2)
        chain = (chain - chain.mean(axis=0)) * 0.2 * size / np.sqrt((chain**2).sum(axis=1).mean())
        density, *_ = np.histogram2d(*chain.T, bins=fine, range=[[-size / 2, size / 2]] * 2)
        spectrum = np.fft.fft2(density)[np.ix_(keep, keep)] * np.exp(-2 * np.pi**2 * (2 / 2.355) ** 2 * k2)
        s2 = k2 / 1.5**2  # 1/Å^2
        chi = np.pi * 0.0197 * rng.uniform(15000, 18000) * s2 - 0.5 * np.pi * 2.7e7 * 0.0197**3 * s2**2
        signal = np.fft.ifft2(spectrum * -np.sin(chi + 0.1) * np.exp(-50 * s2 / 4)).real
        noisy = signal + (rng.normal(size=signal.shape) * signal.std() / snr**0.5 if snr else 0)
        low, high = noisy.min(), noisy.max()
        images.append(2 * (noisy - low) / (high - low) - 1)
        clean.append(2 * (signal - low) / (high - low) - 1)
    return tuple(torch.tensor(np.stack(stack)[:, None], dtype=torch.float32) for stack in (images, clean))
