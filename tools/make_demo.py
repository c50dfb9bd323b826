"""Make cryobench/sources/demo.npz: simulated particle images for trying things out.

    python tools/make_demo.py [OUTPUT] [--sheet contact_sheet.png]

Deterministic (one seed) and done in seconds. Four made-up particles, none of a real structure: each is a set of
Gaussian blobs ("pseudo-atoms") placed by a random self-avoiding chain inside a shape, and copied by a symmetry.

    lobes     two unequal globular halves with a gap between them, no symmetry
    barrel    a hollow stack of rings, D7
    ring      a flat ring of eight domains, C8
    elongated globular domains along a bent axis, C2

An image is the exact projection of the blobs at a uniformly random rotation and in-plane shift (a sum of Gaussians:
no interpolation), times a CTF, plus white noise. Protein is dark, as in an underfocused micrograph. Then every image
is scaled to 0..255 and rounded, which adds noise 30 dB and more below the white noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

SEED = 20240513
IMAGES = 24
SIDE = 128  # pixels
PIXEL_SIZE = 3.0  # Å
BLOB_SIGMA = 3.6  # Å
BLOB_GAP = 7.0  # Å, closest approach of two blobs
BOND = 8.5  # Å between neighbours in the chain
SNR = 2.0  # variance of the CTF-modulated signal over that of the noise, inside the particle's radius
VOLTAGE = 300.0  # kV
CS = 2.7  # mm
AMPLITUDE_CONTRAST = 0.1
DEFOCUS = (0.8, 2.5)  # µm, underfocus
MAX_SHIFT = 4.0  # pixels
OUTPUT = Path(__file__).parents[1] / "cryobench" / "sources" / "demo.npz"

Inside = Callable[[np.ndarray], np.ndarray]
"""Which of the points [n, 3] (Å) lie inside a shape: bool [n]."""


# ---------------------------------------------------------------------------------------------------- models


def chain(count: int, inside: Inside, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A self-avoiding walk of `count` blobs inside a shape, [<= count, 3] in Å.

    A step has a fixed length and one of twelve random directions, of those that stay inside and avoid all earlier
    blobs; crowded places are likelier, which makes the chain compact. A walk that is stuck goes on from an earlier
    blob. Ends early where the shape is full.
    """
    points = np.empty((count, 3))
    points[0], filled, tip = start, 1, 0
    for _ in range(20 * count):
        if filled == count:
            break
        step = rng.normal(size=(12, 3))
        candidates = points[tip] + BOND * step / np.linalg.norm(step, axis=1, keepdims=True)
        distance = np.linalg.norm(candidates[:, None] - points[None, :filled], axis=2)
        free = inside(candidates) & (distance.min(axis=1) > BLOB_GAP)
        if not free.any():
            tip = int(rng.integers(filled))
            continue
        crowd = free * np.exp(-((distance / 12.0) ** 2)).sum(axis=1)
        points[filled] = candidates[rng.choice(len(crowd), p=crowd / crowd.sum())]
        tip, filled = filled, filled + 1
    return points[:filled]


def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Inside:
    """The points within an ellipsoid along the axes (Å)."""
    return lambda p: (((p - np.array(centre)) / np.array(radii)) ** 2).sum(axis=1) < 1


def about_z(points: np.ndarray, order: int) -> np.ndarray:
    """Copies of points [n, 3] under the rotations C_order about z."""
    angles = 2 * np.pi * np.arange(order) / order
    c, s = np.cos(angles), np.sin(angles)
    x, y, z = points.T
    copies = [np.stack([a * x - b * y, b * x + a * y, z], axis=1) for a, b in zip(c, s, strict=True)]
    return np.concatenate(copies)


def flipped(points: np.ndarray) -> np.ndarray:
    """Points with their copies under the two-fold rotation about x."""
    return np.concatenate([points, points * np.array([1, -1, -1])])


def lobes(rng: np.random.Generator) -> np.ndarray:
    large = chain(1150, ellipsoid((0, 0, 30), (98, 78, 58)), np.array([0.0, 0, 30]), rng)
    small = chain(620, ellipsoid((8, 6, -66), (84, 56, 34)), np.array([8.0, 6, -66]), rng)
    stalk = chain(90, ellipsoid((78, 44, 54), (34, 26, 22)), np.array([78.0, 44, 54]), rng)
    return np.concatenate([large, small, stalk])


def barrel(rng: np.random.Generator) -> np.ndarray:
    outer = chain(75, ellipsoid((48, 0, 66), (19, 19, 24)), np.array([48.0, 0, 66]), rng)
    inner = chain(75, ellipsoid((46, 6, 22), (17, 18, 22)), np.array([46.0, 6, 22]), rng)
    return flipped(about_z(np.concatenate([outer, inner]), 7))


def ring(rng: np.random.Generator) -> np.ndarray:
    head = chain(130, ellipsoid((78, 0, 10), (29, 24, 30)), np.array([78.0, 0, 10]), rng)
    arm = chain(45, ellipsoid((56, 10, -28), (20, 11, 15)), np.array([56.0, 10, -28]), rng)
    return about_z(np.concatenate([head, arm]), 8)


