"""Volumes filled gap by gap: the same as solved whole, read lazily, in every format, after interruptions."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile
import torch
import zarr
from kills import killed
from networks import conditional, film_unet
from scipy.ndimage import gaussian_filter

from cryobench.core import Problem, build_operator
from cryobench.errors import CryobenchError, DataError, IncompatibleError, ParameterError, PluginError, ResultsError
from cryobench.measuring import isotropic
from cryobench.measuring.isotropic import Filling, IsotropicTask, measured_sections, unfinished
from cryobench.networks.film import FilmConfig
from cryobench.operators.noise import NoNoise
from cryobench.operators.subsampling import Slices
from cryobench.registry import installed
from cryobench.rng import Rng
from cryobench.sources.volume import Volume, VolumeStack

R, SHAPE = 4, (13, 20, 24)


@pytest.fixture
def truth(tmp_path) -> np.ndarray:
    """A smooth volume [13, 20, 24]; every fourth section is in thin.npy."""
    noise = np.random.default_rng(0).normal(size=SHAPE)
    volume = (100 + 50 * gaussian_filter(noise, 1.5)).astype(np.float32)
    np.save(tmp_path / "thin.npy", volume[::R])
    return volume


def task(tmp_path: Path, solver: str = "interpolate", out: str = "x.mrc", **changes) -> IsotropicTask:
    return dataclasses.replace(IsotropicTask(str(tmp_path / "thin.npy"), R, solver, str(tmp_path / out)), **changes)


def filled(request: IsotropicTask, order=None) -> Filling:
    work = request.open()
    work.start()
    for chunk in work.todo() if order is None else order:
        work.run(chunk, lambda fraction: None)
    return work


def voxels(path: Path) -> np.ndarray:
    return Volume((str(path),)).open_anisotropic().read(0)


@pytest.mark.parametrize(("solver", "rounding"), [
    ("interpolate", 1e-5), ("interpolate:nearest", 1e-5), ("flow:ilk,radius=4", 1e-3),  # whose filter has a median
])  # fmt: skip
def test_gaps_are_filled_as_in_a_problem_of_the_whole_volume(cli, truth, tmp_path, solver, rounding):
    work = filled(task(tmp_path, solver), order=[2, 0, 1])
    assert work.finish() == [tmp_path / "x.mrc"]
    found = mrcfile.read(tmp_path / "x.mrc")
    x = torch.from_numpy(truth)[None, None]
    operator = build_operator(Slices(R), SHAPE, seed=0, dtype=x.dtype)
    y = operator.A(x)
    given = Problem(operator, y, NoNoise(), torch.zeros((1,) * y.ndim))
    whole = installed().make("solvers", solver).solve(given, rng=Rng(0, ["0"])).x[0, 0].numpy()
    np.testing.assert_allclose(found, whole, rtol=1e-6)
    assert np.array_equal(found[::R], truth[::R])
    np.save("truth.npy", truth)
    assert cli("run", "-s", solver, "-o", f"slices:{R}", "-d", "volume:truth.npy", "--save", "reconstructions",
               "--no-floor")[0] == 0  # fmt: skip
    (run,) = Path("runs").glob("*/reconstructions.mrcs")
    np.testing.assert_allclose(found, mrcfile.read(run)[0], rtol=rounding)


@pytest.mark.parametrize("shared", ["true", "false"])
def test_samples_of_gaps_are_those_of_the_whole_volume(truth, tmp_path, shared):
    """Gaps in another order, with noise that all of them share or their own; and the deviation of the samples."""
    network = film_unet(FilmConfig(8, (1, 2), blocks=1, dropout=0.0, conditions=2, places=3))
    model = conditional(tmp_path / "net", network, "noise", 16)
    solver = f"emdiffuse:model={model},samples=2,steps=2,shared={shared}"
    filled(task(tmp_path, solver), order=[1, 2, 0]).finish()
    operator = build_operator(Slices(R), SHAPE, seed=0)
    y = operator.A(torch.from_numpy(truth)[None, None])
    given = Problem(operator, y, NoNoise(), torch.zeros((1,) * y.ndim))
    whole = installed().make("solvers", solver).solve(given, rng=Rng(0, ["0"]))
    np.testing.assert_allclose(mrcfile.read(tmp_path / "x.mrc"), whole.x[0, 0], rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(mrcfile.read(tmp_path / "x_deviation.mrc"), whole.deviation[0, 0], rtol=1e-4, atol=1e-3)
    assert float(whole.deviation[0, 0, 1].mean()) > 1


def test_a_volume_is_read_two_sections_at_a_time_and_measured_in_a_part(truth, tmp_path, monkeypatch):
    sections = np.random.default_rng(0).normal(size=(40, 5, 6)).astype(np.float32)
    np.save(tmp_path / "thin.npy", sections)
    monkeypatch.setattr(isotropic, "MEASURED", 7 * 30)
    monkeypatch.setattr(VolumeStack, "read", None)
    windows, read = [], VolumeStack.read_window
    monkeypatch.setattr(
        VolumeStack, "read_window", lambda self, i, window: windows.append(window) or read(self, i, window)
    )
    work = task(tmp_path).open()
    measured = [0, 6, 13, 19, 26, 32, 39]
    assert [window[0] for window in windows] == [slice(z, z + 1) for z in measured]
    assert work._intensities.mean == pytest.approx(sections[measured].mean(), abs=1e-6)
    assert work._intensities.deviation == pytest.approx(sections[measured].std(), rel=1e-6)
    assert work.notes()[-1] == "intensities are those of 7 of 40 sections, at equal distances"
    windows.clear()
    work.start()
    for chunk in work.todo():
        work.run(chunk, lambda fraction: None)
    assert [window[0] for window in windows] == [slice(k, k + 2) for k in range(39)]
    work.finish()
    assert mrcfile.read(tmp_path / "x.mrc").shape == (157, 5, 6)


def test_intensities_are_those_of_sections_at_equal_distances():
    assert measured_sections(5, 2**20) == [0, 1, 2, 3, 4]
    assert measured_sections(5, 2**24) == measured_sections(5, 2**30) == [0, 4]
    assert measured_sections(5, 2**24 // 3) == [0, 2, 4]


@pytest.mark.parametrize("out", ["x.mrc", "x.tif", "x.ome.tif", "x.zarr"])
def test_the_result_in_every_format_has_its_voxel_size(truth, tmp_path, out):
    metadata = {"axes": "ZYX"}
    for axis, size in (("Z", 30.0), ("Y", 8.0), ("X", 10.0)):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "nm"}
    tifffile.imwrite(tmp_path / "thin.ome.tif", truth[::R], metadata=metadata)
    work = filled(task(tmp_path, out=out, volume=str(tmp_path / "thin.ome.tif")))
    assert work.notes() == [
        "voxels of the result have 75 x 80 x 100 Å (z, y, x): by thin.ome.tif, sections are 300 Å apart"
    ]
    assert not (tmp_path / out).exists()
    work.finish()
    filled(task(tmp_path, out="same.mrc")).finish()
    assert np.array_equal(voxels(tmp_path / out), mrcfile.read(tmp_path / "same.mrc"))
    if out == "x.mrc":
        assert mrcfile.validate(tmp_path / out)
        with mrcfile.open(tmp_path / out) as file:
            assert file.is_volume()
            assert [float(file.voxel_size[axis]) for axis in "zyx"] == pytest.approx([75, 80, 100])
            assert float(file.header.rms) == pytest.approx(float(file.data.std()), rel=1e-5)
    elif out == "x.zarr":
        stated = zarr.open(tmp_path / out)
        (image,) = stated.attrs["ome"]["multiscales"]
        assert image["datasets"][0]["coordinateTransformations"] == [{"type": "scale", "scale": [75, 80, 100]}]
        assert {axis["unit"] for axis in image["axes"]} == {"angstrom"}
    else:
        with tifffile.TiffFile(tmp_path / out) as file:
            x, y = (file.pages[0].tags[f"{axis}Resolution"].value for axis in "XY")
            assert (1e8 * x[1] / x[0], 1e8 * y[1] / y[0]) == pytest.approx((100, 80))
            if out == "x.ome.tif":
                assert 'PhysicalSizeZ="75.0"' in file.ome_metadata
    assert {path.name for path in tmp_path.iterdir()} == {"thin.npy", "thin.ome.tif", "same.mrc", out}


@pytest.mark.parametrize(("voxel", "cubes", "note"), [
    ((2.0, 2.0, 2.0), 2.0, "sections are taken to be 8 Å apart, 4 times the pixel size: thin.mrc states cubes of 2 Å"),
    ((2.0, 2.0, 8.0), 2.0, "voxels of the result have 2 x 2 x 2 Å (z, y, x): by thin.mrc, sections are 8 Å apart"),
    (0.0, None, "the pixel size of thin.mrc is unknown; none is written"),
])  # fmt: skip
def test_voxels_of_a_map_may_state_the_distance_of_sections_or_not(truth, tmp_path, voxel, cubes, note):
    with mrcfile.new(tmp_path / "thin.mrc", data=truth[::R].copy()) as file:
        file.set_volume()
        file.voxel_size = voxel
    work = filled(task(tmp_path, volume=str(tmp_path / "thin.mrc")))
    assert work.notes() == [note]
    work.finish()
    assert Volume((str(tmp_path / "x.mrc"),)).open().pixel_size(0) == (cubes and pytest.approx(cubes))


def test_a_folder_of_sections_is_a_volume(truth, tmp_path):
    (tmp_path / "folder").mkdir()
    for z, section in enumerate(truth[::R]):
        tifffile.imwrite(tmp_path / "folder" / f"{z + 8}.tif", section, resolution=(1e8 / 40,) * 2, resolutionunit=3)
    work = filled(task(tmp_path, volume=f"volume:{tmp_path / 'folder'},sections=true,invert=true"))
    assert work.notes()[0].endswith("folder does not state their distance")
    work.finish()
    assert np.array_equal(mrcfile.read(tmp_path / "x.mrc")[::R], -truth[::R])
    assert Volume((str(tmp_path / "x.mrc"),)).open().pixel_size(0) == pytest.approx(40)


# -------------------------------------------------------------------------------------------- solvers of plugins


@pytest.fixture
def plugin(install_plugin) -> None:
    """A solver of a fixed deviation for all gaps, of draws of its own for each, and with a fault."""
    install_plugin("cryobench-drawn", {"cryobench.solvers": {"drawn": "drawn_solver:Drawn"}}, drawn_solver="""
