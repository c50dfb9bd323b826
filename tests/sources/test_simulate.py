"""Simulated images: their parts against numpy, their statistics against the parameters."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ks_2samp

from cryobench.errors import DataError, ParameterError, SelectionError
from cryobench.physics.ctf import COLUMNS, CtfParameters, transfer
from cryobench.sources.particle_imaging import microscope
from cryobench.sources.simulate import Simulate, SimulatedStack

SIZE = 48


def opened(structure: str = "3mht", **parameters: object) -> SimulatedStack:
    return Simulate(structure, **({"size": SIZE} | parameters)).open()


@pytest.fixture(scope="module")
def stack() -> SimulatedStack:
    return opened(count=40)


def test_a_signal_is_the_projection_through_the_ctf(stack):
    made = stack.particles(range(6))
    for i in range(6):
        ctf = transfer(made.ctf.select(slice(i, i + 1)), stack.shape, float(made.pixel_size[i]))[0, 0].numpy()
        wanted = np.fft.irfft2(np.fft.rfft2(made.projection[i].numpy()) * ctf, s=stack.shape)
        np.testing.assert_allclose(made.signal[i].numpy(), wanted, atol=1e-4 * np.abs(wanted).max())


def test_the_spectrum_vanishes_where_the_ctf_is_zero():
    """Round defocus, no envelope: rings of the spectrum near the zeros are empty, those near the maxima are not."""
    stack = opened(count=4, snr=None, defocus=30000.0, astigmatism=0.0, envelope=0.0, b_factor=0.0, shift=0.0)
    made = stack.particles(range(4))
    power = (torch.fft.rfft2(made.signal).abs() / torch.fft.rfft2(made.projection).abs().clamp_min(1e-3)).mean(dim=0)
    ctf = transfer(made.ctf.select(slice(0, 1)), stack.shape, float(made.pixel_size[0]))[0, 0].abs()
    inside = torch.fft.fftfreq(SIZE)[:, None] ** 2 + torch.fft.rfftfreq(SIZE) ** 2 < 0.2
    assert power[inside & (ctf < 0.02)].mean() < 0.02
    assert power[inside & (ctf > 0.95)].mean() == pytest.approx(0.98, abs=0.02)


@pytest.mark.parametrize("noise", ["white", "solvent"])
@pytest.mark.parametrize("snr", [0.05, 2.0])
def test_the_signal_to_noise_ratio_is_as_specified(noise, snr):
    """Variance of the signal in the particle's circle over that of the noise, over many images, within 2%."""
    stack = opened(count=200, snr=snr, noise=noise)
    made = stack.particles(range(200))
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    circle = x**2 + y**2 <= (0.65 * SIZE / 2) ** 2  # the diameter is 0.65 of the box where no pixel size is given
    signal = made.signal.numpy()[:, circle].var(axis=1)
    noise_ = (made.image - made.signal).numpy().var(axis=(1, 2))
    assert (signal / noise_).mean() == pytest.approx(snr, rel=0.02)
    np.testing.assert_allclose(made.noise_deviation.numpy() ** 2, signal / snr, rtol=1e-3)


