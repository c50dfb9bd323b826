"""Registration of pairs with known shifts and warps: `python benchmarks/register_pairs.py [VOLUME.npy ...]`.

Sections of synthetic tissue, and of volumes [D, H, W] that are given, are displaced and made noisy. Printed are the
errors of the shifts, the similarity of these pairs and of pairs of different places, and the errors of warped images
before and after the flow, relative to the deviation of the image, with the fraction of flows that are kept.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from scipy.ndimage import map_coordinates

from cryobench.numerics.registration import (
    common,
    correlation,
    details,
    flow_between,
    found_shift,
    similarity,
    tvl1,
    warped,
)
from cryobench.sources.tissue import smooth_noise, volume

SHIFT, MARGIN = 10.0, 16
NOISES = (0.0, 1.0, 3.0)
WARPS = (0.0, 0.5, 1.0, 2.0)
TISSUE, SIDE = 12, 192


def displaced(section: np.ndarray, displacement: np.ndarray, noise: float, seed: int) -> tuple[np.ndarray, ...]:
    """What is at p + displacement, exact and with noise, and the section that it is compared with."""
    second = section[MARGIN:-MARGIN, MARGIN:-MARGIN]
    places = np.mgrid[: second.shape[0], : second.shape[1]] + MARGIN + displacement
    exact = map_coordinates(section, places, order=3)
    noisy = exact + noise * exact.std() * np.random.default_rng(seed).normal(size=exact.shape)
    return exact, noisy, second


def shifts(name: str, sections: list[np.ndarray]) -> None:
    for noise in NOISES:
        errors, same, other = [], [], []
        for k, section in enumerate(sections):
            shift = np.random.default_rng(k).uniform(-SHIFT, SHIFT, 2)
            _, noisy, second = displaced(section, shift[:, None, None], noise, k)
            elsewhere = sections[(k + len(sections) // 2) % len(sections)][MARGIN:-MARGIN, MARGIN:-MARGIN]
            errors.append(found_shift(noisy, second) - shift)
            for candidate, found in ((second, same), (elsewhere, other)):
                d = found_shift(noisy, candidate)
                where = common(noisy.shape, candidate.shape, d)
                found.append(0 if where is None else similarity(noisy[where], warped(candidate, where, d)))
        spread = np.sqrt(np.mean(np.square(errors)))
        print(f"{name}, noise {noise:g}: shifts to {spread:.3f} pixels along each axis, at "
              f"most {np.abs(errors).max():.2f}; similarity at least {min(same):.2f}, of other places at most "
              f"{max(other):.2f}")  # fmt: skip


def warps(sections: list[np.ndarray]) -> None:
    side = sections[0].shape[0] - 2 * MARGIN
    inner = (slice(8, -8),) * 2
    for noise in (0.5, 1.0):
        for size in WARPS:
            before, after, kept = [], [], []
            for k, section in enumerate(sections):
                bend = size * np.stack([smooth_noise((side, side), 30.0, (k, axis)) for axis in range(2)])
                exact, noisy, second = displaced(section, bend, noise, k)
                bent = warped(second, (slice(0, side),) * 2, flow_between(noisy, second, tvl1, 8))
                for image, found in ((second, before), (bent, after)):
                    found.append(np.sqrt(np.mean(np.square((image - exact)[inner]))) / exact.std())
                kept.append(all(
                    measure(noisy[inner], bent[inner]) > measure(noisy[inner], second[inner])
                    for measure in (similarity, lambda a, b: correlation(details(a), details(b)))
                ))  # fmt: skip
            print(f"warp of {size:g} pixels, noise {noise:g}: error {np.mean(before):.3f}, after the flow "
                  f"{np.mean(after):.3f}; {np.mean(kept):.0%} kept")  # fmt: skip


def main() -> None:
    tissue = [volume((8, SIDE, SIDE), seed)[4].astype(np.float64) for seed in range(TISSUE)]
    shifts("tissue", tissue)
    for path in sys.argv[1:]:
        sections = np.load(path).astype(np.float64)
        shifts(path.rpartition("/")[2], list(sections[:: max(1, len(sections) // TISSUE)]))
    warps(tissue[:3])
    noisy = np.tile(tissue[0], (6, 6))[:1024, :1024]
    noisy = noisy + noisy.std() * np.random.default_rng(0).normal(size=noisy.shape)
    for name, call in (("shift", found_shift), ("flow", lambda a, b: flow_between(a, b, tvl1, 8))):
        start = time.process_time()
        call(noisy[:-20], noisy[20:])
        print(f"{name} of 1024 x 1024 pixels: {time.process_time() - start:.1f} s")


if __name__ == "__main__":
    main()
