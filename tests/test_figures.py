import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from cryobench import figures
from cryobench.errors import ParameterError, ResultsError
from cryobench.figures import LAST_MILLISECONDS, MILLISECONDS, animation, panel, round_length


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


def moving(count: int = 4, shape: tuple[int, int] = (16, 24)) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.uniform(-1, 1, size=shape), rng.uniform(-1, 1, size=shape)) for _ in range(count)]


def test_an_animation_shows_iterate_and_estimate_side_by_side_and_stays_on_the_last(tmp_path):
    frames = moving()
    frames[2][0][0, 0], frames[2][1][0, 0] = 7.0, -np.inf  # beyond the window: white and black
    animation(frames, steps=[1, 5, 9, 12], path=tmp_path / "a.gif")
    durations = []
    with Image.open(tmp_path / "a.gif") as file:
        assert (file.n_frames, file.info["loop"]) == (4, 0)
        for number, (x, estimate) in enumerate(frames):
            file.seek(number)
            durations.append(file.info["duration"])
            pixels = np.asarray(file.convert("L")).astype(float)
            zoom = 12  # 16 pixels to 192
            left, right = pixels[zoom // 2 : 192 : zoom, zoom // 2 :: zoom][:, :24], pixels[:192, -24 * zoom :]
            right = right[zoom // 2 :: zoom, zoom // 2 :: zoom]
            np.testing.assert_allclose(left, 127.5 * (x.clip(-1, 1) + 1), atol=1)
            np.testing.assert_allclose(right, 127.5 * (estimate.clip(-1, 1) + 1), atol=1)
    assert durations == [MILLISECONDS] * 3 + [LAST_MILLISECONDS]
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_the_step_is_written_below(tmp_path):
    still = [moving(1)[0]] * 2
    animation(still, steps=[1, 2], path=tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as file:
        first = np.asarray(file.convert("L")).copy()
        file.seek(1)
        second = np.asarray(file.convert("L"))
    assert np.array_equal(first[:192], second[:192])
    assert not np.array_equal(first[192:], second[192:])


@pytest.mark.parametrize(
    ("frames", "steps"), [([], []), (moving(2), [1]), ([*moving(1), *moving(1, (8, 8))], [1, 2]), ([(0.0, 0.0)], [1])]
)
def test_an_animation_refuses_what_does_not_fit(tmp_path, frames, steps):
    with pytest.raises(ParameterError, match=r"frames \[H, W\] of one shape"):
        animation(frames, steps=steps, path=tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_an_animation_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ResultsError, match="cannot write the figure"):
        animation(moving(), steps=range(4), path=tmp_path / "missing" / "a.gif")
    assert not list(tmp_path.iterdir())


def test_import_is_cheap_and_drawing_leaves_pyplot_alone(tmp_path):
    code = f"""
import sys, numpy as np
from cryobench.figures import panel
assert "matplotlib" not in sys.modules and "torch" not in sys.modules
panel(*[np.zeros((1, 8, 8))] * 3, titles=["a"], path={str(tmp_path / "a.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