def elongated(rng: np.random.Generator) -> np.ndarray:
    middle = chain(260, ellipsoid((16, 0, 20), (34, 30, 30)), np.array([16.0, 0, 20]), rng)
    tip = chain(420, ellipsoid((-14, 14, 72), (46, 30, 44)), np.array([-14.0, 14, 72]), rng)
    return flipped(np.concatenate([middle, tip]))


MODELS = (lobes, barrel, ring, elongated)


# ---------------------------------------------------------------------------------------------------- images


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A uniformly random rotation [3, 3], from a random unit quaternion."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def project(points: np.ndarray, side: int) -> np.ndarray:
    """Projection of Gaussian blobs at points [n, 3] (Å) along z, [side, side], sampled at the pixels exactly."""
    grid = (np.arange(side) - side // 2) * PIXEL_SIZE
    x, y = (np.exp(-((grid[None] - points[:, axis, None]) ** 2) / (2 * BLOB_SIGMA**2)) for axis in (0, 1))
    return y.T @ x


def ctf(side: int, defocus_u: float, defocus_v: float, angle: float) -> np.ndarray:
    """The CTF on the half spectrum [side, side // 2 + 1]: defoci in Å (positive under), angle in degrees.

    Negative at low frequencies, so that protein is dark: -(sqrt(1 - w^2) sin chi + w cos chi), with
    chi = pi lambda dz k^2 - pi / 2 Cs lambda^3 k^4.
    """
    volts = VOLTAGE * 1e3
    wavelength = 12.2643 / np.sqrt(volts * (1 + 0.978466e-6 * volts))  # Å
    ky, kx = np.meshgrid(np.fft.fftfreq(side, PIXEL_SIZE), np.fft.rfftfreq(side, PIXEL_SIZE), indexing="ij")
    k2 = kx**2 + ky**2
    astigmatism = np.cos(2 * (np.arctan2(ky, kx) - np.deg2rad(angle)))
    dz = (defocus_u + defocus_v) / 2 + (defocus_u - defocus_v) / 2 * astigmatism
    chi = np.pi * wavelength * dz * k2 - np.pi / 2 * CS * 1e7 * wavelength**3 * k2**2
    return -(np.sqrt(1 - AMPLITUDE_CONTRAST**2) * np.sin(chi) + AMPLITUDE_CONTRAST * np.cos(chi))


def particle_image(points: np.ndarray, defoci: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """One noisy image [SIDE, SIDE]; made in a box twice as wide, so that the CTF does not wrap around."""
    shift = np.append(rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=2), 0) * PIXEL_SIZE
    turned = points @ rotation(rng).T + shift
    spectrum = np.fft.rfft2(project(turned, 2 * SIDE)) * ctf(2 * SIDE, *defoci)
    signal = np.fft.irfft2(spectrum, s=(2 * SIDE, 2 * SIDE))[SIDE // 2 : 3 * SIDE // 2, SIDE // 2 : 3 * SIDE // 2]
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2 - shift[[1, 0], None, None] / PIXEL_SIZE
    radius = np.linalg.norm(points, axis=1).max() / PIXEL_SIZE
    noise_sigma = signal[np.hypot(x, y) < radius].std() / np.sqrt(SNR)
    return signal + rng.normal(scale=noise_sigma, size=signal.shape)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """uint8, the image's own range on 0..255."""
    return np.rint((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)


def make() -> dict[str, np.ndarray]:
    """The arrays of demo.npz. The models take turns, so that the first four images show each once."""
    rng = np.random.default_rng(SEED)
    models = [points - points.mean(axis=0) for points in (model(rng) for model in MODELS)]
    defocus = rng.uniform(*DEFOCUS, size=IMAGES) * 1e4
    spread = rng.uniform(-150, 150, size=IMAGES)
    angle = rng.uniform(0, 180, size=IMAGES)
    defoci = np.stack([defocus + spread / 2, defocus - spread / 2, angle], axis=1).round(2)
    images = [particle_image(models[i % len(models)], tuple(defoci[i]), rng) for i in range(IMAGES)]
    return {
        "images": np.stack([to_bytes(image) for image in images]),
        "model": np.array([MODELS[i % len(MODELS)].__name__ for i in range(IMAGES)]),
        "pixel_size_A": np.array(PIXEL_SIZE),
        "defocus_u_v_A_angle_deg": defoci,
        "voltage_kV": np.array(VOLTAGE),
        "cs_mm": np.array(CS),
        "amplitude_contrast": np.array(AMPLITUDE_CONTRAST),
    }


def contact_sheet(images: np.ndarray, path: Path) -> None:
    """All images [n, H, W] in rows of six."""
    import matplotlib.image

    rows = [np.concatenate(list(images[i : i + 6]), axis=1) for i in range(0, len(images), 6)]
    matplotlib.image.imsave(path, np.concatenate(rows), cmap="gray")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the packaged demo images.")
    parser.add_argument("output", nargs="?", type=Path, default=OUTPUT)
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet (png) here")
    arguments = parser.parse_args()
    arrays = make()
    np.savez_compressed(arguments.output, allow_pickle=False, **arrays)
    if arguments.sheet:
        contact_sheet(arrays["images"], arguments.sheet)


if __name__ == "__main__":
    main()
