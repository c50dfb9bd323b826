"""Likelihoods of poses against sums over all pixels, and the search for poses against known ones."""

from __future__ import annotations

import math

import pytest
import torch

from cryobench.errors import ParameterError
from cryobench.maps.likelihood import Band, Whitened, cropped, enlarged
from cryobench.maps.noise import noise_power
from cryobench.maps.particle_images import ParticleImages
from cryobench.maps.particles import Particles
from cryobench.maps.pose_search import Settings, search
from cryobench.maps.rotations import angle_between, grid
from cryobench.numerics.fft import rfftn
from cryobench.physics.ctf import CtfParameters
from cryobench.physics.poses import Poses
from cryobench.physics.projection import Projector, shift_phase
from cryobench.sources.simulate import Simulate


def particles(
    count: int, *, size: int = 32, snr: float | None = None, seed: int = 0
) -> tuple[ParticleImages, torch.Tensor]:
    """Simulated particles with their poses, and the map that they are projections of."""
    stack = Simulate("6zu5", size=size, count=count, snr=snr, seed=seed, shift=6.0).open()
    volume, pixel_size = stack.volume(0)
    images = torch.from_numpy(stack.read_block(list(range(count))))
    known = Particles(size, Poses.from_table(stack.table), CtfParameters.from_table(stack.table), pixel_size)
    return ParticleImages(images, known), torch.from_numpy(volume) * pixel_size


def test_gains_are_differences_of_squared_errors_over_all_pixels():
    """Against white noise: exp of minus half of the squared error over the variance, in the band and on the grid."""
    images, volume = particles(3, size=16, snr=0.5)
    side, band = 16, Band.of(16, 7.5)
    white = Whitened.of(images)
    rotations, shift = grid(0)[:5].float(), torch.tensor([[0.0, 0.0], [1.3, -0.6]])
    slices = Projector(volume).slices(rotations)
    found = white.within(band).gains(band.taken(slices), shift)
    power = noise_power(images.images)
    kx, ky = torch.meshgrid(torch.arange(9), torch.arange(16), indexing="xy")
    ky = torch.where(ky >= 8, ky - 16, ky)
    radius = torch.hypot(kx.double(), ky.double())
    inside = (radius > 0) & (radius <= 7.5)
    both = torch.where(kx == 0, 1.0, 2.0)  # k and -k
    variance = side**2 * power[radius.round().long()]
    transfer = images.transfer()
    Y = rfftn(torch.fft.ifftshift(images.images, dim=(1, 2))).to(torch.complex128)
    for i in range(3):
        for s in range(2):
            model = transfer[i] * shift_phase(side, shift[s : s + 1])[0] * slices.to(torch.complex128)
            error = ((Y[i] - model).abs() ** 2 / variance * both)[:, inside].sum(dim=1)
            none = (Y[i].abs() ** 2 / variance * both)[inside].sum()
            assert torch.allclose(found[i, s].double(), (none - error) / 2, rtol=1e-3, atol=1e-2)


def test_gains_of_each_image_are_those_of_common_slices():
    images, volume = particles(3, size=16, snr=0.5)
    band = Band.of(16, 5.0)
    inside = Whitened.of(images).within(band)
    slices = band.projector(volume).values(band.k, grid(0)[:4].float())
    shift = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.0]])
    together = inside.gains(slices, shift)
    each = inside.gains_of_each(slices.expand(3, -1, -1), shift.expand(3, -1, -1))
    assert torch.allclose(together, each, rtol=1e-5, atol=1e-3)


def test_cropped_maps_have_the_same_spectrum():
    volume = torch.randn((16,) * 3, generator=torch.Generator().manual_seed(0))
    small = cropped(volume, 8)
    assert small.shape == (8, 8, 8)
    big, low = (rfftn(torch.fft.ifftshift(v), 3) for v in (volume, small))
    for z, y, x in ((0, 0, 0), (1, -2, 3), (-3, 3, 1)):
        assert torch.isclose(big[z, y, x], low[z, y, x], rtol=1e-4)
    assert torch.allclose(cropped(enlarged(small, 16), 8), small, atol=1e-5)
    assert cropped(volume, 16) is volume