def test_the_spectrum_of_the_noise():
    """White noise is flat; solvent noise falls as fitted, radius by radius."""
    fit = microscope()
    k = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE))
    ring = np.round(k * SIZE).astype(int)
    for kind in ("white", "solvent"):
        stack = opened(count=400, snr=1.0, noise=kind, pixel_size=3.0)
        made = stack.particles(range(400))
        noise = (made.image - made.signal) / made.noise_deviation[:, None, None]
        power = np.abs(np.fft.fft2(noise.numpy())) ** 2
        radial = np.bincount(ring.ravel(), power.mean(axis=0).ravel()) / np.bincount(ring.ravel()) / SIZE**2
        excess = fit.solvent_excess if kind == "solvent" else 0.0
        model = 1 + excess * np.exp(-((k / 3.0 / fit.solvent_frequency) ** 2))
        wanted = np.bincount(ring.ravel(), (model / model.mean()).ravel()) / np.bincount(ring.ravel())
        np.testing.assert_allclose(radial[1 : SIZE // 2], wanted[1 : SIZE // 2], rtol=0.06)


def test_particle_17_is_the_same_in_any_batch(stack):
    alone, among, read = stack.particles([17]), stack.particles([3, 17, 30, 18]), stack.read(17)
    for name in ("projection", "signal", "image", "rot", "tilt", "psi", "shift", "noise_deviation"):
        assert torch.equal(getattr(alone, name)[0], getattr(among, name)[1]), name
    assert np.array_equal(read, alone.image[0].numpy())
    assert np.array_equal(opened(count=18).read(17), read)
    assert stack.table.iloc[17].equals(opened(count=18).table.iloc[17])


def test_blocks_are_the_images_of_read_and_clean_and_are_computed_once(stack, monkeypatch):
    made, particles = [], type(stack).particles
    monkeypatch.setattr(type(stack), "particles", lambda self, images: made.append(images) or particles(self, images))
    chosen = [33, 2, 19]
    noisy, clean = stack.read_block(chosen), stack.clean_block(chosen)
    assert made == [(33, 2, 19)]
    for place, index in enumerate(chosen):
        np.testing.assert_array_equal(noisy[place], stack.read(index))
        np.testing.assert_array_equal(clean[place], stack.clean(index))
    before = noisy.copy()
    noisy += 1
    np.testing.assert_array_equal(stack.read_block(chosen), before)


def test_images_have_the_same_bits_for_any_number_of_threads():
    """Otherwise the same command would not find a finished cell again."""
    program = """
import hashlib
from cryobench.sources.simulate import Simulate
particles = Simulate("1r19", count=2, size=64).open().particles([0, 1])
print(hashlib.sha256(particles.image.numpy().tobytes() + particles.signal.numpy().tobytes()).hexdigest())
"""
    digests = {
        subprocess.run([sys.executable, "-c", program], env=os.environ | {"OMP_NUM_THREADS": threads},
                       capture_output=True, text=True, check=True).stdout
        for threads in ("1", "2", "4")
    }  # fmt: skip
    assert len(digests) == 1


def test_seeds_splits_and_structures_have_different_particles(stack):
    same = opened(count=40)
    assert np.array_equal(same.read(0), stack.read(0))
    for other in (opened(seed=1), opened(split="train"), opened("2nwl")):
        assert not np.isclose(other.table["rlnAngleRot"], stack.table["rlnAngleRot"].iloc[0]).any()
    assert stack.origin == {"structure": "3mht", "split": "test", "seed": "0"}


def test_structures_alternate():
    stack = opened("train", count=7, snr=None)
    assert len(stack.origin["structure"].split(",")) == 3
    assert stack.table["rlnClassNumber"].tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert stack.pixel_size(0) == stack.pixel_size(3) != stack.pixel_size(1)
    made = stack.particles([4, 0, 5])
    assert made.structure.tolist() == [1, 0, 2]
    for place, index in enumerate((4, 0, 5)):
        assert np.array_equal(made.image[place].numpy(), stack.read(index))
        assert float(made.pixel_size[place]) == stack.pixel_size(index)


def test_shifting_by_relions_origin_centres_the_particle():
    """Shifting an image by its origin columns gives the image of the same particle without a shift."""
    moved, still = opened(snr=None, shift=8.0, count=5), opened(snr=None, shift=0.0, count=5)
    k = np.fft.fftfreq(SIZE)
    for i in range(5):
        x, y = moved.table[["rlnOriginXAngst", "rlnOriginYAngst"]].iloc[i] / moved.pixel_size(i)
        phase = np.exp(-2j * np.pi * (k[None] * x + k[:, None] * y))
        back = np.fft.ifft2(np.fft.fft2(moved.read(i)) * phase).real
        np.testing.assert_allclose(back, still.read(i), atol=2e-4 * np.abs(back).max())
    assert moved.table["rlnOriginXAngst"].std() == pytest.approx(8, abs=6)


def test_without_noise_the_image_is_the_clean_one_and_inversion_changes_its_sign(stack):
    exact, dark = opened(snr=None), opened(snr=None, invert=True)
    assert np.array_equal(exact.read(3), exact.clean(3))
    assert np.array_equal(dark.read(3), -exact.read(3))
    assert not np.array_equal(stack.read(3), stack.clean(3))
    assert np.array_equal(stack.clean(3), opened(snr=0.5).clean(3))
    # underfocus, protein white: the middle is brighter than the rim
    bare = opened(snr=None, ctf=False).read(0)
    assert bare[20:28, 20:28].mean() > bare[:4].mean()
    assert np.array_equal(bare, exact.particles([0]).projection[0].numpy())


def test_the_ctf_is_distributed_as_in_real_particles(shared):
    """Means and standard deviations agree with the 2000 particles of the fit."""
    real = pd.read_csv(shared / "data" / "empiar10028_ctf_2000.csv")
    drawn = opened(count=2000).table
    mean = (drawn["rlnDefocusU"] + drawn["rlnDefocusV"]) / 2
    assert ks_2samp(mean, (real["defocus_u_A"] + real["defocus_v_A"]) / 2).statistic < 0.06
    for part in (np.cos, np.sin):
        astigmatism = [
            (table[u] - table[v]) * part(np.deg2rad(2 * table[angle]))
            for table, u, v, angle in (
                (drawn, "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"),
                (real, "defocus_u_A", "defocus_v_A", "defocus_angle_deg"),
            )
        ]
        assert ks_2samp(*astigmatism).statistic < 0.12


def test_given_parameters_are_not_drawn():
    stack = opened(count=5, defocus=12000.0, astigmatism=500.0, voltage=200.0, cs=2.7, amplitude_contrast=0.07,
                   phase_shift=90.0, envelope=20.0)  # fmt: skip
    table = stack.table
    assert set(COLUMNS.values()) <= set(table.columns)
    assert (table["rlnDefocusU"] == 12250).all()
    assert (table["rlnDefocusV"] == 11750).all()
    for column, value in (("rlnVoltage", 200), ("rlnSphericalAberration", 2.7), ("rlnAmplitudeContrast", 0.07),
                          ("rlnPhaseShift", 90), ("rlnCtfBfactor", 20)):  # fmt: skip
        assert (table[column] == value).all()
    assert len(CtfParameters.from_table(table)) == 5


def test_files_can_be_simulated(tmp_path):
    path = tmp_path / "one.pdb"
    path.write_text("ATOM      1  C   ALA A   1       0.000   0.000   0.000  1.00  0.00           C\n"
                    "ATOM      2  C   ALA A   2      20.000   0.000   0.000  1.00  0.00           C\n")  # fmt: skip
    stack = opened(str(path), snr=None, ctf=False, shift=0.0, size=32)
    assert stack.pixel_size(0) == pytest.approx(20 / (0.65 * 32))
    assert stack.origin["structure"] == "one.pdb"
    assert stack.read(0).shape == (32, 32)


@pytest.mark.parametrize(
    ("parameters", "error", "says"),
    [
        ({"pixel_size": 1.0, "structure": "6zu5"}, DataError, r"6zu5 is 301 Å across and the box 48 Å; give pixel"),
        ({"snr": 0.0}, ParameterError, "snr must be positive, got 0"),
        ({"count": 0}, ParameterError, "count must be at least 1, got 0"),
        ({"pixel_size": 0.0}, ParameterError, "pixel_size must be positive, got 0"),
        ({"amplitude_contrast": 2.0}, ParameterError, r"must lie in \[0, 1\], got 2"),
        ({"structure": "nothing"}, DataError, "neither a packaged structure nor a file"),
        ({"defocus": float("nan")}, ParameterError, "defocus must be finite"),
    ],
)
def test_invalid_parameters_are_refused(parameters, error, says):
    with pytest.raises(error, match=says) as caught:
        opened(**({"structure": "3mht"} | parameters))
    assert "\n" not in str(caught.value)


def test_an_index_beyond_the_end_is_refused(stack):
    with pytest.raises(SelectionError, match=r"image 40 of simulated 3mht snr 0.1 does not exist; it has 40, from 0"):
        stack.read(40)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_images_computed_on_a_gpu_equal_those_of_the_cpu(stack):
    there = Simulate("3mht", size=SIZE, count=40).open("cuda").particles(range(8))
    here = stack.particles(range(8))
    torch.testing.assert_close(there.image.cpu(), here.image, rtol=1e-3, atol=1e-3 * float(here.image.std()))


def test_potentials_of_several_structures_are_the_same_when_they_are_computed_at_once(monkeypatch):
    def images(threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        return Simulate("3mht+2nwl+3enl", size=16, count=6).open().tensor_block(range(6))

    threaded = images(3)
    assert torch.equal(threaded, images(1))
    assert threaded.shape == (6, 16, 16)
    stack = Simulate("3mht", size=16, count=6).open()
    assert torch.equal(stack.tensor_block([2, 5], clean=True), torch.from_numpy(stack.clean_block([2, 5])))


def test_stacks_of_one_structure_share_its_potential_while_they_exist():
    first, again, sharper = (Simulate("3mht", size=16, seed=seed, b_factor=b).open()
                             for seed, b in ((0, 50.0), (1, 50.0), (0, 10.0)))  # fmt: skip
    volume, _ = first.volume(0)
    assert again._specimens[0].potential is first._specimens[0].potential
    assert not np.allclose(sharper.volume(0)[0], volume)
    assert np.array_equal(again.volume(3)[0], volume)
