import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from cryobench.errors import ParameterError, ResultsError
from cryobench.figures import (
    animation,
    common_size,
    error_maps,
    panel,
    panels,
    read_views,
    ring_correlations,
    write_views,
)
from cryobench.figures.gif import LAST_MILLISECONDS, MILLISECONDS
from cryobench.figures.style import round_length


def images(count: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, size=(count, 16, 16))


def draw(path, count: int = 2, **changes) -> np.ndarray:
    arguments = {"titles": [f"demo@{i}" for i in range(count)], "path": path} | changes
    panel(images(count), 300 * images(count, 1), images(count, 2), **arguments)
    return imread(path)


def test_a_panel_has_one_row_for_each_of_at_most_four_images(tmp_path):
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


def test_images_without_finite_pixels_are_drawn(tmp_path):
    empty = np.full((1, 8, 8), np.nan)
    panel(np.zeros((1, 8, 8)), empty, empty, titles=["a"], path=tmp_path / "a.png")
    panel(*[np.zeros((1, 8, 8))] * 3, titles=["a"], path=tmp_path / "b.png")


@pytest.mark.parametrize(
    ("length", "expected"), [(33.0, 20), (50.0, 50), (99.0, 50), (100.0, 100), (1.9, 1), (0.3, 0.2), (4200, 2000)]
)
def test_round_length(length, expected):
    assert round_length(length) == pytest.approx(expected)


def test_one_outlier_does_not_set_the_scale_of_the_errors():
    errors = np.full((1, 100, 100), 0.1)
    errors[0, 0, 0] = 50.0
    assert panels._largest(errors) == pytest.approx(0.1)
    assert panels._extend(errors, 0.1) == "max"


def test_panel_refuses_inconsistent_arguments(tmp_path):
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
    with pytest.raises(ResultsError, match="cannot write "):
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


def test_an_animation_shows_iterate_and_estimate_and_holds_the_last_frame(tmp_path):
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
def test_an_animation_refuses_inconsistent_frames(tmp_path, frames, steps):
    with pytest.raises(ParameterError, match=r"frames \[H, W\] of one shape"):
        animation(frames, steps=steps, path=tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_an_animation_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ResultsError, match="cannot write "):
        animation(moving(), steps=range(4), path=tmp_path / "missing" / "a.gif")
    assert not list(tmp_path.iterdir())


def draw_errors(path, count: int = 2, **changes) -> np.ndarray:
    arguments = {"titles": [f"demo@{i}" for i in range(count)], "path": path} | changes
    error_maps(images(count), images(count, 1), **arguments)
    return imread(path)


def test_error_maps_have_optional_clean_and_deviation_columns(tmp_path):
    plain = draw_errors(tmp_path / "a.png")
    wider = draw_errors(tmp_path / "b.png", clean=images(seed=2))
    widest = draw_errors(tmp_path / "c.png", clean=images(seed=2), deviation=np.abs(images(seed=3)))
    assert plain.shape[1] < wider.shape[1] < widest.shape[1]
    assert plain.shape[0] == wider.shape[0] == widest.shape[0]
    heights = [draw_errors(tmp_path / "d.png", count).shape[0] for count in (1, 4, 6)]
    assert heights[0] < heights[1] == heights[2]


