"""Stacks measured and reconstructed in chunks: the same bits as in one piece, in any order, after interruptions."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
from kills import killed
from optics import ctf_table
from star_files import write_star

from cryobench.errors import CryobenchError, DataError, ResultsError
from cryobench.io.writing import write_mrcs
from cryobench.measuring.container import CHUNKS, default_chunk, open_container
from cryobench.measuring.measure import Acquisition, measure
from cryobench.measuring.reconstruct import default_batch, reconstruct
from cryobench.measuring.tasks import MeasureTask, ReconstructTask, deviation_path
from cryobench.plan.dataset import open_stack
from cryobench.registry import installed

N, SIDE, CHUNK = 150, 16, 64


@pytest.fixture(scope="module")
def particles(tmp_path_factory) -> Path:
    """A star file of 150 images of 16 x 16 pixels with a CTF each."""
    folder = tmp_path_factory.mktemp("particles")
    images = np.random.default_rng(0).normal(size=(N, SIDE, SIDE)).astype(np.float32)
    write_mrcs(folder / "stack.mrcs", images, 3.0)
    table = ctf_table(N)
    write_star(folder / "stack.star", table, "stack.mrcs", 3.0, SIDE)
    return folder / "stack.star"


def measure_task(particles: Path, out: Path, operator: str = "sumpool:4", **changes) -> MeasureTask:
    acquisition = Acquisition(operator, "gaussian:rel=0.1", "meanstd")
    return dataclasses.replace(MeasureTask(acquisition, str(particles), (), None, str(out), CHUNK), **changes)


def done(task, order=None, **start):
    """Open a task and do its chunks, in this order."""
    work = task.open()
    work.start(**start)
    for chunk in work.todo() if order is None else order:
        work.run(chunk, lambda fraction: None)
    return work


@pytest.fixture(scope="module")
def measured(particles, tmp_path_factory) -> Path:
    """A complete container."""
    out = tmp_path_factory.mktemp("measured") / "y"
    done(measure_task(particles, out))
    return out


@pytest.mark.parametrize("operator", ["sumpool:4", "ctf", "fourier:0.5", "sumpool:2,count=2@ctf"])
def test_chunks_are_the_measurements_in_one_piece(particles, tmp_path, operator):
    task = measure_task(particles, tmp_path / "y", operator)
    whole = measure(task.acquisition, open_stack(str(particles), {}, installed()), range(N), installed())
    container = done(task, order=[2, 0, 1]).container
    assert container.parts == [slice(0, 64), slice(64, 128), slice(128, 150)]
    parts = [open_container(tmp_path / "y").read(chunk) for chunk in range(3)]
    for name in ("y", "sigma"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    for name in ("offset", "factor"):
        assert torch.equal(torch.cat([getattr(part.scale, name) for part in parts]), getattr(whole.scale, name))
    assert [size for part in parts for size in part.pixel_size] == list(whole.pixel_size)
    assert [name for part in parts for name in part.image_ids] == list(whole.image_ids)
    assert whole.table is not None
    pd.testing.assert_frame_equal(container.table(), whole.table, check_dtype=False)  # Parquet has a type for text
    for part in parts:
        assert part.drawn.keys() == whole.drawn.keys()
        assert all(torch.equal(part.drawn[name], whole.drawn[name]) for name in whole.drawn)


@pytest.mark.parametrize("solver", ["tikhonov", "wiener"])
def test_a_stack_in_chunks_is_the_stack_in_one_piece(particles, tmp_path, solver):
    task = measure_task(particles, tmp_path / "y", "ctf")
    whole = measure(task.acquisition, open_stack(str(particles), {}, installed()), range(N), installed())
    done(task)
    expected = np.concatenate(list(reconstruct(whole, installed().make("solvers", solver), installed(), batch=16)))
    work = done(ReconstructTask(str(tmp_path / "y"), solver, str(tmp_path / "x.mrcs")), order=[1, 2, 0])
    files = work.finish()
    with mrcfile.open(tmp_path / "x.mrcs") as file:
        assert mrcfile.validate(tmp_path / "x.mrcs")
        assert np.array_equal(file.data, expected)
        assert float(file.header.dmin) == expected.min()
        assert float(file.header.rms) == pytest.approx(expected.std(dtype=np.float64), rel=1e-6)
        assert float(file.voxel_size.x) == pytest.approx(3.0)
    assert files == [tmp_path / "x.mrcs", tmp_path / "x.star"]
    again = open_stack(str(tmp_path / "x.star"), {}, installed())
    assert np.array_equal(again.read_block(range(N)), expected)
    assert again.table is not None
    assert again.table["rlnDefocusU"].tolist() == pytest.approx(ctf_table(N)["rlnDefocusU"].tolist())
    assert {path.name for path in tmp_path.iterdir()} == {"y", "x.mrcs", "x.star"}
    assert work.finish() == files, "another process that finishes later finds it done"


@pytest.mark.parametrize("every_chunk", [True, False])
def test_deviations_are_written_if_every_chunk_has_one(measured, tmp_path, every_chunk):
    work = ReconstructTask(str(measured), "pinv", str(tmp_path / "x.mrcs")).open()
    work.start()
    deviation = np.random.default_rng(0).uniform(1, 2, size=(N, SIDE, SIDE)).astype(np.float32)
    for chunk, start in enumerate(range(0, N, CHUNK)):
        own = deviation[start : start + CHUNK]
        work.stack.write(chunk, start, [(-own, own if every_chunk or chunk else None)])
    files = work.finish()
    assert (deviation_path(tmp_path / "x.mrcs") in files) == every_chunk
    if every_chunk:
        with mrcfile.open(deviation_path(tmp_path / "x.mrcs")) as file:
            assert np.array_equal(file.data, deviation)


def test_an_interrupted_measurement_is_continued(particles, tmp_path, measured):
    out = tmp_path / "y"
    work = measure_task(particles, out).open()
    work.start()
    work.run(1, lambda fraction: None)
    assert work.todo() == [0, 2]
    with pytest.raises(DataError, match="2 of 3 chunks are missing, the first of images 0 to 63; run the"):
        ReconstructTask(str(out), "pinv", str(tmp_path / "x.mrcs")).open().start()
    kept = work.container.path(1).stat().st_mtime_ns
    done(measure_task(particles, out))
    assert work.container.path(1).stat().st_mtime_ns == kept
    for chunk in range(3):
        assert work.container.path(chunk).read_bytes() == (measured / CHUNKS / f"{chunk:06d}.npz").read_bytes()


def test_an_interrupted_reconstruction_is_continued(measured, tmp_path):
    task = ReconstructTask(str(measured), "tikhonov", str(tmp_path / "x.mrcs"))
    whole = done(dataclasses.replace(task, out=str(tmp_path / "whole.mrcs")))
    whole.finish()
    done(task, order=[2])
    resumed = task.open()
    resumed.start()
    assert resumed.todo() == [0, 1]
    for chunk in resumed.todo():
        resumed.run(chunk, lambda fraction: None)
    resumed.finish()
    assert (tmp_path / "x.mrcs").read_bytes() == (tmp_path / "whole.mrcs").read_bytes()


def test_a_kill_at_any_file_event_of_the_end_loses_nothing(measured, tmp_path):
    whole = done(ReconstructTask(str(measured), "tikhonov", str(tmp_path / "whole.mrcs")))
    whole.finish()
    expected = (tmp_path / "whole.mrcs").read_bytes()
    for at in range(1, 100):
        folder = tmp_path / str(at)
        folder.mkdir()
        task = ReconstructTask(str(measured), "tikhonov", str(folder / "x.mrcs"))
        work = done(task)
        if not killed(work.finish, folder, at):
            break
        resumed = task.open()
        resumed.start()
        assert resumed.todo() == [] or (folder / "x.mrcs").exists()
        if not (folder / "x.mrcs").exists():
            resumed.finish()
        assert (folder / "x.mrcs").read_bytes() == expected
    assert at > 10


@pytest.mark.parametrize("change", [{"solver": "pinv"}, {"seed": 1}, {"batch": 8}, {"dtype": "float64"}])
def test_another_command_does_not_continue_a_stack(measured, tmp_path, change):
    task = ReconstructTask(str(measured), "tikhonov", str(tmp_path / "x.mrcs"))
    done(task, order=[0])
    other = dataclasses.replace(task, **change).open()
    with pytest.raises(ResultsError, match=r"unfinished stack of another command.*--force"):
        other.start()
    other.start(force=True)
    assert other.todo() == [0, 1, 2]


@pytest.mark.parametrize(
    "change", [{"chunk": 32}, {"images": "0:100"}, {"acquisition": Acquisition("sumpool:2", "gaussian:rel=0.1")}]
)
def test_another_command_does_not_continue_a_container(particles, tmp_path, change):
    done(measure_task(particles, tmp_path / "y"), order=[0])
    with pytest.raises(ResultsError, match="holds other measurements"):
        measure_task(particles, tmp_path / "y", **change).open().start()


def test_changed_images_are_not_mixed_with_earlier_ones(particles, tmp_path):
    shutil.copytree(particles.parent, tmp_path / "data")
    task = measure_task(tmp_path / "data" / particles.name, tmp_path / "y")
    done(task, order=[0])
    with mrcfile.mmap(tmp_path / "data" / "stack.mrcs", "r+") as file:
        file.data[-1] += 1
    with pytest.raises(ResultsError, match="holds other measurements"):
        task.open().start()


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda y: flip(y / CHUNKS / "000001.npz", 500), "000001.npz is damaged.*delete it, and run"),
        (lambda y: (y / CHUNKS / "000001.npz").write_bytes(b""), "000001.npz is damaged"),
        (lambda y: np.savez(y / CHUNKS / "000001.npz", y=np.ones(3)), "does not hold the finite arrays"),
        (lambda y: (y / CHUNKS / "000001.npz").unlink(), "incomplete: 1 of 3 chunks"),
        (lambda y: (y / "measurements.json").write_text("{"), "measurements.json is damaged"),
        (lambda y: (y / "measurements.json").unlink(), "has no measurements.json"),
        (lambda y: edit(y, version=4), "of version 4"),
        (lambda y: edit(y, images=-1), "positive integers"),
        (lambda y: edit(y, chunk="x"), "positive integers"),
        (lambda y: edit(y, images=140), "does not have the 140 images"),
        (lambda y: (y / "images.parquet").write_bytes(b"PAR1"), "images.parquet cannot be read"),
        (lambda y: (y / "drawn.npz").unlink(), "drawn.npz is damaged"),
    ],
)  # fmt: skip
def test_damage_is_an_error_in_one_line(measured, tmp_path, damage, message):
    y = tmp_path / "y"
    shutil.copytree(measured, y)
    damage(y)
    with pytest.raises(CryobenchError, match=message) as error:
        done(ReconstructTask(str(y), "pinv", str(tmp_path / "x.mrcs"))).finish()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x.mrcs").exists()


def edit(y: Path, **changes) -> None:
    path = y / "measurements.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_damaged_chunk_is_measured_again_after_it_is_deleted(particles, measured, tmp_path):
    y = tmp_path / "y"
    shutil.copytree(measured, y)
    (y / CHUNKS / "000001.npz").unlink()
    assert done(measure_task(particles, y)).todo() == []
    assert (y / CHUNKS / "000001.npz").read_bytes() == (measured / CHUNKS / "000001.npz").read_bytes()


def test_the_default_chunk_has_about_32_mib_and_does_not_cut_batches():
    assert default_chunk((64, 64)) == 2048
    assert default_chunk((200, 200)) == 192
    assert default_chunk((1024, 1024)) == 8
    assert default_chunk((7420, 7676)) == 1


# ------------------------------------------------------------------------------------------------ command line


def test_the_commands_measure_into_a_folder_and_reconstruct_it(cli, particles, tmp_path):
    arguments = (
        "measure",
        "-o",
        "ctf",
        "-n",
        "gaussian:rel=0.1",
        "--data",
        str(particles),
        "--chunk",
        "64",
        "--out",
        "y",
    )
    code, _, err = cli(*arguments)
    assert (code, err) == (0, "150 images in y: y is 1 x 16 x 16 for each, C = 1\n")
    assert cli(*arguments)[0] == 0, "finished chunks are kept"
    code, _, err = cli("reconstruct", "y", "--solver", "wiener", "--out", "x.mrcs")
    assert (code, err) == (0, "150 images in x.mrcs and x.star\n")
    code, _, err = cli("reconstruct", "y", "--solver", "wiener", "--out", "x.mrcs")
    assert (code, err.count("\n")) == (2, 1)
    assert "x.mrcs exists already" in err
    whole = Path("x.mrcs").read_bytes()
    for part in ("2/2", "1/2"):
        assert not Path("z.mrcs").exists()
        code, _, err = cli("reconstruct", "y", "--solver", "wiener", "--out", "z.mrcs", "--shard", part)
        assert code == 0
    assert Path("z.mrcs").read_bytes() == whole
    assert cli("measure", "-o", "identity", "--data", str(particles), "--out", "y")[0] == 2
    assert cli("measure", "-o", "identity", "--data", str(particles), "--out", "y", "--force")[0] == 0
    assert open_container(Path("y")).manifest.operator == "identity"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--out", "y.zarr"), "without a suffix"),
        (("--out", "taken"), "folder"),
        (("--out", "y.npz", "--executor", "processes:2"), "a single file is written by one process"),
        (("--out", "y", "--executor", "threads"), "there are dask, local, processes, slurm"),
        (("--out", "y", "--shard", "3/2"), "--shard must be K/N"),
        (("--out", "y", "--time-limit", "soon"), "--time-limit must be"),
        (("--out", "other"), "has no measurements.json"),
    ],
)
def test_invalid_options_of_measure_are_refused(cli, particles, arguments, expected):
    Path("taken").write_text("")
    Path("other").mkdir()
    Path("other/notes.txt").write_text("")
    code, out, err = cli("measure", "-o", "identity", "--data", str(particles), *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err
    assert not Path("y").exists()


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (lambda y: edit(y, version=4), (), "is of version 4, and this version of cryobench reads 3; measure again"),
        (lambda y: (y / CHUNKS / "000001.npz").unlink(), (), "1 of 3 chunks are missing, the first of images 64"),
        (lambda y: flip(y / CHUNKS / "000001.npz", 500), (), "000001.npz is damaged"),
        (lambda y: None, ("--executor", "dask:2"), "--executor dask needs dask: pip install 'cryobench[dask]'"),
        (lambda y: None, ("--solver", "tiled:pinv,tile=16,overlap=32"), "tile must be larger than overlap=32"),
    ],
)  # fmt: skip
def test_bad_input_of_reconstruct_is_one_line(cli, measured, tmp_path, monkeypatch, damage, options, message):
    monkeypatch.setitem(sys.modules, "distributed", None)
    shutil.copytree(measured, tmp_path / "y")
    damage(tmp_path / "y")
    code, out, err = cli("reconstruct", "y", "--solver", "pinv", "--out", "x.mrcs", "--quiet", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "x.mrcs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes:2", "dask:2"])
def test_workers_give_the_same_bits_as_one_process(cli, particles, tmp_path, executor):
    for where, name in (("local", "one"), (executor, "two")):
        code, _, err = cli("measure", "-o", "sumpool:4", "-n", "gaussian:rel=0.1", "--data", str(particles), "--chunk",
                           "64", "--executor", where, "--threads", "1", "--out", f"y-{name}")  # fmt: skip
        assert code == 0, err
        code, _, err = cli("reconstruct", f"y-{name}", "--solver", "dct:steps=20", "--executor", where,
                           "--threads", "1", "--out", f"{name}.mrcs")  # fmt: skip
        assert code == 0, err
    for chunk in range(3):
        name = f"{CHUNKS}/{chunk:06d}.npz"
        assert Path("y-one", name).read_bytes() == Path("y-two", name).read_bytes()
    assert Path("one.mrcs").read_bytes() == Path("two.mrcs").read_bytes()


def test_what_killed_processes_left_is_removed_at_the_end(cli, particles):
    measure_command = ("measure", "-o", "identity", "--data", str(particles), "--chunk", "64", "--out", "y", "--quiet")
    reconstruct_command = ("reconstruct", "y", "--solver", "pinv", "--out", "x.mrcs", "--quiet")
    assert cli(*measure_command, "--shard", "1/3")[0] == 0
    left = [Path("y", CHUNKS, ".000001.npz-abcd_123"), Path("y/.images.parquet-abcdefgh"), Path(".x.star-abcdefgh")]
    others = [Path("y/.hidden-abcdefgh"), Path(".x.start-abcdefgh")]
    for path in (*left, *others):
        path.write_text("")
    assert cli(*measure_command, "--shard", "2/3")[0] == 0
    assert left[0].exists(), "another process may be writing it"
    assert cli(*measure_command)[0] == 0
    assert cli(*reconstruct_command)[0] == 0
    assert [path.exists() for path in (*left, *others)] == [False, False, False, True, True]


def test_the_same_command_finishes_a_stack_that_is_half_in_its_place(cli, measured, tmp_path):
    command = ("reconstruct", str(measured), "--solver", "pinv", "--out", "x.mrcs", "--quiet")
    task = ReconstructTask(str(measured), "pinv", str(tmp_path / "x.mrcs"))
    for at in range(1, 200):  # until a kill comes between the stack and its star file
        work = done(task)
        assert killed(work.finish, tmp_path, at), "no kill came between the two"
        if (tmp_path / "x.mrcs").exists() and not (tmp_path / "x.star").exists():
            break
        for path in (tmp_path / "x.mrcs", tmp_path / "x.star"):
            path.unlink(missing_ok=True)
    whole = Path("x.mrcs").read_bytes()
    assert cli(*command) == (0, "", "")
    assert Path("x.mrcs").read_bytes() == whole
    assert Path("x.star").exists()
    assert cli(*command)[0] == 2, "it exists already"


@pytest.mark.parametrize(("shape", "batch"), [((64, 64), 64), ((128, 128), 16), ((512, 512), 16), ((16, 16), 1024)])
def test_the_default_batch_has_more_of_small_images(shape, batch):
    assert default_batch(shape) == batch
