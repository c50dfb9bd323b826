"""`cryobench analyse` on saved results: maps, particles that others read, numbers, and what is refused."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import analysis_toys as toys
import mrcfile
import numpy as np
import pytest
import starfile
import torch
from cs_files import with_fields, write_cs
from star_files import write_star

from cryobench.io.formats import open_images
from cryobench.io.writing import write_mrcs
from cryobench.physics.ctf import CtfParameters
from cryobench.physics.poses import Poses
from cryobench.sources.stacks import File

COUNT = 60


@pytest.fixture
def registry(install_plugin):
    return toys.install(install_plugin)


@pytest.fixture
def in_star(registry, cli, tmp_path):
    """run/ of 60 of the 70 particles of data/particles.star, which refers to a stack of 70."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_mrcs(folder / "stack.mrcs", toys.stack(folder, 70), toys.PIXEL)
    write_star(folder / "particles.star", toys.particle_table(70), "stack.mrcs", toys.PIXEL, toys.SIDE)
    stack = File(str(folder / "particles.star")).open()
    images = list(range(7, 67))
    toys.save(tmp_path / "run", registry, "file:data/particles.star", stack.rows(images), images=images)
    return stack, images


def labels(out: Path) -> np.ndarray:
    return np.array([int(row["cluster"]) for row in csv.DictReader((out / "latents.csv").read_text().splitlines())])


def test_the_folder_has_maps_tables_a_figure_and_a_page(cli, in_star):
    code, out, err = cli("analyse", "run", "--k", "3", "--out", "a")
    assert code == 0, err
    made = Path("a")
    assert sorted(path.name for path in made.iterdir()) == [
        "analysis.json", "clusters", "index.html", "latents.csv", "latents.png", "pc1_10", "pc2_10"]  # fmt: skip
    assert sorted(path.name for path in (made / "pc2_10").iterdir()) == [f"vol_{n:03d}.mrc" for n in range(10)]
    assert sorted(path.name for path in (made / "clusters").iterdir()) == [
        f"cluster_{n}.{end}" for n in (1, 2, 3) for end in ("mrc", "pkl", "star")]  # fmt: skip
    assert "1: 30, 2: 20, 3: 10" in out
    numbers = json.loads((made / "analysis.json").read_text())
    z, found = toys.latents(COUNT), labels(made)
    for own in numbers["clusters"]:
        place = own["image"] - 7
        assert found[place] == own["cluster"]
        np.testing.assert_array_equal(own["latent"], z[place])
        with mrcfile.open(made / "clusters" / f"cluster_{own['cluster']}.mrc") as file:
            np.testing.assert_array_equal(file.data, toys.model().volumes(torch.tensor(z[place])[None])[0].numpy())
            assert file.voxel_size.x == pytest.approx(toys.PIXEL)
            assert file.is_volume()
    for point, coordinate in enumerate(numbers["components"][0]["coordinates"]):
        latent = z.mean(axis=0) + coordinate * np.array(numbers["components"][0]["axis"])
        with mrcfile.open(made / "pc1_10" / f"vol_{point:03d}.mrc") as file:
            np.testing.assert_allclose(file.data, toys.model().volumes(torch.tensor(latent)[None])[0], atol=1e-6)


def test_star_files_give_the_same_particles_to_us_and_to_starfile(cli, in_star):
    stack, images = in_star
    assert cli("analyse", "run", "--k", "3", "--out", "a")[0] == 0
    assert cli("analyse", "run", "--k", "3", "--out", "b", "--drop", "2")[0] == 0
    found = labels(Path("a"))
    tables = {f"a/clusters/cluster_{n}": np.flatnonzero(found == n) for n in (1, 2, 3)}
    tables["b/kept"] = np.flatnonzero(found != 2)
    for name, places in tables.items():
        numbers = [images[place] for place in places]
        with Path(f"{name}.pkl").open("rb") as file:
            index = pickle.load(file)
        assert index.dtype == np.int64
        assert index.tolist() == numbers
        ours = File(f"{name}.star").open()
        np.testing.assert_array_equal(ours.read_block(range(len(ours))), stack.read_block(numbers))
        assert ours.pixel_size(0) == toys.PIXEL
        expected, given = stack.rows(numbers), ours.table
        for kind in (Poses, CtfParameters):
            a, b = (kind.from_table(table, "a table") for table in (expected, given))
            for field in a.__dataclass_fields__:
                torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=0, atol=0)
        assert given["rlnMicrographName"].tolist() == expected["rlnMicrographName"].tolist()
        other = starfile.read(f"{name}.star")
        assert other["optics"]["rlnImageSize"].tolist() == [toys.SIDE]
        assert other["optics"]["rlnVoltage"].tolist() == [300.0]
        for column in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnDefocusU"):
            np.testing.assert_allclose(other["particles"][column], expected[column], rtol=1e-12)
        assert other["particles"]["rlnImageName"].tolist() == [
            f"{number + 1:06d}@{Path('data/stack.mrcs').absolute()}" for number in numbers]  # fmt: skip


