"""The demo images: those of the documented recipe, computed once, cached, computed again if the cache is damaged."""

from __future__ import annotations

import numpy as np
import pytest

from cryobench.errors import SelectionError
from cryobench.sources import demo
from cryobench.sources.simulate import Simulate


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache") / "made"
        patch.setenv("CRYOBENCH_CACHE", str(folder))
        demo.Demo().open()
        yield folder


def test_the_images_are_those_of_the_documented_recipe(cache):
    stack = demo.Demo().open()
    text = demo.Demo.__doc__
    assert "`simulate:6zu5+6zu5-large+6zu5-small+3o21,snr=2,count=32`" in text
    recipe = Simulate("6zu5+6zu5-large+6zu5-small+3o21", snr=2.0, count=32)
    assert recipe == demo.RECIPE
    made = recipe.open()
    assert (len(stack), stack.shape, stack.label) == (32, (128, 128), "demo")
    for index in (0, 3, 31):
        assert np.array_equal(stack.read(index), made.read(index))
        assert np.array_equal(stack.clean(index), made.clean(index))
        assert stack.pixel_size(index) == made.pixel_size(index)
    assert stack.table.equals(made.table)
    assert stack.origin == made.origin
    assert stack.volume(1)[1] == made.pixel_size(1)
    assert np.array_equal(stack.volume(1)[0], made.volume(1)[0])
    with pytest.raises(SelectionError, match="image 32 of demo does not exist; it has 32, from 0"):
        stack.read(32)


def test_a_second_opening_simulates_nothing(cache, monkeypatch):
    monkeypatch.setattr("cryobench.sources.specimen.potential", None)  # a call fails
    assert demo.Demo().open().read(5).std() > 0


def test_reading_gives_copies(cache):
    stack = demo.Demo().open()
    stack.read(0)[:] = 0
    assert stack.read(0).std() > 0


def test_a_damaged_cache_is_replaced_and_an_unwritable_one_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "RECIPE", Simulate("3mht", snr=2.0, count=2, size=32))
    cache = tmp_path / "made"
    monkeypatch.setenv("CRYOBENCH_CACHE", str(cache))
    good = demo.Demo().open().read(0)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert np.array_equal(demo.Demo().open().read(0), good)
    assert file.read_bytes() == whole
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CRYOBENCH_CACHE", str(tmp_path / "file" / "below"))
    assert np.array_equal(demo.Demo().open().read(0), good)


def test_the_name_of_the_cache_depends_on_all_that_determines_the_images(monkeypatch):
    before = demo._digest()
    monkeypatch.setattr(demo, "RECIPE", Simulate("3mht"))
    assert demo._digest() != before
