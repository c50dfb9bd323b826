"""Records pooled over data sets: values, intervals and tests are over data sets, as of records with one image each."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cryobench.leaderboard.pooled import pooled, pooled_leaderboard
from cryobench.leaderboard.render import to_markdown
from cryobench.leaderboard.statistics.bootstrap import bootstrap_intervals
from cryobench.plan.suite_file import Reference
from cryobench.record import Record
from cryobench.sweep.published import published_numbers

SCORES = {"one": [0.7, 0.6, 0.8], "two": [0.72, 0.63, 0.81]}


def record(solver: str, seed: int, value: float, **changes) -> Record:
    return Record(**{
        "hash": f"{solver}{seed}", "status": "ok", "reason": "", "solver": solver, "operator": "identity",
        "noise": "none", "data": "motion", "seed": 0, "images": ["0", "1"], "floor": solver == "one",
        "together": {"map_fsc": value}, "values": {"psnr": [seed, seed + 2.0]},
        "columns": [{"name": "psnr", "direction": "higher", "unit": "dB"},
                    {"name": "map_fsc", "direction": "higher", "unit": ""}],
        "timing": {"seconds_per_image": 1.0 + seed}, "counters": {"nfe": 2.0}, "peak_memory_mib": 5.0 + seed,
        "problem": {"data_digest": f"sha256:{seed}"}, "compression": 1.0,
    } | changes)  # fmt: skip


def records() -> list[Record]:
    return [record(solver, seed, value) for solver, values in SCORES.items() for seed, value in enumerate(values)]


def test_a_pooled_record_has_one_number_of_each_data_set():
    one, two = pooled(records())
    assert (one.solver, two.solver) == ("one", "two")
    assert one.values == {"map_fsc": SCORES["one"], "psnr": [1.0, 2.0, 3.0]}
    assert (one.together, one.images) == ({}, ["sha256:0", "sha256:1", "sha256:2"])
    assert one.data == "motion, 2 images each"
    assert one.timing["seconds_per_image"] == 2.0
    assert one.peak_memory_mib == 7.0
    assert one.hash != two.hash
    assert one.problem["data_digest"] == two.problem["data_digest"]


def test_the_order_of_records_does_not_matter():
    ordered = {found.solver: found for found in pooled(records())}
    other = {found.solver: found for found in pooled(records()[::-1])}
    assert ordered == other


def test_the_leaderboard_is_over_data_sets():
    _, frame = pooled_leaderboard(records(), by="map_fsc")
    row = frame[frame["solver"] == "one"].iloc[0]
    assert row["n_images"] == 3
    assert row["map_fsc"] == pytest.approx(0.7)
    (interval,) = bootstrap_intervals([SCORES["one"]])
    assert (row["map_fsc_lo"], row["map_fsc_hi"]) == pytest.approx(interval)
    assert row["diff_leader"] == pytest.approx(-np.subtract(SCORES["two"], SCORES["one"]).mean())
    text = to_markdown(frame)
    assert "motion, 2 images each, 3 data sets" in text
    assert "with 3 data sets and 1 pair" in text
    assert "data sets needed to detect" in text


def test_of_two_records_of_one_data_set_the_newest_counts():
    newer = record("one", 0, 0.9, hash="newer", environment={"created": "2026-02-01"})
    (one, *_) = pooled([*records(), newer])
    assert one.values["map_fsc"] == [0.9, 0.6, 0.8]


def test_the_worst_overlap_and_all_machines_are_stated():
    trained = [{"structure": "6zu5", "split": "test", "seed": "1"}]
    parts = [
        record("one", seed, 0.5, environment={"device": f"cuda GPU {seed}", "version": f"0.{seed}"},
               problem={"data_digest": f"sha256:{seed}", "trained_on": trained,
                        "origin": {"structure": "6zu5", "split": "test", "seed": str(seed)}})
        for seed in range(3)
    ]  # fmt: skip
    _, frame = pooled_leaderboard(parts, by="map_fsc")
    row = frame.iloc[0]
    assert (row["overlap"], row["hardware"], row["version"]) == (
        "images", "GPU 0 and GPU 1 and GPU 2", "0.0 and 0.1 and 0.2"
    )  # fmt: skip


def test_other_sizes_and_types_are_other_comparisons():
    other = [record("one", seed, 0.5, problem={"data_digest": f"sha256:{seed}", "image_shape": [seed, seed]})
             for seed in (16, 24)]  # fmt: skip
    double = record("one", 5, 0.5, environment={"dtype": "float64"})
    assert len(pooled([*records(), *other, double])) == 5


def test_a_failed_cell_is_listed_in_the_comparison_of_its_data_sets():
    failed = record("three", 1, 0.0, status="failed", reason="no memory", hash="x", values={}, together={})
    _, frame = pooled_leaderboard([*records(), failed], by="map_fsc")
    assert frame.index.get_level_values("group").nunique() == 1
    assert "failed three: no memory" in to_markdown(frame)
    assert "3 data sets" in to_markdown(frame)


def test_a_reference_finds_the_data_by_its_own_label():
    reference = Reference(1, "one", "identity", {"map_fsc": (0.7, 0.7)}, "a paper", data="motion")
    (number,) = published_numbers([reference], pooled(records()), [])
    assert number.measured == pytest.approx(0.7)


def test_what_failed_or_differs_in_more_than_the_data_set_is_not_pooled():
    failed = record("two", 0, 0.0, status="failed", reason="no memory", hash="x", values={}, together={})
    other = record("two", 3, 0.9, operator="sumpool:4")
    found = pooled([*records(), failed, other])
    assert [(each.solver, each.operator, each.status) for each in found] == [
        ("one", "identity", "ok"), ("two", "identity", "ok"), ("two", "identity", "failed"), ("two", "sumpool:4", "ok"),
    ]  # fmt: skip


def test_a_solver_that_lacks_a_data_set_is_in_another_comparison():
    found, frame = pooled_leaderboard(records()[:-1], by="map_fsc")
    assert [len(each.images) for each in found] == [3, 2]
    assert frame.index.get_level_values("group").nunique() == 2


def test_a_metric_that_one_data_set_lacks_is_missing_with_the_reason():
    without = record("one", 2, 0.0, together={}, unmeasured={"map_fsc": "no truth"})
    _, frame = pooled_leaderboard([*records()[:2], without], by="psnr")
    assert np.isnan(frame["map_fsc"].iloc[0])
    assert json.loads(frame["unmeasured"].iloc[0]) == {"map_fsc": "no truth"}
