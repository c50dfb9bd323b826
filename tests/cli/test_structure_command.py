"""`cryobench structure`, and results of all images together in records, tables and exports."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cryobench as cb
from cryobench.errors import ParameterError
from cryobench.io.writing import star_text, write_mrcs
from cryobench.leaderboard.table import leaderboard
from cryobench.registry import installed
from cryobench.results.export import images_table
from cryobench.results.store import CURVES, Results, read_record

DATA = "simulate:3mht,size=24,snr=1,count=40"
OPERATOR = "sumpool:2,count=2"


@pytest.fixture
def compared(cli) -> list[dict[str, str]]:
    """The table of two solvers with 20 and 40 particles and both controls, in the folder `report`."""
    code, _, err = cli("structure", "-s", "pinv", "-s", "direct:4", "-o", OPERATOR, "-d", DATA, "-p", "20", "-p", "40",
                       "--control", "noise", "--control", "2nwl", "--report", "report")  # fmt: skip
    assert code == 0, err
    return list(csv.DictReader(Path("report/structure.csv").read_text().splitlines()))


def test_the_table_has_ranks_controls_and_all_pixels(cli, compared):
    assert [(row["solver"], row["particles"]) for row in compared if row["reference"] == "True"] == [
        ("all pixels", "20"), ("all pixels", "40"),
    ]  # fmt: skip
    rows = {(row["solver"], row["particles"]): row for row in compared}
    for count in ("20", "40"):
        own = [rows["pinv (floor)", count], rows["direct:4", count]]
        assert sorted(row["psnr_rank"] for row in own) == ["1", "2"]
        best = min(own, key=lambda row: float(row["map_truth"]))
        assert best["rank"] == "1"
        for row in own:
            assert bool(row["noise_share"]) == bool(row["other_truth"]) == (count == "40")
            if count == "40":  # half maps of `direct` are its own: those of noise have nothing in common
                assert float(row["noise_halves"]) > 2 * float(row["map_halves"])
    full = rows["pinv (floor)", "40"]
    assert float(full["noise_share"]) < 0.5
    assert float(rows["pinv (floor)", "40"]["map_fsc"]) > float(rows["pinv (floor)", "20"]["map_fsc"])
    assert float(rows["all pixels", "40"]["map_fsc"]) > float(full["map_fsc"])


def test_numbers_are_those_of_the_cells_of_run(cli, compared):
    records = [read_record(folder) for folder in Path("runs").iterdir() if folder.is_dir()]
    assert len(records) == 10  # 2 solvers and all pixels at two numbers of particles, and 2 solvers in two controls
    own = {(r.solver, len(r.images), r.data): r for r in records}["direct:4", 40, "simulated 3mht snr 1"]
    (row,) = [row for row in compared if row["solver"] == "direct:4" and row["particles"] == "40"]
    for name in ("map_truth", "map_halves", "map_fsc", "map_false", "map_missing"):
        assert float(row[name]) == own.together[name]
    assert float(row["psnr"]) == pytest.approx(np.mean(own.values["psnr_clean"]))
    before = sorted(path.name for path in Path("runs").iterdir())
    code, out, err = cli("structure", "-s", "pinv", "-s", "direct:4", "-o", OPERATOR, "-d", DATA, "--quiet")
    assert code == 0, err
    assert "sumpool:2,count=2 · noise none · 40 particles" in out
    assert "noise share" in out
    assert sorted(path.name for path in Path("runs").iterdir()) == before  # all of them found again


def test_the_report_has_figures_and_a_table_in_markdown(compared):
    assert sorted(path.name for path in Path("report").iterdir()) == [
        "fsc_1.png", "fsc_2.png", "particles_1.png", "structure.csv", "structure.md",
    ]  # fmt: skip
    for path in Path("report").glob("*.png"):
        assert Image.open(path).size[0] > 800
    text = Path("report/structure.md").read_text()
    assert text.count("## `sumpool:2,count=2`") == 2
    assert "| direct:4 |" in text
    assert "`noise_share`: repeatable power" in text


def test_maps_are_saved_with_half_maps_and_mask(cli):
    code, _, err = cli("run", "-s", "direct:2", "-o", OPERATOR, "-d", DATA, "--images", "0:20", "--metric", "map",
                       "--by", "map_fsc", "--save", "maps", "--no-floor")  # fmt: skip
    assert code == 0, err
    (folder,) = Path("runs").iterdir()
    names = ["half1.mrc", "half2.mrc", "map.mrc", "mask.mrc", "structure.mrc"]
    assert sorted(path.name for path in (folder / "maps").iterdir()) == names
    with mrcfile.open(folder / "maps" / "map.mrc") as file:
        assert file.is_volume()
        assert file.data.shape == (24, 24, 24)
        assert file.voxel_size.x == pytest.approx(read_record(folder).problem["pixel_size_angstrom"][0], rel=1e-5)
    curves = np.load(folder / CURVES)
    assert curves["map_truth"].shape == curves["map_halves"].shape == (1, 12)


@pytest.fixture(scope="module")
def records():
    return cb.run(["pinv", "direct:2"], OPERATOR, data=DATA, images="0:12", metrics=["psnr", "map"])


def test_numbers_of_cells_survive_the_store(records, tmp_path):
    store = Results(tmp_path / "runs")
    for record in records:
        assert read_record(store.write(record)) == record


def test_numbers_of_cells_rank_without_a_test(records):
    frame = leaderboard(list(records), by="map_fsc")
    assert frame["rank"].tolist() == [1, 2]
    assert frame["map_fsc"].is_monotonic_decreasing
    assert frame["map_fsc_lo"].isna().all()
    assert frame["p_holm"].isna().all()
    assert set(frame["untested"]) == {"map_fsc is one number per cell: not tested"}
    assert leaderboard(list(records), by="psnr")["p_holm"].notna().any()


def test_exports_repeat_them_for_each_image(records):
    table = images_table(list(records))
    assert len(table) == 24
    for record in records:
        own = table[table["hash"] == record.hash]
        assert own["map_fsc"].tolist() == [record.together["map_fsc"]] * 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "demo"], "structure needs particles of one structure, and the images show 4"),
        (["-d", "tissue:0,depth=8,size=16"], "metric map supports images (2-D)"),
        (["-d", "images.npy"], "structure needs particles with known poses"),
        (["-d", DATA, "-p", "41"], "selects image 40, but simulated 3mht snr 1 has 40 images"),
        (["-d", DATA, "--control", "nothing"], "nothing"),
        (["-d", DATA, "--control", "2nwl", "--control", "3o21"], "takes one other structure, got 2nwl and 3o21"),
        (["-d", DATA, "--report", "."], "has other files, such as images.npy; give a new folder"),
        (["-d", DATA, "--report", "nowhere/report"], "the folder nowhere does not exist"),
        (["-d", "simulate:3mht+2nwl,size=24,count=8,pixel_size=9"], "particles of one structure"),
        (["-d", "simulate:3mht,snr=none,size=24,count=8", "--control", "noise"], "empty=true leaves nothing"),
        (["-d", DATA, "--save", "animations"], "--save 'animations' is unknown"),
    ],
)  # fmt: skip
def test_bad_requests_say_what_to_do_before_any_work(cli, arguments, message):
    np.save("images.npy", np.random.default_rng(0).normal(size=(6, 16, 16)).astype(np.float32))
    code, _, err = cli("structure", "-s", "pinv", "-o", "fourier:0.5", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_data_without_controls_are_compared_without_them(cli):
    code, _, err = cli(
        "structure", "-s", "pinv", "-o", "sumpool:2,count=1", "-d", "simulate:3mht,snr=none,size=24,count=8"
    )
    assert code == 0, err
    assert "without the control noise" in err


def test_maps_need_a_metric_that_makes_them(cli):
    code, _, err = cli("run", "-s", "pinv", "-o", "sumpool:2", "-d", DATA, "--save", "maps")
    assert (code, err) == (2, "error: --save maps needs a metric that makes maps; give --metric map\n")


def test_poses_change_the_cell_of_a_map(tmp_path, monkeypatch):
    """The images are the same; the hash covers their poses."""
    monkeypatch.chdir(tmp_path)
    hashes = []
    for seed, metric in ((0, "map"), (1, "map"), (0, "psnr"), (1, "psnr")):
        stack = installed().make("sources", DATA).open()
        table = stack.table.sample(frac=1, random_state=seed).reset_index(drop=True)
        folder = Path(f"{seed}")
        folder.mkdir(exist_ok=True)
        poses = stack.table.copy()
        columns = [name for name in table.columns if name.startswith(("rlnAngle", "rlnOrigin"))]
        poses[columns] = table[columns]
        write_mrcs(folder / "p.mrcs", stack.read_block(range(12)), stack.pixel_size(0))
        text = star_text(folder / "p.star", poses.iloc[:12], "p.mrcs", stack.pixel_size(0), 24)
        (folder / "p.star").write_text(text)
        (record,) = cb.run(
            "pinv", "sumpool:2,count=1", data=f"{seed}/p.star", images="0:12", metrics=[metric], floor=False
        )
        assert record.status == "ok", record.reason
        hashes.append(record.hash)
    assert hashes[0] != hashes[1]
    assert hashes[2] == hashes[3]


def test_the_halves_of_a_table_are_in_the_hash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stack = installed().make("sources", DATA).open()
    write_mrcs(Path("p.mrcs"), stack.read_block(range(12)), stack.pixel_size(0))
    found = []
    for name, halves in (("a", [1, 2]), ("b", [2, 1]), ("c", [1, 1, 2])):
        table = stack.table.iloc[:12].assign(rlnRandomSubset=np.resize(halves, 12))
        Path(f"{name}.star").write_text(star_text(Path(f"{name}.star"), table, "p.mrcs", stack.pixel_size(0), 24))
        (record,) = cb.run("pinv", "identity", data=f"{name}.star", images="0:12", metrics=["map"], floor=False)
        found.append(record.hash)
    assert len(set(found)) == 3


def test_a_solver_of_all_images_makes_its_own_halves(tmp_path):
    with pytest.raises(ParameterError, match="--halves average does not apply to direct, which makes halves"):
        cb.run("direct", OPERATOR, data="simulate_movies:3mht,size=64,frames=2,count=2", halves="average")


def test_records_without_such_numbers_are_as_before(records, tmp_path):
    (record,) = cb.run("pinv", OPERATOR, data=DATA, images="0:2", metrics=["psnr"], floor=False)
    folder = Results(tmp_path / "runs").write(record)
    assert "together" not in json.loads((folder / "record.json").read_text())
    assert isinstance(images_table([record]), pd.DataFrame)


def test_controls_have_the_size_and_contrast_of_the_particles(cli):
    data = "simulate:3mht,snr=1,count=8"
    code, out, err = cli(
        "structure", "-s", "pinv", "-o", "identity", "-d", data, "--size", "16", "--invert", "--no-full"
    )
    assert code == 0, err
    assert "noise share" in out
    records = [read_record(folder) for folder in Path("runs").iterdir() if folder.is_dir()]
    assert {record.data for record in records} == {"simulated 3mht snr 1", "noise alone, as of simulated 3mht snr 1"}
    for record in records:
        assert "size=16" in record.resolved["data"]
        assert "invert=true" in record.resolved["data"]
