"""Denoising whole micrographs: files, units, halves, resumption and refusals."""

from __future__ import annotations

import dataclasses

import mrcfile
import networks
import numpy as np
import pytest
import tifffile
import torch
import zarr
from halves import Halves, Micrographs
from safetensors.torch import save_file

from cryobench.errors import CryobenchError, DataError, IncompatibleError, ParameterError, ResultsError
from cryobench.measuring import denoise
from cryobench.measuring.chunks import ChunkObserver, Where, run_chunks
from cryobench.measuring.denoise import MANIFEST, DenoiseTask
from cryobench.networks.files import WEIGHTS
from cryobench.networks.unet import UNet, UNetConfig
from cryobench.numerics.noise import difference_deviation
from cryobench.plan.dataset import open_stack
from cryobench.priors.denoiser import Denoiser
from cryobench.registry import installed


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(5)
    return networks.denoiser(tmp_path / "net", UNet(UNetConfig((4, 6), unshuffle=2)))


@pytest.fixture
def files(tmp_path):
    """Three micrographs of different shapes with a pixel size."""
    rng, paths = np.random.default_rng(0), []
    for i, shape in enumerate(((50, 64), (61, 47), (48, 48))):
        paths.append(str(tmp_path / f"mic{i}.mrc"))
        with mrcfile.new(paths[-1], rng.normal(100, 5, size=shape).astype(np.float32)) as file:
            file.voxel_size = 1.25
    return tuple(paths)


def denoised(task: DenoiseTask, **where):
    work = task.open()
    work.start()
    run_chunks(task, work, Where(**where), ChunkObserver())
    return work


def test_each_micrograph_is_denoised_whole_in_its_own_units(network, files, tmp_path):
    solver = f"n2n:model={network},tile=16"
    work = denoised(DenoiseTask(files, solver, str(tmp_path / "out")))
    assert work.todo() == []
    net = Denoiser(str(network)).load()
    for path in files:
        with mrcfile.open(tmp_path / "out" / path.rpartition("/")[2]) as file, mrcfile.open(path) as before:
            y = before.data.astype(np.float64)
            assert file.data.shape == y.shape
            assert file.data.dtype == np.float32
            assert float(file.voxel_size.x) == pytest.approx(1.25)
            scaled = torch.from_numpy((y - y.mean()) / y.std()).float()[None, None]
            pad = (0, -y.shape[1] % 4, 0, -y.shape[0] % 4)
            f = net(torch.nn.functional.pad(scaled, pad, mode="reflect"))[0, 0, : y.shape[0], : y.shape[1]]
            np.testing.assert_allclose(file.data, y.mean() + y.std() * f.numpy(), atol=1e-4)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mic0.mrc", "mic1.mrc", "mic2.mrc", MANIFEST}


@pytest.mark.parametrize("suffix", ["tif", "ome.tif", "zarr", "npy"])
def test_other_formats_hold_the_same_pixels_and_their_size(files, tmp_path, suffix):
    denoised(DenoiseTask(files[:2], "gaussian:1", str(tmp_path / "mrc")))
    task = DenoiseTask(files[:2], "gaussian:1", str(tmp_path / "out"), format=suffix)
    assert denoised(task).finish() == [tmp_path / "out" / f"mic{i}.{suffix}" for i in range(2)]
    for i in range(2):
        path = tmp_path / "out" / f"mic{i}.{suffix}"
        read = {"npy": np.load, "zarr": lambda at: zarr.open_group(at, mode="r")["0"]}.get(suffix, tifffile.imread)
        np.testing.assert_array_equal(np.squeeze(read(path)), mrcfile.read(tmp_path / "mrc" / f"mic{i}.mrc"))
        stack = open_stack(str(path), {}, installed())
        assert stack.pixel_size(0) == (None if suffix == "npy" else pytest.approx(1.25))
    first = tmp_path / "out" / f"mic0.{suffix}"
    before = first.stat().st_mtime_ns
    assert denoised(task).todo() == []
    assert first.stat().st_mtime_ns == before
    work = task.open()
    work.start(force=True)
    assert work.todo() == [0, 1]
    assert not list((tmp_path / "out").glob(".*"))


