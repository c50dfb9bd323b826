"""A process that is killed at any write, rename or removal loses no finished cell, and what it leaves is removed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from kills import killed
from test_store import record

from cryobench.results.store import Results


def new_cell(root: Path) -> None:
    Results(root).write(record(reason="new"), curves={"frc": np.ones((2, 3))})


def cell_with_files(root: Path) -> None:
    Results(root).write(record(reason="new"), files={"panel.png": lambda path: path.write_bytes(b"image") and None})


@pytest.mark.parametrize("write", [new_cell, cell_with_files])
@pytest.mark.parametrize("earlier", [None, "today", "another day"])
def test_kills_at_every_file_event_lose_no_finished_cell(tmp_path, write, earlier):
    other = record(hash="f" * 64, solver="tv")
    points = 0
    for at in range(1, 200):
        root = tmp_path / str(at)
        results = Results(root)
        results.write(other)
        if earlier is not None:
            old = results.write(record(reason="old"))
            if earlier == "another day":
                old.rename(root / ("2001-01-01" + old.name[10:]))
        if not killed(lambda root=root: write(root), root, at):
            break
        points += 1
        after = {kept.hash: kept for kept in Results(root).read_all(pytest.fail)}
        assert after[other.hash] == other
        if earlier is not None:
            assert after[record().hash].reason in ("old", "new"), at
            assert Results(root).find(record().hash) is not None
        Results(root).check_writable()
        names = sorted(path.name for path in root.iterdir())
        assert len(names) == len(after), (at, names)
        assert not [name for name in names if name.startswith(".") or "~" in name]
        assert {kept.hash: kept for kept in Results(root).read_all(pytest.fail)} == after
        shutil.rmtree(root)
    assert points >= 12


def test_the_folder_of_a_running_writer_is_not_removed(tmp_path):
    def removed_meanwhile(path: Path) -> None:
        Results(tmp_path).check_writable()
        path.write_bytes(b"image")

    folder = Results(tmp_path).write(record(), files={"panel.png": removed_meanwhile})
    assert (folder / "panel.png").read_bytes() == b"image"


def test_folders_with_similar_names_are_not_leftovers(tmp_path):
    (tmp_path / "notes~").mkdir()
    (tmp_path / ".hidden").mkdir()
    Results(tmp_path).check_writable()
    assert {path.name for path in tmp_path.iterdir()} == {"notes~", ".hidden"}
