"""Resolution that half maps state, under several masks, beside that against the truth.

    uv run python benchmarks/half_maps.py

Half maps are the potential of `3mht` in 64^3 voxels of 1.5 Å with independent white noise, whose power is 6 times that
of the signal (FSC 0.143 without a mask) in the shell of 7 Å: as it is, and with no signal beyond 10 Å. Printed are the
resolutions in Å: of the halves at 0.143, without mask, under it and corrected for it, and of their mean against the
truth at 0.5 under the same mask; the mean and the standard deviation over seeds.
"""

from __future__ import annotations

import numpy as np
import torch

from cryobench.maps.fsc import half_map_fsc, resolution_of, shell_correlation
from cryobench.maps.masks import mask_of, soft_ball
from cryobench.sources.structure import Structure

SIDE, PIXEL, SEEDS = 64, 1.5, 6


def shell_power(volume: np.ndarray) -> np.ndarray:
    """Mean power of a coefficient in each shell of the full spectrum."""
    k = np.fft.fftfreq(SIDE, 1 / SIDE)
    shell = np.round(np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)).astype(int).ravel()
    power = np.abs(np.fft.fftn(volume)).ravel() ** 2
    return np.bincount(shell, power) / np.bincount(shell)


def masks(mean: torch.Tensor, radius: float) -> dict[str, torch.Tensor | None]:
    smooth, pixels = {"low_pass_pixels": 15.0 / PIXEL}, radius / PIXEL
    return {
        "none": None,
        "ball": soft_ball(SIDE, pixels, 5.0),
        "ball, no edge": soft_ball(SIDE, pixels, 0.0),
        "half the radius": soft_ball(SIDE, pixels / 2, 5.0),
        "of the map": mask_of(mean, **smooth, extend_pixels=2.0, edge_pixels=4.0),
        "of the map, no edge": mask_of(mean, **smooth, extend_pixels=0.0, edge_pixels=0.0),
    }


def main() -> None:
    stack = Structure("3mht", pixel_size=PIXEL, size=SIDE).open()
    whole = stack.read(0).astype(np.float64)
    deviation = np.sqrt(shell_power(whole)[round(SIDE * PIXEL / 7)] * 6 / SIDE**3)
    k = np.fft.fftfreq(SIDE, PIXEL)
    coarse = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2 <= 0.1**2
    for title, truth in (("as it is", whole), ("up to 10 Å", np.fft.ifftn(np.fft.fftn(whole) * coarse).real)):
        found: dict[str, list[list[float]]] = {}
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            a, b = (torch.from_numpy(truth + deviation * rng.normal(size=truth.shape)) for _ in range(2))
            for name, mask in masks((a + b) / 2, stack.particle_radius(0)).items():
                fsc = half_map_fsc(a, b, mask=mask, pixel_size=PIXEL, seed=seed)
                against = shell_correlation((a + b) / 2, torch.from_numpy(truth), mask)
                row = [fsc.resolution(curve=curve) for curve in ("unmasked", "masked", "corrected")]
                found.setdefault(name, []).append([*row, resolution_of(against, 0.5, SIDE, PIXEL)])
        print(f"\nsignal {title}\n{'mask':<20} {'unmasked':>14} {'masked':>14} {'corrected':>14} {'truth':>14}")
        for name, rows in found.items():
            mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0)
            print(f"{name:<20} " + " ".join(f"{m:7.2f} ± {s:4.2f}" for m, s in zip(mean, spread, strict=True)))


if __name__ == "__main__":
    main()
