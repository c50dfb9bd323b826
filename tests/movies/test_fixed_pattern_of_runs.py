"""The warning of a fixed pattern, from simulated movies to a run: with what the detector adds to both halves, and
without."""

from __future__ import annotations

import pytest

MOVIES = "3mht,size=256,frames=8,dose=6,count=3,fill=0.1"
WARNING = "does not hold: half a of one micrograph and half b of another correlate"


def errors_of(cli, data: str) -> str:
    code, _, err = cli("run", "-s", "gaussian", "-o", "identity", "--protocol", "halves", "--data", data, "--images",
                       "0:3", "--metric", "psnr_other")  # fmt: skip
    assert code == 0, err
    return err


@pytest.mark.parametrize(("fault", "warned"), [("", False), (",gain_error=0.02", True), (",hot=0.0005", True)])
def test_a_wrong_gain_reference_and_hot_pixels_are_found(cli, fault, warned):
    err = errors_of(cli, f"simulate_movies:{MOVIES}{fault}")
    assert (WARNING in err) == warned
    assert "independent" not in err or warned


def test_from_files_of_movies_hot_pixels_are_corrected_and_a_wrong_gain_reference_is_not(cli):
    for fault, out in (("", "clean"), (",gain_error=0.02", "gain"), (",hot=0.0005", "hot")):
        code, _, err = cli("data", "simulate-movies", out, "--count", "3", "--spec", MOVIES.replace(",count=3", fault))
        assert code == 0, err
    warned = {}
    for movies, out, options in (
        ("clean", "from_clean", ()),
        ("gain", "from_gain", ()),
        ("hot", "from_hot", ()),
        ("hot", "not_corrected", ("--hot", "0")),
    ):
        code, _, err = cli("movies", "sum", f"{movies}/movies/*.mrcs", "--gain", f"{movies}/gain.mrc", "--out", out,
                           *options)  # fmt: skip
        assert code == 0, err
        warned[out] = WARNING in errors_of(cli, f"./{out}")
    assert warned == {"from_clean": False, "from_gain": True, "from_hot": False, "not_corrected": True}