def test_other_solvers_work_in_windows_of_the_micrograph_scaled_once(files, tmp_path):
    work = DenoiseTask(files[:1], "tv", str(tmp_path / "out")).open()
    assert work.notes() == ["large micrographs are denoised in windows: tiled:solver=tv"]
    denoised(DenoiseTask(files[:1], "tiled:tv,tile=32,overlap=8", str(tmp_path / "out")))
    with mrcfile.open(tmp_path / "out" / "mic0.mrc") as file, mrcfile.open(files[0]) as before:
        assert file.data.std() < 0.5 * before.data.std()
        assert file.data.mean() == pytest.approx(before.data.mean(), abs=0.5)


def test_a_finished_micrograph_is_not_denoised_again_and_more_can_be_added(network, files, tmp_path):
    out, solver = tmp_path / "out", f"n2n:model={network}"
    denoised(DenoiseTask(files[:2], solver, str(out)))
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "mic1.mrc").unlink()
    (out / ".mic1.mrc-killed00").write_bytes(b"left by a process that was killed")
    work = DenoiseTask(files, solver, str(out)).open()
    assert work.todo() == [1, 2]
    assert denoised(DenoiseTask(files, solver, str(out))).finish() == [out / f"mic{i}.mrc" for i in range(3)]
    assert (out / "mic0.mrc").stat().st_mtime_ns == before["mic0.mrc"]
    assert len(list(out.iterdir())) == 4


def test_shards_do_different_micrographs(network, files, tmp_path):
    out, solver = tmp_path / "out", f"n2n:model={network}"
    denoised(DenoiseTask(files, solver, str(out)), shard=(1, 2))
    first = {path.name for path in out.glob("*.mrc")}
    denoised(DenoiseTask(files, solver, str(out)), shard=(2, 2))
    assert len(first) == 1
    assert {path.name for path in out.glob("*.mrc")} == {"mic0.mrc", "mic1.mrc", "mic2.mrc"}


def test_results_of_another_solver_are_not_mixed(network, files, tmp_path):
    out = tmp_path / "out"
    denoised(DenoiseTask(files[:1], "gaussian:2", str(out)))
    with pytest.raises(ResultsError, match=r"denoised otherwise \(another solver\); give another --out, or --force"):
        DenoiseTask(files, "gaussian:3", str(out)).open().start()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mic0.mrc").write_bytes(b"something else")
    with pytest.raises(ResultsError, match=r"mic0\.mrc exists already, and is not of this command"):
        DenoiseTask(files, "gaussian:3", str(other)).open().start()
    DenoiseTask(files, "gaussian:3", str(out)).open().start(force=True)
    assert not (out / "mic0.mrc").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"cannot denoise into .*file \(File exists\); give another --out"):
        DenoiseTask(files, "gaussian:3", str(tmp_path / "file")).open().start()


def test_changed_weights_are_another_solver(network, files, tmp_path):
    out, solver = tmp_path / "out", f"n2n:model={network}"
    denoised(DenoiseTask(files, solver, str(out)))
    save_file(UNet(UNetConfig((4, 6), unshuffle=2)).state_dict(), network / WEIGHTS)
    with pytest.raises(ResultsError, match="another weights"):
        DenoiseTask(files, solver, str(out)).open().start()


@pytest.mark.parametrize("halves", ["together", "average"])
def test_halves_are_denoised_together_or_averaged(network, tmp_path, monkeypatch, halves):
    source = Halves(count=1, side=48)
    monkeypatch.setattr(denoise, "open_stack", lambda text, options, registry: Micrographs(source))
    denoised(DenoiseTask(("halves",), f"n2n:model={network}", str(tmp_path / "out"), halves))
    net = Denoiser(str(network)).load()
    a, b = source.whole(0)

    def alone(y: np.ndarray) -> np.ndarray:
        y = y.astype(np.float64)
        scaled = torch.from_numpy((y - y.mean()) / y.std()).float()[None, None]
        return y.mean() + y.std() * net(scaled)[0, 0].numpy()

    expected = alone((a + b) / 2) if halves == "together" else (alone(a) + alone(b)) / 2
    with mrcfile.open(tmp_path / "out" / "mic000.mrc") as file:
        np.testing.assert_allclose(file.data, expected, atol=1e-3)
        assert float(file.voxel_size.x) == pytest.approx(1.5)