def test_centred_images_have_no_shift():
    images, _ = particles(4, size=16)
    moved = torch.tensor([[1.0, 2.0], [-3.0, 0.0], [0.0, 4.0], [2.0, -2.0]])
    rolled = torch.stack([i.roll((int(y), int(x)), (0, 1)) for i, (x, y) in zip(images.images, moved, strict=True)])
    white = Whitened.of(images)
    other = Whitened.of(ParticleImages(rolled, images.particles)).centred(moved)
    inside = Band.of(16, 7.0)
    assert torch.allclose(inside.taken(other.spectra), inside.taken(white.spectra), rtol=1e-3, atol=1e-2)


def test_the_power_of_the_signal_is_that_of_the_map():
    images, volume = particles(200, snr=1.0)
    band = Band.of(32, 15.0)
    slices = band.projector(volume).values(band.k, grid(1).float())
    power = torch.stack([(slices.abs() ** 2)[:, band.rings == r].mean() for r in range(1, 13)])
    assert torch.allclose(Whitened.of(images).signal_power()[1:13].float(), power, rtol=0.35)


def test_poses_without_noise_are_found_to_the_spacing_of_the_grid():
    images, volume = particles(20)
    found = search(images, volume)
    poses = images.particles.poses
    angles = angle_between(found.rotations[:, 0], poses.matrices)
    pixels = (found.shift[:, 0] - poses.shift / images.pixel_size).norm(dim=1)
    last = 15 / 2**4
    assert angles.max() < 3 * last
    assert angles.median() < 1.5 * last
    assert pixels.max() < 0.3
    kept = found.best(images.pixel_size)
    assert torch.allclose(kept.matrices, found.rotations[:, 0], atol=1e-6)
    assert torch.allclose(kept.shift, found.shift[:, 0] * images.pixel_size)
    assert (found.gains[:, :-1] >= found.gains[:, 1:]).all()


def test_defaults_fit_every_box_and_shifts_scale_with_it():
    whole, half, small = (Settings().for_side(side) for side in (128, 64, 16))
    assert (whole.lowest, whole.highest, whole.shift, whole.steps) == (12, 32, 20, 7)
    assert (half.lowest, half.highest, half.shift) == (12, 28, 10)
    assert (small.lowest, small.highest, small.shift) == (3, 7, 2.5)
    assert half.frequencies() == [12, 16, 20, 24, 28]
    assert len(half.shifts()[0]) == 49
    assert len(Settings(shift=0).for_side(64).shifts()[0]) == 1


@pytest.mark.parametrize(
    ("stated", "side", "message"),
    [
        ({"highest": 40.0}, 64, "highest must be 2 to 32 cycles per box, Nyquist's, for images of 64 pixels, got 40"),
        ({"lowest": 33.0}, 64, "lowest must be 2 to 32 cycles"),
        ({"lowest": 20.0, "highest": 10.0}, 64, r"lowest \(20\) is above highest \(10\)"),
        ({"shift": 40.0}, 64, "shift must be at most half of the side, 32 pixels, got 40"),
        ({}, 6, "images of 6 pixels have 3 cycles per box, and poses need at least 4"),
    ],
)
def test_only_stated_values_that_a_box_cannot_have_are_refused(stated, side, message):
    with pytest.raises(ParameterError, match=message):
        Settings(**stated).for_side(side)


@pytest.mark.parametrize(("name", "value"), [("order", 5), ("kept", 0), ("refinements", -1), ("shift", math.nan)])
def test_values_that_no_search_has_are_refused(name, value):
    with pytest.raises(ParameterError, match=f"pose search: {name}"):
        Settings(**{name: value})