def test_found_poses_and_resized_images(cli, registry, tmp_path):
    """The solver saw images of 8 pixels; the tables refer to the stored ones of 16, with the poses that it found."""
    write_mrcs(tmp_path / "stack.mrcs", toys.stack(tmp_path, COUNT), toys.PIXEL)
    write_star(tmp_path / "p.star", toys.particle_table(COUNT), "stack.mrcs", toys.PIXEL, toys.SIDE)
    found = Poses(Poses.uniform(COUNT, 2).angles, torch.randn((COUNT, 2), dtype=torch.float64))
    stack = File("p.star", size=8).open()
    toys.save(tmp_path / "run", registry, "file:p.star,size=8", stack.rows(range(COUNT)), found=found,
              pixel_size=2 * toys.PIXEL)  # fmt: skip
    assert cli("analyse", "run", "--k", "1", "--components", "0", "--out", "a")[0] == 0
    ours = File("a/clusters/cluster_1.star").open()
    assert (ours.shape, ours.pixel_size(0)) == ((16, 16), toys.PIXEL)
    poses = Poses.from_table(ours.table)
    torch.testing.assert_close(poses.matrices, found.matrices, rtol=0, atol=1e-9)
    torch.testing.assert_close(poses.shift, found.shift)
    with mrcfile.open("a/clusters/cluster_1.mrc") as file:
        assert file.voxel_size.x == pytest.approx(2 * toys.PIXEL)