@pytest.mark.parametrize("halves", ["together", "average"])
def test_the_noise_of_halves_is_estimated_from_their_difference(tmp_path, monkeypatch, halves):
    """4 x 2 counts in a, 4 x 1 in b; of their mean sqrt(8^2 + 4^2) / 2."""
    source, seen = Halves(count=1, side=256, noise=(2.0, 1.0)), []
    monkeypatch.setattr(denoise, "open_stack", lambda text, options, registry: Micrographs(source))

    def solve_parts(solver, problem, ids, **options):
        seen.append(float(problem.sigma * problem.scale.factor))
        yield solver.solve(problem, rng=None)

    monkeypatch.setattr(denoise, "solve_parts", solve_parts)
    denoised(DenoiseTask(("halves",), "gaussian", str(tmp_path / "out"), halves))
    assert seen == pytest.approx([20**0.5] if halves == "together" else [8, 4], rel=0.03)
    seen.clear()
    denoised(DenoiseTask(("halves",), "gaussian", str(tmp_path / "given"), halves, sigma=3.0))
    assert seen == pytest.approx([3.0] * len(seen))


def test_noise_is_estimated_from_neighbouring_pixels_under_a_smooth_image():
    ramp = np.linspace(0, 50, 301)[:, None] + np.cos(np.arange(280) / 20)[None]
    noise = np.random.default_rng(0).normal(0, 0.7, size=ramp.shape)
    assert difference_deviation(ramp + noise) == pytest.approx(0.7, rel=0.02)
    assert difference_deviation(np.zeros((1, 5))) == 0


def test_requests_that_cannot_be_met_are_refused_in_one_line(files, tmp_path, network, monkeypatch):
    out = str(tmp_path / "out")
    with mrcfile.new(tmp_path / "volume.mrc", np.random.default_rng(0).random((8, 8, 8), np.float32)) as file:
        file.set_volume()
    with mrcfile.new(tmp_path / "flat.mrc", np.ones((32, 32), np.float32)):
        pass
    cases: list[tuple[DenoiseTask, type[CryobenchError], str]] = [
        (DenoiseTask(files, "n2n", out, "both"), ParameterError, "--halves must be together or average, got 'both'"),
        (DenoiseTask(files, "gaussian", out, sigma=-1.0), ParameterError, "--sigma must be zero or positive, got -1"),
        (DenoiseTask(files, "gaussian", out, format="jpg"), ParameterError, "--format 'jpg' is unknown; there are mrc"),
        (DenoiseTask(files, "gaussian", out, "average"), ParameterError, "needs micrographs in two halves"),
        (DenoiseTask((files[0], files[0]), "gaussian", out), ParameterError, "two micrographs have the name mic0"),
        (DenoiseTask((str(tmp_path / "gone.mrc"),), "gaussian", out), DataError, "gone.mrc"),
        (DenoiseTask((f"volume:{tmp_path / 'volume.mrc'}",), "gaussian", out), DataError, "holds volumes"),
        (DenoiseTask((str(tmp_path / "flat.mrc"),), "gaussian", out), DataError, "flat is constant or not finite"),
        (DenoiseTask(files, f"n2n:model={tmp_path}", out), DataError, "is no folder of a denoising network"),
        (DenoiseTask(files, "ddnm", out), IncompatibleError, "sides are multiples of 16, got 50 x 64"),
    ]
    for i, (task, kind, message) in enumerate(cases):
        with pytest.raises(kind, match=message) as error:
            denoised(dataclasses.replace(task, out=f"{out}{i}"))
        assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out*/*.mrc"))


def test_the_command_denoises_and_says_where(cli, files, network, tmp_path):
    code, out, err = cli("denoise", *files, "--solver", f"n2n:model={network}", "--out", "clean")
    assert (code, out) == (0, "")
    assert err.splitlines()[-1] == "3 micrographs in clean"
    assert len(list((tmp_path / "clean").glob("*.mrc"))) == 3
    code, _, err = cli("denoise", *files, "--solver", "n2n:model=./none", "--out", "none")
    assert code == 2
    assert err.count("\n") == 1
    code, _, err = cli("denoise", *files, "--solver", "gaussian", "--out", "shards", "--shard", "1/3")
    assert code == 0
    assert err.splitlines()[-1] == "2 of 3 micrographs of shards are missing"
