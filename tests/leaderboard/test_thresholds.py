import math

import pytest

from cryobench.errors import ParameterError
from cryobench.leaderboard.compare.thresholds import Threshold, thresholds

DIRECTIONS = {"psnr": "higher", "mse": "lower", "odd:name": "none", "seconds_per_image": "lower"}


def test_documented_thresholds_are_parsed():
    assert thresholds("psnr:-0.1, seconds:+20%", DIRECTIONS) == [
        Threshold("psnr", -1, 0.1, False),
        Threshold("seconds_per_image", 1, 0.2, True),
    ]


@pytest.mark.parametrize("text", ["psnr:-0.1", "psnr:-5%", "mse:+1e-05", "odd:name:+3", "odd:name:-3"])
def test_the_text_of_a_threshold_is_parsed_to_the_same_threshold(text):
    (found,) = thresholds(text, DIRECTIONS)
    assert str(found) == text


INVALID = (
    "",
    "psnr",
    "psnr:0.1",
    "psnr:-",
    "psnr:-x",
    "psnr:--1",
    ":-1",
    "psnr:-0.1,",
    "psnr:-1e",
    "psnr:-nan",
    "psnr:-5 %",
)


@pytest.mark.parametrize(("text", "said"), [
    *((text, "invalid threshold") for text in INVALID),
    ("pnsr:-0.1", "did you mean 'psnr'"), ("psnr:+0.1", "psnr gets worse with '-'"), ("seconds:-20%", "with '+'"),
])  # fmt: skip
def test_the_error_for_an_invalid_threshold_is_one_line(text, said):
    with pytest.raises(ParameterError) as error:
        thresholds(text, DIRECTIONS)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_change_beyond_the_threshold_exceeds_it():
    drop, rise, percent = Threshold("a", -1, 0.5, False), Threshold("a", 1, 0.5, False), Threshold("a", 1, 0.2, True)
    assert drop.passed_by(20, 19.25)
    assert not drop.passed_by(20, 19.5)
    assert not drop.passed_by(20, 25)
    assert rise.passed_by(1, 1.75)
    assert not rise.passed_by(1, 0)
    assert percent.passed_by(10, 12.5)
    assert not percent.passed_by(10, 12)
    assert Threshold("a", 1, 0.1, True).passed_by(-10, -8)  # of the size


@pytest.mark.parametrize("relative", [True, False])
def test_infinite_means(relative):
    drop = Threshold("psnr", -1, 0.1, relative)
    assert drop.passed_by(math.inf, 80.0)
    assert not drop.passed_by(80.0, math.inf)
    assert not drop.passed_by(math.inf, math.inf)
    assert Threshold("mse", 1, 0.0, relative).passed_by(0.0, 1e-9)
    assert not Threshold("mse", 1, 0.0, relative).passed_by(0.0, 0.0)
