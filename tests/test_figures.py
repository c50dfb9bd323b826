import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from cryobench import figures
from cryobench.errors import ParameterError, ResultsError
from cryobench.figures import panel, round_length


def images(count: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, size=(count, 16, 16))


def draw(path, count: int = 2, **changes) -> np.ndarray:
    arguments = {"titles": [f"demo@{i}" for i in range(count)], "path": path} | changes
    panel(images(count), 300 * images(count, 1), images(count, 2), **arguments)
    return imread(path)


def test_a_row_for_each_of_at_most_four_images(tmp_path):
    heights = [draw(tmp_path / "panel.png", count).shape[0] for count in (1, 2, 4, 6)]
    assert heights[0] < heights[1] < heights[2] == heights[3]
    assert [path.name for path in tmp_path.iterdir()] == ["panel.png"]


def test_the_same_images_make_the_same_file(tmp_path):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_scale_bar_where_the_pixel_size_is_known(tmp_path):
    without, of_all = draw(tmp_path / "a.png"), draw(tmp_path / "b.png", pixel_size=1.3)
    of_one = draw(tmp_path / "c.png", pixel_size=[None, 1.3])
    halfway = len(without) // 2
    assert not np.array_equal(without[:halfway], of_all[:halfway])
    assert np.array_equal(without[:halfway], of_one[:halfway])
    assert np.array_equal(of_all[halfway + 20 :], of_one[halfway + 20 :])


def test_titles_are_not_mathematics(tmp_path):
    draw(tmp_path / "a.png", count=1, titles=["stack_$\\frac{$@1"])  # would not parse


def test_nothing_in_the_image_is_finite(tmp_path):
    empty = np.full((1, 8, 8), np.nan)
    panel(np.zeros((1, 8, 8)), empty, empty, titles=["a"], path=tmp_path / "a.png")
    panel(*[np.zeros((1, 8, 8))] * 3, titles=["a"], path=tmp_path / "b.png")


@pytest.mark.parametrize(
    ("length", "expected"), [(33.0, 20), (50.0, 50), (99.0, 50), (100.0, 100), (1.9, 1), (0.3, 0.2), (4200, 2000)]
)
def test_round_length(length, expected):
    assert round_length(length) == pytest.approx(expected)


def test_symmetric_limit_passes_over_an_outlier():
    errors = np.full((1, 100, 100), 0.1)
    errors[0, 0, 0] = 50.0
    assert figures._symmetric_limit(errors) == pytest.approx(0.1)
    assert figures._extend(errors, 0.1) == "max"


def test_refuses_what_does_not_fit(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(ParameterError, match=r"\[B, H, W\]"):
        panel(images(2), images(2), images(3), titles=["a", "b"], path=path)
    with pytest.raises(ParameterError, match=r"\[B, H, W\]"):
        panel(images()[0], images()[0], images()[0], titles=["a", "b"], path=path)
    with pytest.raises(ParameterError, match="title"):
        draw(path, titles=["a"])
    with pytest.raises(ParameterError, match="pixel size"):
        draw(path, pixel_size=[1.0])
    assert not path.exists()


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(ResultsError, match="cannot write the figure"):
        draw(tmp_path / "missing" / "a.png")
    (tmp_path / "old.png").write_bytes(b"old")

    def disk_full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", disk_full)
    with pytest.raises(ResultsError, match="No space left"):
        draw(tmp_path / "old.png")
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"old"


def test_import_is_cheap_and_drawing_leaves_pyplot_alone(tmp_path):
    code = f"""
import sys, numpy as np
from cryobench.figures import panel
assert "matplotlib" not in sys.modules and "torch" not in sys.modules
panel(*[np.zeros((1, 8, 8))] * 3, titles=["a"], path={str(tmp_path / "a.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
