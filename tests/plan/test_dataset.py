"""Data sets that are too large for memory: what is read of them, and how they are identified."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
import torch

from cryobench.errors import DataError, SelectionError
from cryobench.files import CACHE_VARIABLE
from cryobench.plan import dataset, grid
from cryobench.plan.dataset import load, source_spec
from cryobench.plan.presets import Setting, Validation, add_setting
from cryobench.registry import installed
from cryobench.sources.simulate import SimulatedStack
from cryobench.sources.stacks import FileStack

SIMULATED = "simulate:3mht,snr=1,count=9,size=32"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "digests"


@pytest.fixture
def large(monkeypatch, cache):
    """No data set fits in memory, and images are read three at a time where no batch is given."""
    monkeypatch.setattr(dataset, "KEPT_BYTES", 0)
    monkeypatch.setattr(dataset, "_BLOCK_BYTES", 3 * 4 * 32**2)


@pytest.fixture
def reads(monkeypatch):
    """The numbers of the images of files in the order in which they are read."""
    found: list[int] = []
    read = FileStack.read
    monkeypatch.setattr(FileStack, "read", lambda self, index: found.append(index) or read(self, index))
    return found


def opened(data, images=None, scaling="minmax"):
    return load(source_spec(str(data), {}, installed()), images, installed(), scaling)


@pytest.mark.parametrize("scaling", ["minmax", "relion", "none"])
@pytest.mark.parametrize("source", [SIMULATED, "blobs"])
def test_images_in_memory_and_images_that_are_read_again_are_the_same(blobs, cache, monkeypatch, source, scaling):
    data = blobs if source == "blobs" else source
    kept = opened(data, "1:6", scaling)
    monkeypatch.setattr(dataset, "KEPT_BYTES", 0)
    monkeypatch.setattr(dataset, "_BLOCK_BYTES", 2 * 4 * 32**2)
    large = opened(data, "1:6", scaling)
    assert (kept.kept, large.kept) == (True, False)
    assert kept.has_clean == large.has_clean == (source == SIMULATED)
    for part in (slice(1, 4), slice(None)):
        ours, expected = large.read(part), kept.read(part)
        assert torch.equal(ours.pixels, expected.pixels)
        assert torch.equal(ours.scale.factor, expected.scale.factor)
        assert ours.clean is None or torch.equal(ours.clean, expected.clean)
    assert large.digest == kept.digest
    assert large.image_digests == kept.image_digests
    pixels = kept.read(slice(None)).pixels.flatten(1)
    for found, limit in zip(large.extremes, (pixels.amin(1), pixels.amax(1)), strict=True):
        assert torch.equal(found, limit)


def test_the_digest_is_that_of_one_stream_over_limits_pixels_and_clean_images(large):
    """As it has been since before images were read again, so that finished results keep their names."""
    data = opened(SIMULATED, "0:4", "none")
    stack = installed().make("sources", SIMULATED).open()
    images, clean = (np.stack([read(i) for i in range(4)]) for read in (stack.read, stack.clean))
    limits = [(float(image.min()), float(image.max())) for image in images]
    head = (("0", "1", "2", "3"), limits, (stack.pixel_size(0),) * 4, (4, 1, 32, 32), "none", [(0.0, 1.0)] * 4)
    columns = [name for name in dataset.COLUMNS.values() if name in stack.table.columns]
    ctf = repr((columns, stack.table[columns].iloc[:4].to_numpy().tolist())).encode()
    expected = hashlib.sha256(repr(head).encode() + images.tobytes() + ctf + clean.tobytes()).hexdigest()
    assert data.digest == expected


def test_opening_reads_no_image_and_a_part_reads_its_own(large, reads, blobs):
    data = opened(blobs, "0:6")
    assert reads == []
    data.read(slice(2, 4))
    assert reads == [2, 3]
    data.digest  # noqa: B018 - reads those that are missing, and then all
    assert reads == [2, 3, 0, 1, 4, 5, 0, 1, 2, 3, 4, 5]


def test_the_digest_is_remembered_while_the_file_is_the_same(large, reads, blobs, cache):
    first = opened(blobs, "0:6")
    digest = first.digest
    reads.clear()
    again = opened(blobs, "0:6")
    assert again.recall()
    assert (again.digest, again.image_digests, reads) == (digest, first.image_digests, [])
    assert not opened(blobs, "0:5").recall()
    assert not opened(blobs, "0:6", "none").recall()
    state = blobs.stat()
    os.utime(blobs, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert not opened(blobs, "0:6").recall()
    assert opened(blobs, "0:6").digest == digest
    assert len(list(cache.iterdir())) == 1  # that of the touched file has replaced the first


def test_simulated_images_are_known_by_their_recipe(large):
    digest = opened(SIMULATED, "0:4").digest
    assert opened(SIMULATED, "0:4").recall()
    assert not opened(SIMULATED.replace("snr=1", "snr=2"), "0:4").recall()
    assert digest == opened(SIMULATED, "0:4").digest


def test_images_and_clean_images_are_simulated_together(monkeypatch):
    simulated = []
    whole = SimulatedStack.particles
    monkeypatch.setattr(SimulatedStack, "particles", lambda stack, rows: simulated.extend(rows) or whole(stack, rows))
    data = opened("simulate:3o21,size=24,count=40", "0:40")
    assert data.has_clean
    assert sorted(simulated) == list(range(40))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", "cut", "other"])
def test_a_damaged_entry_is_as_good_as_none(large, blobs, cache, damage):
    digest = opened(blobs, "0:6").digest
    (entry,) = cache.iterdir()
    if damage == "other":
        np.savez(entry, state=np.array("x"), digest=np.array("y" * 64), images=np.zeros((6, 32), np.uint8))
    else:
        entry.write_bytes(entry.read_bytes()[:200] if damage == "cut" else damage)
    data = opened(blobs, "0:6")
    assert not data.recall()
    assert data.digest == digest
    assert opened(blobs, "0:6").recall()


def test_a_cache_that_cannot_be_written_is_no_error(large, blobs, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(blobs / "below a file"))
    assert len(opened(blobs, "0:6").digest) == 64


def edit(path, value: float) -> None:
    """Change a pixel of image 4, in place and without a trace in the state of the file."""
    state = path.stat()
    images = np.load(path, mmap_mode="r+")
    images[4, 0, 0] = value
    images.flush()
    del images
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_an_edit_that_the_state_of_the_file_does_not_show_is_found_when_the_image_is_read(large, blobs):
    before = opened(blobs, "0:6").digest
    edit(blobs, -0.25)
    data = opened(blobs, "0:6")
    assert data.digest == before  # nothing was read
    data.read(slice(4, 5))
    assert not data.recall()
    assert data.digest != before
    assert opened(blobs, "0:6").digest == data.digest  # it has replaced the wrong one


def test_images_that_change_while_they_are_used_are_an_error(large, blobs):
    data = opened(blobs, "0:6")
    data.read(slice(None))
    edit(blobs, 9.0)
    with pytest.raises(DataError, match=r"image 4 of blobs\.npy changed while it was used") as error:
        data.read(slice(3, 6))
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="image 4"):  # at once, without reading the others
        data.read(slice(0, 1))


def test_a_file_that_changes_while_it_is_used_has_no_digest(large, blobs):
    data = opened(blobs, "0:6")
    os.utime(blobs, (1, 1))
    with pytest.raises(DataError, match=r"blobs\.npy changed while it was used; run again"):
        _ = data.digest


def test_images_that_a_preset_was_tuned_on_are_refused_when_they_are_read(large, blobs, tmp_path):
    data = opened(blobs, "2,4")
    seen = Validation("file:else", "else", ("7", "9"), data.image_digests)
    add_setting(Setting("dct", {"lam": "0.5"}, (seen,)), "p", tmp_path / "presets")
    request = {"data": [str(blobs)], "images": "0:6", "presets": str(tmp_path / "presets"), "floor": False}
    (cell,) = grid.plan(grid.Request(["dct@p"], ["identity"], **request), installed()).cells
    cell.dataset.read(slice(0, 3))
    cell.check_unseen(slice(0, 2))
    with pytest.raises(SelectionError, match=r"dct@p: image 2 of blobs\.npy was used to tune the preset p"):
        cell.check_unseen(slice(0, 3))
    assert cell.dataset.digest  # now known, so that the next plan is refused before any work
    with pytest.raises(SelectionError, match="image 2"):
        grid.plan(grid.Request(["dct@p"], ["identity"], **request), installed())


@pytest.mark.parametrize("given", ["0:6", "5,1,3"])
def test_the_key_of_a_cell_needs_no_image_and_tells_selections_apart(large, reads, blobs, given):
    def keys(images):
        request = grid.Request(["dct"], ["sumpool:4"], data=[str(blobs)], images=images)
        return [cell.key for cell in grid.plan(request, installed()).cells]

    assert keys(given) == keys(given) != keys("1:3")
    assert reads == []
