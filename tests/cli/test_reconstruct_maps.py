"""`cryobench reconstruct` of particles to a map: against the truth, halves apart, measurements in place of images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryobench import limits
from cryobench.io.star import particle_table
from cryobench.io.writing import star_text
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.half_maps import projection_of
from cryobench.maps.inversion import wiener
from cryobench.measuring import particle_maps
from cryobench.physics.poses import Poses
from cryobench.physics.potential import potential
from cryobench.sources.simulate import Simulate
from cryobench.sources.structures import read_structure

D, COUNT = 24, 120
FILES = ["fsc.csv", "fsc.png", "half1.mrc", "half2.mrc", "map.mrc", "mask.mrc", "reconstruction.json"]
SIMULATED = Simulate("3mht", snr=1.0, count=COUNT, size=D)


def write_star(name: str, table: pd.DataFrame, pixel: float | list[float]) -> str:
    path = Path(name)
    path.write_text(star_text(path, table.drop(columns="rlnImageName", errors="ignore"), "p.mrcs", pixel, D))
    return name


@pytest.fixture
def table(tmp_path, monkeypatch) -> pd.DataFrame:
    """The table of p.star, whose images are in p.mrcs."""
    monkeypatch.chdir(tmp_path)
    stack = SIMULATED.open()
    with mrcfile.new("p.mrcs", data=stack.read_block(range(COUNT))) as file:
        file.set_image_stack()
        file.voxel_size = stack.pixel_size(0)
    write_star("p.star", stack.table, stack.pixel_size(0))
    return stack.table


def read(path: str) -> torch.Tensor:
    return torch.from_numpy(mrcfile.read(path).copy())


def truth() -> torch.Tensor:
    pixel = SIMULATED.open().pixel_size(0)
    return torch.from_numpy(potential(read_structure("3mht"), D, pixel, 50.0)) * pixel


@pytest.mark.parametrize("solver", ["fourier_inversion", "cg", "tikhonov:10"])
def test_particles_give_a_map_with_half_maps_mask_and_resolution(solver, cli, table, monkeypatch):
    monkeypatch.setattr(particle_maps, "_AT_ONCE", 7 * D**2)  # portions of 7 images
    code, out, err = cli("reconstruct", "p.star", "-s", solver, "--radius", "40", "--out", "map")
    assert code == 0, err
    assert sorted(path.name for path in Path("map").iterdir()) == FILES
    found = read("map/map.mrc")
    assert shell_correlation(found, truth())[:4].min() > 0.88
    assert float((found * truth()).sum() / truth().square().sum()) == pytest.approx(1, abs=0.3)
    pixel = SIMULATED.open().pixel_size(0)
    for name in ("map", "half1", "half2", "mask"):
        assert mrcfile.validate(f"map/{name}.mrc")
        with mrcfile.open(f"map/{name}.mrc") as file:
            assert file.is_volume()
            np.testing.assert_allclose(file.voxel_size.tolist(), (pixel,) * 3, rtol=1e-5)
            assert file.header.origin.tolist() == (0, 0, 0)
            assert file.nstart.tolist() == (0, 0, 0)
    rows = list(csv.DictReader(Path("map/fsc.csv").read_text().splitlines()))
    masked = shell_correlation(read("map/half1.mrc"), read("map/half2.mrc"), read("map/mask.mrc"))
    np.testing.assert_allclose([float(row["masked"]) for row in rows], masked, atol=1e-5)
    about = json.loads(Path("map/reconstruction.json").read_text())
    assert (about["particles"], about["halves"]) == (COUNT, [COUNT // 2] * 2)
    assert f"{about['resolution_angstrom']['masked']:.2f} Å" in out


def test_halves_are_solved_apart(cli, table):
    """A half map is the map of its particles alone."""
    subsets = 1 + (np.arange(COUNT) // 3) % 2
    pixel = SIMULATED.open().pixel_size(0)
    write_star("s.star", table.assign(rlnRandomSubset=subsets), pixel)
    assert cli("reconstruct", "s.star", "-s", "cg", "--out", "map")[0] == 0
    for half in (1, 2):
        chosen = ",".join(map(str, np.flatnonzero(subsets == half)))
        code, _, err = cli("reconstruct", "p.star", "-s", "cg", "--images", chosen, "--no-halves", "--out", f"m{half}")
        assert code == 0, err
        assert sorted(path.name for path in Path(f"m{half}").iterdir()) == [
            "map.mrc",
            "mask.mrc",
            "reconstruction.json",
        ]
        alone = read(f"m{half}/map.mrc")
        assert float((read(f"map/half{half}.mrc") - alone).norm() / alone.norm()) < 0.02  # sigma is that of all


def test_measurements_give_the_map_of_the_images(cli, table):
    """Of the operator `identity`: the intensity scale of each image is undone."""
    assert cli("measure", "-o", "identity", "-d", "p.star", "--out", "measured", "--chunk", "50")[0] == 0
    for data, options in (("p.star", []), ("measured", ["--volume"])):
        code, _, err = cli("reconstruct", data, *options, "-s", "cg:3,tol=0", "--out", f"of_{data[0]}")
        assert code == 0, err
    direct, measured = read("of_p/map.mrc"), read("of_m/map.mrc")
    assert float((direct - measured).norm() / direct.norm()) < 1e-3
    assert json.loads(Path("of_m/reconstruction.json").read_text())["operator"] == "identity@ctf@project"


@pytest.mark.parametrize(("operator", "solver"), [("sumpool:2", "cg"), ("fourier:0.5", "fourier_inversion")])
def test_a_map_directly_from_compressed_measurements(operator, solver, cli, table):
    assert cli("measure", "-o", operator, "-n", "gaussian:rel=0.05", "-d", "p.star", "--out", "measured")[0] == 0
    code, _, err = cli("reconstruct", "measured", "--volume", "-s", solver, "--out", "map")
    assert code == 0, err
    assert shell_correlation(read("map/map.mrc"), truth())[:4].min() > 0.8


def test_options_of_a_map(cli, table):
    mask = np.zeros((D, D, D), np.float32)
    mask[6:18, 6:18, 6:18] = 1
    with mrcfile.new("mask.mrc", data=mask) as file:
        file.voxel_size = SIMULATED.open().pixel_size(0)
    for name, options in {
        "plain": [], "inverted": ["--invert"], "c2": ["--symmetry", "C2"], "masked": ["--mask", "mask.mrc"],
        "no_ctf": ["--no-ctf"], "small": ["--size", "16"],
    }.items():  # fmt: skip
        code, _, err = cli("reconstruct", "p.star", "-s", "fourier_inversion", "--no-halves", *options, "--out", name)
        assert code == 0, err
    plain = read("plain/map.mrc")
    torch.testing.assert_close(read("inverted/map.mrc"), -plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
    turned = read("c2/map.mrc")[:, 1:, 1:]  # about voxel D // 2
    assert float((turned - turned.flip(1, 2)).norm() / turned.norm()) < 0.1
    assert float((plain[:, 1:, 1:] - plain[:, 1:, 1:].flip(1, 2)).norm() / plain.norm()) > 0.2
    np.testing.assert_array_equal(read("masked/mask.mrc"), mask)
    assert shell_correlation(read("no_ctf/map.mrc"), truth())[:6].mean() < shell_correlation(plain, truth())[:6].mean()
    assert tuple(read("small/map.mrc").shape) == (16, 16, 16)
    with mrcfile.open("small/map.mrc") as file:
        assert float(file.voxel_size.x) == pytest.approx(SIMULATED.open().pixel_size(0) * D / 16)


def test_float64_is_exact_to_the_rounding_of_the_file(cli, table):
    """Against `fourier_inversion` of the exact transforms of both halves."""
    rows = particle_table(Path("p.star"))
    poses, pixel = Poses.from_table(rows), float(rows.rlnImagePixelSize[0])
    images = torch.from_numpy(SIMULATED.open().read_block(range(COUNT))).double()
    sums, kernels = [], []
    for half in (0, 1):
        own = Poses(poses.angles[half::2], poses.shift[half::2])
        operator = projection_of(D, pixel, own, None, dtype=torch.float64)
        sums.append(operator.A_adjoint(images[None, half::2])[0, 0])
        kernels.append(operator.kernel())
    exact = wiener(torch.stack(sums), torch.stack(kernels), dtype=torch.float64).full
    errors = []
    for dtype in ("float32", "float64"):
        options = ("--no-ctf", "--no-halves", "--dtype", dtype, "--out", dtype)
        code, _, err = cli("reconstruct", "p.star", "-s", "fourier_inversion", *options)
        assert code == 0, err
        errors.append(float((read(f"{dtype}/map.mrc") - exact).norm() / exact.norm()))
    assert errors[1] < 1e-6 < errors[0] < 1e-3


def test_a_radius_is_the_same_mask_for_all_commands(cli, table):
    """A ball with a cosine edge of 5 voxels."""
    halves = ("map/half1.mrc", "map/half2.mrc")
    for command in (("reconstruct", "p.star", "-s", "fourier_inversion", "--images", "0:20", "--out", "map"),
                    ("postprocess", *halves, "--out", "processed")):  # fmt: skip
        code, _, err = cli(*command, "--radius", "30")
        assert code == 0, err
    distance = np.linalg.norm(np.indices((D, D, D)) - D // 2, axis=0)
    outside = (distance - 30 / SIMULATED.open().pixel_size(0)) / 5
    wanted = 0.5 + 0.5 * np.cos(np.pi * np.clip(outside, 0, 1))
    for folder in ("map", "processed"):
        np.testing.assert_allclose(read(f"{folder}/mask.mrc"), wanted, atol=1e-4)


def test_a_folder_is_replaced_only_if_asked_for(cli, table):
    arguments = ("reconstruct", "p.star", "-s", "fourier_inversion", "--images", "0:20", "--out", "map")
    assert cli(*arguments)[0] == 0
    code, _, err = cli(*arguments)
    assert code == 2
    assert "map exists already; give another --out, or --force to replace it" in err
    assert cli(*arguments, "--force")[0] == 0
    Path("map/notes.txt").write_text("mine")
    assert "has other files, such as notes.txt" in cli(*arguments, "--force")[2]


def spoiled(table: pd.DataFrame) -> None:
    """Files that are no input of a map."""
    pixel = SIMULATED.open().pixel_size(0)
    write_star("no_poses.star", table.drop(columns="rlnAngleTilt"), pixel)
    write_star("nan.star", table.assign(rlnAnglePsi=[float("nan"), *table.rlnAnglePsi[1:]]), pixel)
    write_star("sizes.star", table, [pixel] * (COUNT - 1) + [2 * pixel])
    write_star("one_half.star", table.assign(rlnRandomSubset=[1] * (COUNT - 1) + [2]), pixel)
    write_star("no_defocus.star", table.drop(columns="rlnDefocusV"), pixel)
    for name, shape, value, size in (
        ("flat.mrc", (D, D, D - 2), 1, pixel), ("small.mrc", (D - 2,) * 3, 1, pixel), ("empty.mrc", (D,) * 3, 0, pixel),
        ("bytes.mrc", (D,) * 3, 255, pixel), ("coarse.mrc", (D,) * 3, 1, 2 * pixel),
    ):  # fmt: skip
        with mrcfile.new(name, data=np.full(shape, value, np.float32)) as file:
            file.voxel_size = size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_poses.star"], "no_poses.star lacks rlnAngleTilt; poses need rlnAngleRot, rlnAngleTilt, rlnAnglePsi"),
        (["nan.star"], "nan.star: row 1 has rlnAnglePsi nan; give a finite number"),
        (["sizes.star"], "sizes.star has pixel sizes from 5.28887 to 10.5777 Å; expected one"),
        (["one_half.star"], "one_half.star: the halves have 119 and 1 particles; give at least 2 in each half"),
        (["no_defocus.star"], "no_defocus.star lacks rlnDefocusV; the CTF needs"),
        (["p.star", "--images", "0:3"], "p.star: the halves have 2 and 1 particles"),
        (["p.star", "--mask", "flat.mrc"], "flat.mrc has 24 x 24 x 22 voxels; expected a cube as mask"),
        (["p.star", "--mask", "small.mrc"], "small.mrc has 22 voxels a side and the particles 24"),
        (["p.star", "--mask", "empty.mrc"], "empty.mrc is 0 everywhere; expected a mask from 0 to 1"),
        (["p.star", "--mask", "bytes.mrc"], "bytes.mrc has values from 255 to 255; expected a mask from 0 to 1"),
        (["p.star", "--mask", "coarse.mrc"], "coarse.mrc has 10.578 Å per voxel and the particles 5.2889; expected"),
        (["p.star", "--mask", "small.mrc", "--radius", "30"], "--mask and --radius are both given"),
        (["p.star", "--radius", "300"], "--radius 300: expected 5.29 to 63.5 Å, half the box"),
        (["p.star", "-s", "fourier_inversion:radius=50"], "radius=50 is more than half of the 24 voxels"),
        (["p.star", "--symmetry", "Q"], "unknown symmetry 'Q'; give C1 to C60"),
        (["p.star", "--batch", "3"], "--batch does not apply to a map"),
        (["p.star", "-s", "ddnm"], "it supports images (2-D), got volumes (3-D)"),
        (["missing.star"], "missing.star does not exist"),
        (["measured"], "--out out: images are written as .mrcs"),
        (["measured", "--radius", "30"], "--radius is for maps; give a table of particles"),
        (["measured", "--volume", "--size", "12"], "--size does not apply to measurements; measure again with --size"),
        (["measured", "--volume"], "fourier_inversion needs images of views, as project and ctf@project give; use cg"),
        (["blind", "--volume"], "blind has no table of poses; give the particles of a refinement"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments, message, cli, table):
    spoiled(table)
    if arguments[0] in ("measured", "blind"):
        data = "p.star" if arguments[0] == "measured" else "p.mrcs"
        assert cli("measure", "-o", "sumpool:2", "-d", data, "--images", "0:8", "--out", arguments[0])[0] == 0
    solver = [] if "-s" in arguments else ["-s", "fourier_inversion"]
    code, _, err = cli("reconstruct", *arguments, *solver, "--out", "out")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("out").exists()


def test_particles_of_cryosparc_give_the_same_map(cli, table):
    """From rotation vectors and shifts in pixels."""
    pixel, poses = SIMULATED.open().pixel_size(0), Poses.from_table(table)
    fields = [("blob/path", "S8"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4"), ("alignments3D/pose", "<f4", (3,)),
              ("alignments3D/shift", "<f4", (2,)), ("alignments3D/psize_A", "<f4")]  # fmt: skip
    rows = np.zeros(COUNT, fields)
    rows["blob/path"], rows["blob/idx"], rows["blob/psize_A"] = b"p.mrcs", np.arange(COUNT), pixel
    rows["alignments3D/pose"] = Rotation.from_matrix(poses.matrices.mT.numpy()).as_rotvec()  # the transpose: pyem
    rows["alignments3D/shift"], rows["alignments3D/psize_A"] = -poses.shift.numpy() / pixel, pixel
    with Path("p.cs").open("wb") as file:
        np.save(file, rows)
    for name, options in (("p.cs", []), ("p.star", ["--no-ctf"])):
        code, _, err = cli("reconstruct", name, "-s", "fourier_inversion", *options, "--out", f"of_{name[2:]}")
        assert code == 0, err
    assert "p.cs has no CTFs: none used" in cli("reconstruct", "p.cs", "-s", "fourier_inversion", "--out", "again")[2]
    ours, theirs = read("of_cs/map.mrc"), read("of_star/map.mrc")
    assert float((ours - theirs).norm() / theirs.norm()) < 0.01


def test_images_that_do_not_fit_in_memory_are_streamed_or_refused(cli, table, monkeypatch):
    monkeypatch.setattr(limits, "available_memory", lambda: 730 * D**3)
    assert cli("reconstruct", "p.star", "-s", "fourier_inversion", "--out", "map")[0] == 0
    code, _, err = cli("reconstruct", "p.star", "-s", "cg", "--out", "other")
    assert code == 2
    assert "a map of 120 particles of 24 pixels needs 12.7 MB of memory, more than the 10.1 MB here; give fewer" in err
    assert "fewer --images, a smaller --size, or -s fourier_inversion" in err
    code, _, err = cli("reconstruct", "p.star", "-s", "fourier_inversion", "--size", "32", "--out", "other")
    assert (code, "a map of 32 voxels a side needs 23.6 MB of memory" in err) == (2, True)


def test_particles_of_several_optics_groups_have_their_own_microscopes(cli, table):
    """The voltage of half of them differs: with the right one for each the map is that of the truth."""
    groups = 1 + np.arange(COUNT) % 2
    pixel = SIMULATED.open().pixel_size(0)
    write_star("groups.star", table.assign(rlnVoltage=np.where(groups == 1, 300.0, 200.0)), pixel)
    assert particle_table(Path("groups.star")).rlnVoltage.nunique() == 2
    for name in ("p", "groups"):
        assert cli("reconstruct", f"{name}.star", "-s", "fourier_inversion", "--out", name)[0] == 0
    right, wrong = (shell_correlation(read(f"{name}/map.mrc"), truth()) for name in ("p", "groups"))
    assert right.mean() > wrong.mean() + 0.02
