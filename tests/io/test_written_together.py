"""A stack and its star file are one result: both are new, or both are as before."""

from __future__ import annotations

import errno
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import starfile
from kills import killed

from cryobench.files import EARLIER, umask, whole_files

resource = pytest.importorskip("resource", reason="no file size limits on this system")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def write_both(stack: Path, star: Path, text: str) -> None:
    with whole_files(stack, star) as files:
        for file in files:
            file.write_text(text)


@pytest.mark.parametrize("existing", [(), ("a.star",), ("a.mrcs", "a.star")])
def test_kills_at_every_file_event_leave_no_new_stack_beside_an_old_table(tmp_path, existing):
    states = set()
    for at in range(1, 100):
        root = tmp_path / str(at)
        root.mkdir()
        for name in existing:
            (root / name).write_text("old")
        stack, star = root / "a.mrcs", root / "a.star"
        ended = not killed(lambda stack=stack, star=star: write_both(stack, star, "new"), root, at)
        state = tuple(path.read_text() if path.exists() else None for path in (stack, star))
        states.add(state)
        assert state not in [("new", "old"), ("old", "new")]
        for name in existing:  # the earlier file is in place or beside it
            kept = [path.read_text() for path in root.iterdir() if path.name.split(EARLIER)[0] == name]
            assert "old" in kept or state == ("new", "new")
        if ended:
            break
        shutil.rmtree(root)
    assert at > 5
    assert state == ("new", "new")
    assert sorted(path.name for path in root.iterdir()) == ["a.mrcs", "a.star"]


@pytest.mark.parametrize("failing", ["a.mrcs", "a.star"])
@pytest.mark.parametrize("source", ["old", "new"])
def test_a_failed_move_restores_all_files(tmp_path, monkeypatch, failing, source):
    stack, star = tmp_path / "a.mrcs", tmp_path / "a.star"
    write_both(stack, star, "old")
    before = contents(tmp_path)
    rename, done = Path.rename, []

    def fails_once(self, target):
        moved = self if source == "old" else Path(target)
        if moved.name == failing and not done:
            done.append(self)
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises(OSError, match="Input/output"):
        write_both(stack, star, "new")
    assert done
    assert contents(tmp_path) == before


def test_links_are_followed_and_devices_are_written_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "a.mrcs").symlink_to(tmp_path / "real" / "b.mrcs")
    (tmp_path / "a.star").symlink_to("/dev/null")
    write_both(tmp_path / "a.mrcs", tmp_path / "a.star", "new")
    assert contents(tmp_path / "real") == {"b.mrcs": b"new"}
    assert Path("/dev/null").is_char_device()
    assert stat.S_IMODE((tmp_path / "real" / "b.mrcs").stat().st_mode) == 0o666 & ~umask()


@pytest.fixture
def measured(cli, tmp_path) -> Path:
    """Measurements of 6 images of 4 x 4."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(6, 4, 4)).astype(np.float32))
    code, _, err = cli("measure", "-o", "sumpool:2", "--data", "images.npy", "--out", "y.npz")
    assert code == 0, err
    return tmp_path / "y.npz"


COMMANDS = {
    "reconstruct": ("reconstruct", "y.npz", "--solver", "pinv", "--out", "out/a.mrcs"),
    "convert": ("data", "convert", "images.npy", "out/a.mrcs"),
    "simulate": ("data", "simulate", "6zu5,count=4,size=16", "--out", "out"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("part", ["stack", "star"])
def test_a_full_disk_leaves_the_earlier_stack_and_star_file(cli, measured, tmp_path, monkeypatch, command, part):
    (tmp_path / "out").mkdir()
    code, _, err = cli(*COMMANDS[command])
    assert code == 0, err
    before = contents(tmp_path / "out")
    if part == "star":
        monkeypatch.setattr(Path, "write_bytes", on_a_full_disk)
    with largest_file(min(map(len, before.values())) // 2) if part == "stack" else nullcontext():
        code, out, err = cli(*COMMANDS[command], "--force")
        absent = cli(*(text.replace("out", "other") for text in COMMANDS[command]))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: cannot write out/")
    assert ("File too large" if part == "stack" else ".star: No space left") in err
    assert contents(tmp_path / "out") == before
    assert absent[0] == 2
    assert not list(tmp_path.glob("other/[!.]*"))


def on_a_full_disk(path: Path, data: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left")


def test_all_files_of_a_simulation_are_replaced_together(cli, tmp_path):
    simulate = ("data", "simulate", "6zu5,count=4,size=16,seed={}", "--out", "out")
    assert cli(*(text.format(1) for text in simulate))[0] == 0
    before = contents(tmp_path / "out")
    assert sorted(before) == ["clean.mrcs", "clean.star", "particles.mrcs", "particles.star"]
    assert cli(*(text.format(2) for text in simulate), "--force")[0] == 0
    after = contents(tmp_path / "out")
    assert all(before[name] != after[name] for name in before)
    names = starfile.read(tmp_path / "out" / "clean.star")["particles"]["rlnImageName"]
    assert names.tolist() == [f"{i:06d}@clean.mrcs" for i in range(1, 5)]
    (tmp_path / "out" / "particles.mrcs").unlink()
    code, _, err = cli(*(text.format(2) for text in simulate))
    assert code == 2
    assert "particles.star exists" in err