def test_the_colour_of_an_error_depends_only_on_its_value(tmp_path):
    truth = np.zeros((1, 8, 8))
    error = np.zeros((1, 8, 8))
    error[:, :4], error[:, 4:] = 0.5, -0.5
    for path, sign in (("a.png", 1), ("b.png", -1)):
        error_maps(truth, sign * error, titles=["a"], path=tmp_path / path)
    first, second = imread(tmp_path / "a.png"), imread(tmp_path / "b.png")
    columns = slice(first.shape[1] // 8, first.shape[1] // 4)  # within the first map
    top, bottom = (slice(first.shape[0] * k // 10, first.shape[0] * (k + 1) // 10) for k in (3, 6))
    assert np.array_equal(first[top, columns], second[bottom, columns])
    assert not np.array_equal(first[top, columns], first[bottom, columns])


def test_zero_and_nonfinite_errors_are_drawn(tmp_path):
    zero = np.zeros((1, 8, 8))
    error_maps(zero, zero, titles=["a"], path=tmp_path / "a.png")
    error_maps(zero, np.full((1, 8, 8), np.nan), titles=["a"], deviation=zero, path=tmp_path / "b.png")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png"}


def test_error_maps_refuse_inconsistent_shapes(tmp_path):
    for further in ({"clean": images(3)}, {"deviation": images(2)[:, :8]}):
        with pytest.raises(ParameterError, match=r"\[B, H, W\]"):
            draw_errors(tmp_path / "a.png", **further)
    assert not list(tmp_path.iterdir())


FREQUENCY = np.arange(1, 33) / 64


def correlations(count: int) -> np.ndarray:
    return np.linspace(1, 0, 32) ** np.arange(1, count + 1)[:, None]


def test_the_axis_of_ring_correlations_is_in_angstrom_where_all_images_have_one_pixel_size(tmp_path):
    def drawn(pixel_size) -> bytes:
        ring_correlations(correlations(2), FREQUENCY, pixel_size=pixel_size, path=tmp_path / "a.png")
        return (tmp_path / "a.png").read_bytes()

    assert drawn(1.5) == drawn([1.5, 1.5])
    assert drawn(None) == drawn([1.5, None]) == drawn([1.5, 2.0])  # cycles per pixel, as there is no common unit
    assert len({drawn(size) for size in (None, 1.5, 3.0)}) == 3


def test_a_common_pixel_size():
    assert common_size([2.0, 2.0]) == 2.0
    assert common_size([2.0, 3.0]) is common_size([2.0, None]) is common_size([None]) is None


def test_all_images_count_in_the_mean_of_ring_correlations_and_the_first_64_are_drawn(tmp_path):
    flat = np.full((65, 32), 0.8)
    other = flat.copy()
    other[64] = -0.2  # drawn neither as a line nor as a limit
    for path, curves in (("a.png", flat), ("b.png", other)):
        ring_correlations(curves, FREQUENCY, path=tmp_path / path)
    first, second = imread(tmp_path / "a.png"), imread(tmp_path / "b.png")
    assert first.shape == second.shape
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("curves", "frequency"), [(np.zeros((2, 3)), FREQUENCY), (np.zeros(32), FREQUENCY), (np.zeros((0, 32)), FREQUENCY)]
)
def test_ring_correlations_refuse_inconsistent_shapes(tmp_path, curves, frequency):
    with pytest.raises(ParameterError, match="expected ring correlations"):
        ring_correlations(curves, frequency, path=tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_views_are_the_first_four_images_in_the_window_of_all_pictures(tmp_path):
    truth, estimate = images(6), 1.5 * images(6, 1)
    write_views(truth, estimate, images=list("abcdef"), pixel_size=[2.0, None, 3.0, 2.0, 1.0, 1.0], path=tmp_path / "v")
    views = read_views(tmp_path / "v")
    assert (views.images, views.pixel_size) == (["a", "b", "c", "d"], [2.0, None, 3.0, 2.0])
    for seen, given in ((views.truth, truth), (views.reconstruction, estimate)):
        assert seen.dtype == np.uint8
        np.testing.assert_allclose(seen / 127.5 - 1, given[:4].clip(-1, 1), atol=1 / 255 + 1e-9)
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_invalid_views_are_named_in_the_error(tmp_path):
    path = tmp_path / "views.npz"
    for spoil in (lambda: None, lambda: path.write_bytes(b"PK no archive"), lambda: np.savez(path, truth=images())):
        spoil()
        with pytest.raises(ResultsError, match=r"views\.npz"):
            read_views(path)
    write_views(images(), images(), images=["a", "b"], pixel_size=None, path=path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ResultsError, match=r"views\.npz"):
        read_views(path)
    arrays = {"truth": images(), "reconstruction": images(), "images": np.array(["a", "b"]), "pixel_size": np.ones(2)}
    np.savez(path, **arrays)  # not uint8
    with pytest.raises(ResultsError, match="uint8"):
        read_views(path)
    with pytest.raises(ParameterError, match="an id each"):
        write_views(images(), images(), images=["a"], pixel_size=None, path=path)


def test_importing_figures_is_light_and_drawing_does_not_import_pyplot(tmp_path):
    code = f"""
import sys, numpy as np
from cryobench.figures import panel
assert "matplotlib" not in sys.modules and "torch" not in sys.modules
panel(*[np.zeros((1, 8, 8))] * 3, titles=["a"], path={str(tmp_path / "a.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