from dataclasses import dataclass
import torch
from cryobench.core import Filled, GapSolver

@dataclass(frozen=True)
class Drawn(GapSolver):
    dims = (3,)
    fault: str = ""
    def solve(self, problem, *, rng, progress=None):
        raise NotImplementedError
    def unfillable(self, times):
        return "it was trained for 3 sections" if len(times) != 3 else None
    def fill(self, gap, *, rng, progress=None):
        shape = (len(gap.times), *gap.pair.shape[1:])
        shared = rng.stream("shared").normal(shape)[0]
        x = gap.restored(shared + rng.stream(f"gap {gap.number}").normal(shape)[0])
        if self.fault == "shape":
            x = x[1:]
        if self.fault == "nan":
            x[0, 0, 0] = float("nan")
        if self.fault == "type":
            return x
        return Filled(x, torch.full_like(x, 1.0 + gap.number - 9 * (self.fault == "sign")), samples=2)
""")  # fmt: skip


@pytest.mark.parametrize("out", ["x.mrc", "x.ome.tif", "x.zarr"])
def test_the_deviation_of_a_sampler_is_a_second_volume(plugin, truth, tmp_path, out):
    work = filled(task(tmp_path, "drawn", out, seed=3))
    beside = tmp_path / out.replace("x", "x_deviation", 1)
    assert work.finish() == [tmp_path / out, beside]
    found, deviation = voxels(tmp_path / out), voxels(beside)
    assert not deviation[::R].any()
    rng, measured = Rng(3, ["0"]), truth[::R].astype(np.float64)
    for k in range(3):
        assert (deviation[R * k + 1 : R * k + R] == 1 + k).all()
        drawn = sum(rng.stream(name).normal((R - 1, *SHAPE[1:]))[0].numpy() for name in ("shared", f"gap {k}"))
        wanted = measured.mean() + measured.std() * drawn
        np.testing.assert_allclose(found[R * k + 1 : R * k + R], wanted, rtol=1e-5)
    assert np.array_equal(found[::R], truth[::R])


def test_an_earlier_deviation_does_not_stay_beside_a_volume_without_one(plugin, truth, tmp_path):
    filled(task(tmp_path, "drawn", "x.zarr")).finish()
    assert filled(task(tmp_path, "interpolate", "x.zarr")).finish() == [tmp_path / "x.zarr"]
    assert {path.name for path in tmp_path.iterdir()} == {"thin.npy", "x.zarr"}


@pytest.mark.parametrize(("fault", "message"), [
    ("shape", "the solver returned sections of 2 x 20 x 24, expected 3 x 20 x 24"),
    ("nan", "the solver returned sections with values that are not finite"),
    ("sign", "the solver returned a deviation with negative values"),
    ("type", "the solver returned a Tensor, not a cryobench.core.Filled"),
])  # fmt: skip
def test_a_solver_that_breaks_the_contract_is_stopped(plugin, truth, tmp_path, fault, message):
    with pytest.raises(PluginError, match=message):
        filled(task(tmp_path, f"drawn:fault={fault}"))


# ------------------------------------------------------------------------------------------------- interruptions


def test_a_kill_while_gaps_are_filled_loses_no_other_gap(truth, tmp_path):
    filled(task(tmp_path, out="whole.mrc")).finish()
    seen = set()
    for at in range(1, 100, 3):
        folder = tmp_path / str(at)
        folder.mkdir()
        request = task(tmp_path, out=f"{at}/x.mrc")
        if not killed(lambda request=request: filled(request), folder, at):
            break
        work = request.open()
        seen.add(done := len(work._stack_parts.done()))
        assert len(filled(request, order=[]).todo()) == 3 - done
        assert filled(request).finish() == [folder / "x.mrc"]
        assert (folder / "x.mrc").read_bytes() == (tmp_path / "whole.mrc").read_bytes()
        assert [path.name for path in folder.iterdir()] == ["x.mrc"]
    assert seen >= {0, 1, 2}


@pytest.mark.parametrize("out", ["x.mrc", "x.tif", "x.zarr"])
def test_a_kill_while_the_volume_is_put_in_its_place_loses_nothing(truth, tmp_path, out):
    filled(task(tmp_path, out=f"whole_{out}")).finish()
    expected, seen = voxels(tmp_path / f"whole_{out}"), set()
    (tmp_path / "complete").mkdir()
    filled(task(tmp_path, out=f"complete/{out}"))
    for at in range(1, 200, 3 if out == "x.zarr" else 1):
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "complete", folder)
        request = task(tmp_path, out=f"{at}/{out}")
        work = request.open()
        if not killed(work.finish, folder, at):
            break
        state = unfinished(folder / out), (folder / out).exists()
        seen.add(state)
        if state != (False, True):  # then it was killed after the end
            assert filled(request, order=[]).todo() == []
            assert work.finish() == [folder / out]
            assert [path.name for path in folder.iterdir()] == [out]
        assert np.array_equal(voxels(folder / out), expected)
    assert seen >= {(True, False), (True, True)}


def test_the_same_command_finishes_a_volume_that_is_in_its_place(cli, truth, tmp_path):
    command = ("isotropic", "thin.npy", "-f", R, "-s", "interpolate", "--out", "x.tif", "--quiet")
    for at in range(1, 200):
        work = filled(task(tmp_path, out="x.tif", volume="thin.npy"))
        assert killed(work.finish, tmp_path, at), "no kill came after the volume was in its place"
        if (tmp_path / "x.tif").exists() and unfinished(tmp_path / "x.tif"):
            break
        (tmp_path / "x.tif").unlink(missing_ok=True)
    assert cli(*command) == (0, "", "")
    assert {path.name for path in tmp_path.iterdir()} == {"thin.npy", "x.tif"}
    code, _, err = cli(*command)
    assert (code, err) == (2, "error: x.tif exists already; give another --out, or --force to replace it\n")


@pytest.mark.parametrize("change", [{"solver": "interpolate:nearest"}, {"factor": 3}, {"seed": 1}])
def test_another_command_does_not_continue_a_volume(truth, tmp_path, change):
    filled(task(tmp_path), order=[0])
    other = dataclasses.replace(task(tmp_path), **change).open()
    with pytest.raises(ResultsError, match=r"unfinished stack of another command.*--force"):
        other.start()
    other.start(force=True)
    assert other.todo() == [0, 1, 2]


def test_an_edited_volume_is_another_one(truth, tmp_path):
    filled(task(tmp_path), order=[0])
    np.save(tmp_path / "thin.npy", truth[::R] + 1)
    with pytest.raises(ResultsError, match="unfinished stack of another command"):
        task(tmp_path).open().start()


def test_a_process_that_is_later_than_another_finds_the_volume(truth, tmp_path):
    late = filled(task(tmp_path))
    filled(task(tmp_path)).finish()
    assert late.todo() == []
    assert late.finish() == [tmp_path / "x.mrc"]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes:2", "dask:2"])
def test_workers_give_the_same_bytes_as_one_process(cli, truth, tmp_path, executor):
    for where, name in (("local", "one"), (executor, "two")):
        code, _, err = cli("isotropic", "thin.npy", "-f", R, "-s", "flow:ilk", "--executor", where, "--threads", "1",
                           "--out", f"{name}.mrc")  # fmt: skip
        assert code == 0, err
    assert Path("one.mrc").read_bytes() == Path("two.mrc").read_bytes()


# --------------------------------------------------------------------------------------------------- command line


def test_a_damaged_section_stops_the_command_and_what_was_filled_is_kept(cli, truth, tmp_path, monkeypatch):
    values = np.concatenate([truth[::R], np.full((1, *SHAPE[1:]), np.nan, np.float32), truth[:1]])
    np.save("thin.npy", values)
    monkeypatch.setattr(isotropic, "MEASURED", 2)
    code, _, err = cli("isotropic", "thin.npy", "-f", R, "-s", "interpolate", "--out", "x.mrc", "--quiet")
    assert (code, err.count("\n")) == (2, 1)
    assert "480 values that are not finite (NaN or infinite) at 3:5, 0:20, 0:24 (z, y, x); correct the file" in err
    assert len(list(tmp_path.glob(".x.mrc.parts/done/*"))) == 3


def test_an_interruption_says_how_many_sections_are_kept(cli, truth, tmp_path, monkeypatch):
    def interrupted(self, chunk, report, run=Filling.run):
        if chunk == 2:
            raise KeyboardInterrupt
        run(self, chunk, report)

    monkeypatch.setattr(Filling, "run", interrupted)
    code, _, err = cli("isotropic", "thin.npy", "-f", R, "-s", "interpolate", "--out", "x.mrc")
    assert code == 130
    assert "8 of 13 sections are finished and kept; the same command continues from there" in err


def test_the_command_fills_a_volume_in_shards(cli, truth, tmp_path):
    command = ("isotropic", "thin.npy", "--factor", R, "--solver", "interpolate", "--out", "x.ome.tif")
    code, out, err = cli(*command, "--shard", "1/2")
    assert (code, out) == (0, "")
    assert err.splitlines() == [
        "the pixel size of thin.npy is unknown; none is written", "2 of 3 gaps of x.ome.tif are missing",
    ]  # fmt: skip
    assert not Path("x.ome.tif").exists()
    code, _, err = cli(*command)
    assert (code, err.splitlines()[-1]) == (0, "13 x 20 x 24 voxels in x.ome.tif")
    assert np.array_equal(voxels(Path("x.ome.tif"))[::R], truth[::R])
    assert cli(*command)[0] == 2
    assert cli(*command, "--force")[0] == 0


@pytest.mark.parametrize(("changes", "kind", "message"), [
    ({"factor": 1}, ParameterError, "--factor must be at least 2, got 1"),
    ({"out": "x.mrcs"}, ParameterError, r"give a name that ends in .mrc, .tif, .tiff, .zarr or .ome.tif"),
    ({"solver": "tv"}, IncompatibleError, "cannot fill gaps one by one: it takes all sections of a volume; give one "
                                          "of emdiffuse, flow, interpolate, regression$"),
    ({"solver": "interpolate:cubic"}, IncompatibleError, "cubic interpolation takes all sections of a volume; give"),
    ({"volume": "nan.npy"}, DataError, r"not finite \(NaN or infinite\) at 1:2, 0:8, 0:8 \(z, y, x\); correct the fi"),
    ({"volume": "flat.npy"}, DataError, "is constant in the sections that were read"),
    ({"volume": "two.npy"}, DataError, "has 2 volumes; give a file of one, or volume:FOLDER,sections=true"),
    ({"volume": "image.npy"}, DataError, r"expected one volume \[D, H, W\]"),
    ({"volume": "one.npy"}, DataError, "holds a volume of 1 x 8 x 8 voxels; expected at least 2 a side"),
    ({"volume": "volume:one,sections=true"}, DataError, "one has one section; expected two or more"),
    ({"volume": "rgb.tif"}, DataError, "expected a real number for each pixel"),
    ({"volume": "gone.mrc"}, DataError, "gone.mrc does not exist"),
    ({"volume": "volume:thin.npy,size=8"}, ParameterError, "size and view are not possible here"),
    ({"volume": "volume:thin.npy,view=sections"}, ParameterError, "size and view are not possible here"),
])  # fmt: skip
def test_requests_that_cannot_be_met_are_refused_in_one_line(truth, tmp_path, monkeypatch, changes, kind, message):
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).random((3, 8, 8), np.float32)
    Path("one").mkdir()
    tifffile.imwrite("one/a.tif", values[0])
    np.save("one.npy", values[:1])
    np.save("two.npy", [values, values])
    np.save("image.npy", values[0])
    np.save("flat.npy", np.ones((3, 8, 8), np.float32))
    tifffile.imwrite("rgb.tif", np.zeros((3, 8, 8, 3), np.uint8), photometric="rgb")
    values[1, 2, 3] = np.nan
    np.save("nan.npy", values)
    with pytest.raises(kind, match=message) as error:
        dataclasses.replace(IsotropicTask("thin.npy", R, "interpolate", "x.mrc"), **changes).open()
    assert isinstance(error.value, CryobenchError)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob(".x*"))
