"""Writes cryobench/sources/microscope.json: distributions of CTF parameters and the spectrum of ice in real images.

    uv run python tools/fit_microscope.py FOLDER

FOLDER holds empiar10028_ctf_2000.csv, the CTF parameters of 2000 particles of EMPIAR-10028 (columns defocus_u_A,
defocus_v_A and defocus_angle_deg), and empiar_10076_7.mrc, seven particles of EMPIAR-10076, 320 x 320 at 1.31 Å.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
from scipy.optimize import curve_fit

OUT = Path(__file__).resolve().parents[1] / "cryobench/sources/microscope.json"
PIXEL_SIZE = 1.31
PARTICLE_RADIUS = 130
"""Radius in pixels within which an image is excluded from the ice."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    fit = fit_ctf(pd.read_csv(folder / "empiar10028_ctf_2000.csv"))
    fit |= fit_solvent(mrcfile.read(folder / "empiar_10076_7.mrc"))
    about = "fitted by tools/fit_microscope.py to EMPIAR-10028 (CTF) and EMPIAR-10076 (ice)"
    OUT.write_text(json.dumps({"about": about} | fit, indent=1) + "\n", encoding="utf-8")
    print(OUT.read_text(encoding="utf-8"))


def fit_ctf(table: pd.DataFrame) -> dict[str, object]:
    """Fit a log-normal distribution to the mean defocus, and a normal one to the astigmatism, a vector of twice the
    angle."""
    logs = np.log((table["defocus_u_A"] + table["defocus_v_A"]) / 2)
    twice = np.deg2rad(2 * table["defocus_angle_deg"])
    vector = np.stack([np.cos(twice), np.sin(twice)]) * (table["defocus_u_A"] - table["defocus_v_A"]).to_numpy()
    return {
        "defocus_log_mean": round(logs.mean(), 4),
        "defocus_log_deviation": round(logs.std(), 4),
        "astigmatism_mean": vector.mean(axis=1).round(1).tolist(),
        "astigmatism_root": np.linalg.cholesky(np.cov(vector)).round(1).tolist(),
    }


def fit_solvent(images: np.ndarray) -> dict[str, float]:
    """Fit 1 + excess exp(-(k / frequency)^2) to the power around the particles, relative to that above 0.28 / Å."""
    n = images.shape[1]
    y, x = np.mgrid[:n, :n] - n // 2
    window = np.clip((np.hypot(y, x) - PARTICLE_RADIUS) / 15, 0, 1)
    power = np.zeros((n, n))
    for image in images.astype(np.float64):
        power += np.abs(np.fft.fft2((image - np.average(image, weights=window)) * window)) ** 2
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n))
    ring = np.round(k * n).astype(int).ravel()
    radial = (np.bincount(ring, power.ravel()) / np.bincount(ring))[: n // 2]
    frequency = np.arange(n // 2) / n / PIXEL_SIZE
    radial /= radial[frequency > 0.28].mean()
    used = slice(2, None)  # the first rings contain the window and the slope of the background
    (excess, width), _ = curve_fit(
        lambda k, a, w: 1 + a * np.exp(-((k / w) ** 2)), frequency[used], radial[used], p0=(2, 0.04)
    )
    return {"solvent_excess": round(float(excess), 3), "solvent_frequency": round(float(abs(width)), 4)}


if __name__ == "__main__":
    main()