def cs_rows(count: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    rows = np.zeros(count, [("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)),
                            ("blob/psize_A", "<f4"), ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"),
                            ("ctf/amp_contrast", "<f4"), ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"),
                            ("ctf/df_angle_rad", "<f4"), ("ctf/phase_shift_rad", "<f4")])  # fmt: skip
    rows["uid"] = rng.integers(1, 2**62, count, dtype=np.uint64)
    rows["blob/path"], rows["blob/idx"] = b">J3/stack.mrcs", np.arange(count)[::-1]
    rows["blob/shape"], rows["blob/psize_A"] = toys.SIDE, toys.PIXEL
    rows["ctf/accel_kv"], rows["ctf/cs_mm"], rows["ctf/amp_contrast"] = 300, 2.7, 0.1
    rows["ctf/df1_A"], rows["ctf/df2_A"] = rng.uniform(1e4, 2e4, (2, count))
    return with_fields(rows, {"alignments3D/pose": rng.normal(size=(count, 3)).astype(np.float32),
                              "alignments3D/shift": rng.normal(size=(count, 2)).astype(np.float32)})  # fmt: skip


@pytest.mark.parametrize("seeking", [False, True])
def test_a_cs_file_gives_cs_files(cli, registry, tmp_path, seeking):
    (tmp_path / "J3").mkdir()
    write_mrcs(tmp_path / "J3/stack.mrcs", toys.stack(tmp_path, COUNT), toys.PIXEL)
    rows = cs_rows(COUNT)
    write_cs(tmp_path / "p.cs", rows)
    stack = File("p.cs").open()
    found = Poses(Poses.uniform(COUNT, 2).angles, torch.randn((COUNT, 2), dtype=torch.float64)) if seeking else None
    toys.save(tmp_path / "run", registry, "file:p.cs", stack.rows(range(COUNT)), found=found)
    assert cli("analyse", "run", "--k", "3", "--components", "0", "--out", "a", "--keep", "1,3")[0] == 0
    places = np.flatnonzero(np.isin(labels(Path("a")), [1, 3]))
    written = np.load("a/kept.cs")
    assert written.dtype == rows.dtype
    same = [name for name in rows.dtype.names if not (seeking and name.startswith("alignments3D"))]
    for name in same:
        np.testing.assert_array_equal(written[name], rows[name][places])
    Path("kept.cs").write_bytes(Path("a/kept.cs").read_bytes())
    for name in ("kept.cs", "a/kept.star"):
        ours = File(name).open()
        np.testing.assert_array_equal(ours.read_block(range(len(ours))), stack.read_block(places.tolist()))
        expected = (
            Poses.from_table(stack.rows(places.tolist())) if found is None else found.select(torch.tensor(places))
        )
        given = Poses.from_table(ours.table)
        torch.testing.assert_close(given.matrices, expected.matrices, rtol=0, atol=2e-6)
        torch.testing.assert_close(given.shift, expected.shift, rtol=0, atol=1e-5)


def test_images_that_are_in_no_mrc_file_are_written(cli, registry, tmp_path):
    np.save("images.npy", toys.stack(tmp_path, COUNT + 3))
    images = list(range(3, COUNT + 3))
    toys.save(tmp_path / "run", registry, "file:images.npy", None, images=images, pixel_size=None)
    assert cli("analyse", "run", "--k", "2", "--out", "a")[0] == 0
    found = labels(Path("a"))
    for number in (1, 2):
        places = np.flatnonzero(found == number)
        ours = open_images(Path(f"a/clusters/cluster_{number}.star"))
        assert ours.page.tolist() == places.tolist()
        read = File(f"a/clusters/cluster_{number}.star").open().read_block(range(len(places)))
        np.testing.assert_array_equal(read, np.load("images.npy")[places + 3])
        with Path(f"a/clusters/cluster_{number}.pkl").open("rb") as file:
            assert pickle.load(file).tolist() == places.tolist()


def test_a_result_of_one_map(cli, registry, tmp_path):
    np.save("images.npy", toys.stack(tmp_path, COUNT))
    toys.save(tmp_path / "run", registry, "file:images.npy", None, dimensions=0)
    code, _, err = cli("analyse", "run")
    assert code == 0, err
    assert sorted(path.name for path in Path("run/analysis").iterdir()) == [
        "analysis.json", "index.html", "latents.csv", "map.mrc", "particles.mrcs", "particles.pkl", "particles.star",
    ]  # fmt: skip
    for given in (["--k", "2"], ["--keep", "1"], ["--umap"]):
        code, _, err = cli("analyse", "run", "--out", "b", *given)
        assert code == 2
        assert f"{given[0]}: the result has one map for all particles (0 dimensions), and no clusters" in err
    assert not Path("b").exists()


def test_latents_of_one_dimension_have_a_histogram(cli, registry, tmp_path):
    np.save("images.npy", toys.stack(tmp_path, COUNT))
    toys.save(tmp_path / "run", registry, "file:images.npy", None, dimensions=1)
    assert cli("analyse", "run", "--k", "2", "--method", "gmm", "--points", "3", "--out", "a")[0] == 0
    assert {"pc1_3", "latents.png"} < {path.name for path in Path("a").iterdir()}
    assert not Path("a/pc2_3").exists()


def test_it_runs_again_and_replaces_only_what_it_made(cli, in_star):
    assert cli("analyse", "run", "--k", "3")[0] == 0
    code, _, err = cli("analyse", "run/heterogeneity", "--k", "2")
    assert code == 2
    assert "run/analysis exists already; give another --out, or --force to replace it" in err
    assert cli("analyse", "run/heterogeneity", "--k", "2", "--force")[0] == 0
    assert labels(Path("run/analysis")).max() == 2
    assert not Path("run/analysis/clusters/cluster_3.mrc").exists()
    Path("mine/clusters").mkdir(parents=True)
    code, _, err = cli("analyse", "run", "--out", "mine", "--force")
    assert code == 2
    assert "mine has other files, such as clusters; give a new folder" in err


def test_maps_are_made_without_the_images(cli, in_star):
    Path("data").rename("moved")
    code, _, err = cli("analyse", "run", "--k", "3", "--out", "a")
    assert code == 2
    assert "cannot be opened" in err
    assert "give --no-particles to write maps without tables" in err
    assert cli("analyse", "run", "--k", "3", "--out", "a", "--no-particles")[0] == 0
    assert sorted(path.suffix for path in Path("a/clusters").iterdir()) == [".mrc"] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--k", "61"], "--k 61: there are 60 particles; give at most 60 clusters"),
        (["--k", "0"], "--k must be at least 1, got 0"),
        (["--points", "1"], "--points must be at least 2, got 1"),
        (["--components", "-1"], "--components must be at least 0, got -1"),
        (["--method", "dbscan"], "--method: expected kmeans or gmm, got 'dbscan'"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--k", "3", "--drop", "4"], "--drop: there is no cluster 4; clusters are numbered from 1 to 3"),
        (["--k", "3", "--keep", "x"], "--keep: expected numbers of clusters such as 2,5, got 'x'"),
        (["--k", "2", "--drop", "1,2"], "--drop 1,2 leaves no particles; drop fewer of the 2 clusters"),
        (["--keep", "1", "--drop", "2"], "--keep and --drop: give one of them"),
        (["--keep", "1", "--no-particles"], "--keep and --drop write tables of particles"),
        (["--out", "no/such"], "the folder no does not exist; create it first"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(cli, in_star, given, message):
    code, out, err = cli("analyse", "run", "--out", "a", *given)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert not Path("a").exists()


def test_a_folder_without_a_result(cli, tmp_path):
    Path("run").mkdir()
    code, _, err = cli("analyse", "run")
    assert code == 2
    assert "run has no heterogeneity/ with latents and maps; make one by" in err


def test_a_failure_leaves_nothing(cli, in_star, monkeypatch):
    import blob_solvers

    calls = []

    def failing(self, latents):
        calls.append(1)
        if len(calls) > 5:
            raise RuntimeError("no more maps")
        return torch.zeros(1, toys.SIDE, toys.SIDE, toys.SIDE)

    monkeypatch.setattr(blob_solvers.BlobModel, "volumes", failing)
    code, _, err = cli("analyse", "run", "--out", "a")
    assert code == 2
    assert "the map of blobs:2 cannot be made: RuntimeError: no more maps" in err
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["data", "run"]
