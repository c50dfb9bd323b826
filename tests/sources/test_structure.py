"""Potentials of structures as volumes: closed formulas, atoms of a file, and the projections that `simulate` makes."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest

from cryobench.errors import DataError, ParameterError, SelectionError
from cryobench.sources.simulate import Simulate
from cryobench.sources.structure import Structure
from cryobench.sources.structures import read_structure

ATOM = "ATOM  {:5d}  C   ALA A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00  0.00           C\n"


def test_the_sum_of_a_potential_is_that_of_its_atoms():
    volume, atoms = Structure("3mht", pixel_size=4.0, size=32).open().read(0), read_structure("3mht")
    at_zero = [sum(gemmi.Element(int(number)).c4322.a) for number in atoms.numbers]
    assert volume.dtype == np.float32
    assert volume.sum(dtype=float) * 4.0**3 == pytest.approx(47.878 * sum(at_zero), rel=1e-4)


def test_atoms_of_a_file_are_at_their_places_around_the_centre(tmp_path):
    places = [(-9, 0, 3), (9, 0, 3), (0, 6, -3), (0, -6, -3)]  # x, y, z; the bounding box is centred on 0
    path = tmp_path / "four.pdb"
    path.write_text("".join(ATOM.format(i, i, *place) for i, place in enumerate(places, 1)) + "END\n")
    stack = Structure(str(path), pixel_size=1.5, size=24, b_factor=30.0).open()
    volume = stack.read(0)
    brightest = np.argsort(volume, axis=None)[-4:]
    found = {tuple(int(i) for i in np.unravel_index(flat, volume.shape)) for flat in brightest}
    assert found == {tuple(round(r / 1.5) + 12 for r in (z, y, x)) for x, y, z in places}
    assert stack.particle_radius(0) == pytest.approx(np.sqrt(90))
    assert stack.files([0]) == [path]
    assert stack.origin == {"structure": "four.pdb"}


@pytest.mark.parametrize("invert", [False, True])
def test_an_image_without_ctf_is_the_projection_of_its_volume(invert):
    """By direct sums over the voxels, which the slices of `simulate` agree with to their 1.6%."""
    n = 16
    stack = Simulate("3mht+2nwl", size=n, count=4, snr=None, ctf=False, invert=invert).open()
    frequency = np.fft.fftfreq(n)
    ky, kx = np.meshgrid(frequency, frequency, indexing="ij")
    disc = np.hypot(kx, ky) < 0.5
    z, y, x = np.indices((n, n, n)).reshape(3, -1) - n // 2
    for index, row in stack.table.iterrows():
        volume, pixel_size = stack.volume(index)
        assert volume.shape == (n, n, n)
        assert pixel_size == stack.pixel_size(index)
        rot, tilt, psi = np.radians([row[f"rlnAngle{name}"] for name in ("Rot", "Tilt", "Psi")])
        turns = [[[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]] for a in (rot, psi)]
        about_y = [[np.cos(tilt), 0, -np.sin(tilt)], [0, 1, 0], [np.sin(tilt), 0, np.cos(tilt)]]
        u, v, _ = np.array(turns[1]) @ about_y @ turns[0] @ np.stack([x, y, z])  # in the frame of the image
        u, v = (a - row[f"rlnOrigin{b}Angst"] / pixel_size + n // 2 for a, b in ((u, "X"), (v, "Y")))
        waves = np.exp(-2j * np.pi * (kx[disc][:, None] * u + ky[disc][:, None] * v))
        spectrum = np.zeros((n, n), complex)
        spectrum[disc] = waves @ volume.ravel() * pixel_size
        wanted = np.fft.ifft2(spectrum).real
        assert np.abs(wanted).max() > 10
        assert np.linalg.norm(stack.read(index) - wanted) < 0.03 * np.linalg.norm(wanted)


def test_the_volume_of_simulated_images_is_that_of_the_source():
    stack = Simulate("3mht", size=32, pixel_size=4.0, count=2).open()
    volume, pixel_size = stack.volume(1)
    assert np.array_equal(volume, Structure("3mht", size=32, pixel_size=4.0).open().read(0))
    assert pixel_size == 4.0
    volume += 1
    assert not np.array_equal(stack.volume(1)[0], volume)
    with pytest.raises(SelectionError):
        stack.volume(2)


def test_without_a_size_the_particle_fills_the_box_as_in_simulate():
    stack = Structure("2nwl", pixel_size=2.5).open()
    (side, _, _), diameter = stack.shape, 2 * read_structure("2nwl").radius / 2.5
    smooth = [n for n in range(2, 400, 2) if all(p in (2, 3, 5) for p in range(2, n + 1) if n % p == 0 and _prime(p))]
    assert side == min(n for n in smooth if diameter <= 0.65 * n)
    assert Structure("2nwl", pixel_size=None, size=32).open().pixel_size(0) == pytest.approx(2.5 * diameter / 0.65 / 32)


def _prime(p: int) -> bool:
    return all(p % q for q in range(2, p))


def test_several_structures_are_as_many_volumes_of_one_size():
    stack = Structure("3mht+2nwl", pixel_size=8.0).open()
    assert len(stack) == 2
    assert stack.shape == max(Structure(name, pixel_size=8.0).open().shape for name in ("3mht", "2nwl"))
    assert np.array_equal(stack.read(1), Structure("2nwl", pixel_size=8.0, size=stack.shape[0]).open().read(0))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"structure": "1abc"}, "1abc is neither a packaged structure nor a file; the packaged structures are 6zu5"),
        ({"structure": "3mht", "size": 12}, "83 Å across and the box 36 Å; give pixel_size=10.6 or size=43"),
        ({"pixel_size": 0.0}, "pixel_size must be positive"),
        ({"pixel_size": float("nan")}, "pixel_size must be positive"),
        ({"pixel_size": 0.01}, "of memory, more than the .*; give a larger pixel_size"),
        ({"pixel_size": None}, "pixel_size and size are both none; give at least one"),
        ({"size": 4}, "size must be at least 8 voxels, got 4"),
        ({"size": 10**9}, "of memory, more than the .*; give a smaller size"),
        ({"b_factor": -1.0}, "b_factor must be at least 0"),
        ({"chains": "ZZ"}, "has no chain 'ZZ'"),
    ],
)
def test_invalid_requests_are_refused(parameters, message):
    with pytest.raises((DataError, ParameterError), match=message) as found:
        Structure(**parameters).open()
    assert "\n" not in str(found.value)
