import csv
import io
import json
import math
from dataclasses import fields
from typing import Any

import board_records
import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from cryobench.errors import ParameterError, ResultsError
from cryobench.leaderboard.compare import render
from cryobench.leaderboard.compare.change import Change
from cryobench.leaderboard.compare.changes import Changes, changes
from cryobench.leaderboard.statistics.power import LEVEL
from cryobench.leaderboard.statistics.signed_rank import holm
from cryobench.record import COSTS, Record

COLUMNS = [board_records.PSNR, board_records.MSE, board_records.OTHER]
NOISE = np.random.default_rng(0).normal(0, 0.2, size=12)


def record(solver: str = "dct", psnr: Any = 25 + NOISE, **changed: Any) -> Record:
    """A cell that ran on twelve images, unless other values are given, and states three metrics."""
    return board_records.record(solver, list(map(float, psnr)), **({"columns": COLUMNS} | changed))


def one(found: Changes, column: str = "psnr") -> Change:
    (change,) = [change for change in found.changes if change.column == column]
    return change


def verdicts(old: Record, new: Record, **options: Any) -> dict[str, str]:
    return {change.column: str(change.verdict) for change in changes([old], [new], **options).changes}


def test_the_same_results_are_identical():
    cells = [record(), record("tv"), record("tv", seed=1)]
    found = changes(cells, cells)
    assert {change.verdict for change in found.changes} == {"identical", "within tolerance"}
    assert (found.regressions, found.broken, found.mended, found.only_old, found.only_new) == ([], [], [], [], [])


@pytest.mark.parametrize(
    ("metric", "shift", "verdict"),
    [("psnr", 1, "better"), ("psnr", -1, "worse"), ("mse", 1, "worse"), ("mse", -1, "better"), ("other", 1, "changed")],
)
def test_a_shift_of_all_images_is_better_or_worse_by_the_metrics_direction(metric, shift, verdict):
    old = record(values={metric: (5 + NOISE).tolist()})
    new = record(values={metric: (5 + shift + NOISE + NOISE[::-1] / 10).tolist()})
    found = changes([old], [new])
    change = one(found, metric)
    assert change.verdict == verdict
    assert change.difference == pytest.approx(shift + NOISE.mean() / 10)
    assert change.lo < change.difference < change.hi
    assert bool(found.regressions) == (verdict == "worse")


def test_swapping_old_and_new_reverses_every_verdict():
    old, new = record(values={"psnr": NOISE.tolist(), "mse": NOISE.tolist()}), record()
    new.values = {"psnr": (NOISE + 1 + NOISE[::-1]).tolist(), "mse": (NOISE + 1 + NOISE[::-1]).tolist()}
    new.timing["seconds_per_image"] = 9.0
    columns = ["psnr", "mse", "seconds"]
    assert list(verdicts(old, new, columns=columns).values()) == ["better", "worse", "slower"]
    assert list(verdicts(new, old, columns=columns).values()) == ["worse", "better", "faster"]


def test_images_are_paired_by_name():
    old, new = record(), record(psnr=25 + NOISE + 0.01)
    order = np.random.default_rng(1).permutation(12)
    shuffled = record(
        images=[new.images[place] for place in order], values={"psnr": [new.values["psnr"][place] for place in order]}
    )
    assert one(changes([old], [shuffled])) == one(changes([old], [new]))
    assert one(changes([old], [new])).verdict == "better"  # a hundredth, seen as every image has it


def test_p_values_are_wilcoxons_with_holms_correction_over_all_metrics_and_cells():
    rng = np.random.default_rng(3)
    old = [record(solver, 25 + rng.normal(size=12)) for solver in "abcd"]
    new = [record(solver, 25.3 + rng.normal(size=12)) for solver in "abcd"]
    for cell in (*old, *new):
        cell.values["mse"] = rng.normal(size=12).tolist()
    found = changes(old, new, columns=["psnr", "mse"]).changes
    pairs = [(b.values[name], a.values[name]) for name in ("psnr", "mse") for b, a in zip(old, new, strict=True)]
    p = [scipy.stats.wilcoxon(after, before).pvalue for before, after in pairs]
    assert [change.p for change in found] == pytest.approx(p)
    assert [change.p_holm for change in found] == pytest.approx(holm(np.array(p)))


def test_identical_cells_do_not_count_as_tests():
    """Ten unchanged solvers do not reduce the power for the one that changed."""
    old = [record(solver, NOISE[:7]) for solver in "abcdefghij"]
    new = [record(solver, NOISE[:7]) for solver in "bcdefghij"] + [record("a", NOISE[:7] - 1)]
    found = changes(old, new, columns=["psnr"])
    assert [change.verdict for change in found.changes] == ["worse"] + ["identical"] * 9
    assert found.changes[0].p_holm == found.changes[0].p == 2**-6


def test_cells_of_few_images_are_not_tested_and_do_not_count():
    few = [(record(str(size), NOISE[:3]), record(str(size), NOISE[:3] - 1)) for size in range(8)]
    pairs = [(record(), record(psnr=24.5 + NOISE)), *few]
    found = changes(*zip(*pairs, strict=True), columns=["psnr"])
    assert [change.verdict for change in found.changes] == ["worse"] + ["untested"] * 8
    assert found.changes[0].p_holm == found.changes[0].p
    assert all(change.p is None and change.lo is not None for change in found.changes[1:])
    assert any("8 not tested: too few images" in remark for remark in found.remarks)


def test_without_changes_at_most_one_result_in_twenty_is_significant():
    rng = np.random.default_rng(0)
    names = [f"solver{place}" for place in range(8)]
    wrong = 0
    for _ in range(400):
        base = rng.normal(25, 3, size=(2, 8, 12)) + rng.standard_t(2, size=(2, 8, 12))
        old, new = ([record(name, row) for name, row in zip(names, side, strict=True)] for side in base)
        wrong += any(change.verdict in ("better", "worse") for change in changes(old, new, columns=["psnr"]).changes)
    assert wrong > 0
    assert scipy.stats.binomtest(wrong, 400).proportion_ci(0.99).low <= LEVEL


@pytest.mark.parametrize(
    ("changed", "matched"),
    [
        ({"hash": "another"}, True),
        ({"environment": {"device": "cuda:0 Some GPU", "version": "9"}}, True),
        ({"data": "another label of the same images"}, True),
        ({"operator": "sumpool:8"}, False),
        ({"noise": "poisson:10"}, False),
        ({"seed": 1}, False),
        ({"problem": {"data_digest": "bbbb"}}, False),
        ({"problem": {"data_digest": "aaaa1111", "within": "circle"}}, False),
        ({"environment": {"dtype": "float64"}}, False),
        ({"images": [f"other@{place}" for place in range(12)]}, False),
    ],
)
def test_cells_are_matched_by_their_task(changed, matched):
    anchor = record("anchor")
    found = changes([anchor, record()], [anchor, record(**changed)], columns=["psnr"])
    assert len(found.changes) == 1 + matched
    assert (len(found.only_old), len(found.only_new)) == (0, 0) if matched else (1, 1)


def test_the_last_record_of_a_cell_is_used():
    found = changes([record(psnr=NOISE), record()], [record()])
    assert one(found).verdict == "identical"
    assert any("not compared: 1 records" in remark for remark in found.remarks)


def test_a_cell_that_no_longer_runs_is_a_regression_for_any_thresholds():
    failed = record("tv", status="failed", reason="out of memory", values={}, timing={}, counters={})
    found = changes([record(), record("tv")], [record(), failed], fail_on="psnr:-1")
    assert found.broken == ["tv on sumpool:16, noise none, demo, seed 0: failed, out of memory"]
    assert found.regressions == found.broken
    back = changes([record(), failed], [record(), record("tv")])
    assert (back.mended, back.regressions, back.broken) == (found.broken, [], [])


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [(0.0, math.nan, "lost"), (math.nan, 0.0, "gained"), (math.nan, math.nan, "no number")],
)
def test_a_lost_mean_is_a_regression(old, new, verdict):
    found = changes([record(psnr=np.append(NOISE, old))], [record(psnr=np.append(NOISE, new))], columns=["psnr"])
    change = one(found)
    assert (change.verdict, change.p, change.lo, change.difference) == (verdict, None, None, None)
    assert bool(found.regressions) == (verdict == "lost")
    limited = changes([record(psnr=np.append(NOISE, old))], [record(psnr=np.append(NOISE, new))], fail_on="psnr:-9")
    assert bool(limited.regressions) == (verdict == "lost")


def test_infinite_values_are_numbers():
    exact = np.full(12, math.inf)
    assert one(changes([record(psnr=exact)], [record(psnr=exact)])).verdict == "identical"
    change = one(changes([record(psnr=exact)], [record(psnr=25 + NOISE)]))
    assert (change.verdict, change.old, change.difference, change.lo) == ("worse", math.inf, -math.inf, None)


def test_costs_change_beyond_the_tolerance():
    def cell(seconds: float, nfe: float, memory: float | None) -> Record:
        return record(timing={"seconds_per_image": seconds}, counters={"nfe": nfe}, peak_memory_mib=memory)

    def kinds(*cells: Record) -> list[str]:
        return list(verdicts(*cells, columns=["seconds", "nfe", "operator_calls", "peak_memory_mib"]).values())

    assert kinds(cell(1.0, 100, 50), cell(1.25, 100, None)) == ["slower", "within tolerance"]
    assert kinds(cell(1.25, 100, 50), cell(1.0, 0, 100)) == ["faster", "cheaper", "dearer"]
    assert kinds(cell(1.0, 0, 50), cell(1.15, 9, 50)) == ["within tolerance", "dearer", "within tolerance"]
    assert verdicts(cell(1.0, 0, 50), cell(1.15, 0, 50), tolerance=0.1)["seconds_per_image"] == "slower"
    assert changes([cell(1.0, 0, 50)], [cell(100.0, 0, 50)]).regressions == []  # a timing alone is not a regression
    assert changes([cell(1.0, 0, 50)], [cell(1.3, 0, 50)], fail_on="seconds:+20%").regressions
    assert not changes([cell(1.0, 0, 50)], [cell(1.15, 0, 50)], fail_on="seconds:+20%").regressions


def test_different_hardware_is_reported():
    old, new = record(), record(environment={"device": "cpu", "hardware": {"processor": "another"}})
    assert any("costs are not comparable for 1 of the cells" in remark for remark in changes([old], [new]).remarks)
    assert not any("hardware" in remark for remark in changes([old], [old]).remarks)


@pytest.mark.parametrize(
    ("new", "passed"),
    [
        (25 + NOISE - 0.2, True),  # all images lost 0.2 dB
        (25 + NOISE - 0.05, False),  # significant, and less than the threshold
        (25 + NOISE + 0.2, False),  # better
        (25 + NOISE - 0.2 + np.where(np.arange(12) % 2, 3, -3), False),  # beyond it, but the interval holds 0
    ],
)
def test_a_threshold_applies_to_differences_whose_interval_excludes_zero(new, passed):
    found = changes([record()], [record(psnr=new)], fail_on="psnr:-0.1")
    assert one(found).passed == ("psnr:-0.1" if passed else "")
    assert len(found.regressions) == passed


def test_the_threshold_for_a_single_image_is_compared_with_its_value():
    assert changes([record(psnr=[25.0])], [record(psnr=[24.8])], fail_on="psnr:-0.1").regressions
    assert not changes([record(psnr=[25.0])], [record(psnr=[24.8])]).regressions


def test_with_thresholds_nothing_else_is_a_regression():
    old, new = record(), record(psnr=24 + NOISE)
    assert changes([old], [new]).regressions
    assert not changes([old], [new], fail_on="seconds:+20%").regressions


def test_columns_are_chosen_and_those_of_thresholds_added():
    columns = [change.column for change in changes([record()], [record()], columns=["psnr"], fail_on="nfe:+0").changes]
    assert columns == ["psnr", "nfe"]


def test_metrics_of_one_result_or_with_different_units_are_reported_as_not_compared():
    old = record(values={"psnr": NOISE.tolist(), "mse": NOISE.tolist()})
    new = record(values={"psnr": NOISE.tolist(), "ssim": NOISE.tolist()})
    new.columns = [COLUMNS[0] | {"unit": "bel"}]
    found = changes([old], [new])
    assert {change.column for change in found.changes} == set(COSTS)
    shown = "\n".join(found.remarks)
    assert "only OLD has mse" in shown
    assert "only NEW has ssim" in shown
    assert "psnr is not compared" in shown


def test_invalid_requests_are_refused():
    with pytest.raises(ResultsError, match="no cell is in both"):
        changes([record()], [record("tv")])
    with pytest.raises(ParameterError, match="did you mean 'psnr'"):
        changes([record()], [record()], columns=["pnsr"])
    with pytest.raises(ParameterError, match="psnr gets worse"):
        changes([record()], [record()], fail_on="psnr:+1")
    for tolerance in (-0.1, math.nan, math.inf):
        with pytest.raises(ParameterError, match="tolerance"):
            changes([record()], [record()], tolerance=tolerance)


def everything() -> Changes:
    old = [record(), record("tv"), record("gone"), record("breaks"), record("exact", np.full(12, math.inf))]
    new = [record(psnr=24 + NOISE), record("tv"), record("new"), record("exact")]
    new[0].timing["seconds_per_image"] = 1.5
    return changes(old, [*new, record("breaks", status="failed", reason="why · not")], fail_on="psnr:-0.1")


def test_csv_reads_back():
    found = everything()
    rows = list(csv.DictReader(io.StringIO(render.to_csv(found))))
    assert list(rows[0]) == [field.name for field in fields(Change)]
    assert len(rows) == len(found.changes)
    for row, change in zip(rows, found.changes, strict=True):
        assert (row["solver"], row["verdict"], row["passed"]) == (change.solver, change.verdict, change.passed)
        assert (float(row["new"]) if row["new"] else None) == change.new
        assert (float(row["lo"]) if row["lo"] else None) == change.lo


def test_json_reads_back():
    found = everything()
    read = json.loads(render.to_json(found))
    assert read["regressions"] == found.regressions
    assert (read["only_old"], read["only_new"]) == (found.only_old, found.only_new)
    assert [change["p_holm"] for change in read["changes"]] == [change.p_holm for change in found.changes]
    assert next(change for change in read["changes"] if change["solver"] == "exact")["old"] == "inf"


@pytest.mark.parametrize(("encoding", "dot"), [("utf-8", "·"), ("ascii", "|")])
def test_a_terminal_shows_what_changed(encoding, dot):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=stream, width=100).print(render.rich_changes(everything()))
    stream.seek(0)
    text = stream.read()
    lines = text.splitlines()
    (worse,) = [line for line in lines if line.startswith("worse !") and "dct" in line]
    assert "psnr dB" in worse
    assert any(line.startswith("slower") and "seconds_per_image s" in line for line in lines)
    assert not any(line.startswith(("within", "identical")) for line in lines)
    assert f"sumpool:16 {dot} noise none {dot} demo, 12 images {dot} seed 0" in lines
    assert any(line.startswith("no longer runs: breaks on sumpool:16") for line in lines)
    assert any(line.startswith("only in OLD: gone") for line in lines)
    assert any(line.startswith("only in NEW: new") for line in lines)
    assert lines[-1] == "3 regressions"


@pytest.mark.parametrize(
    ("direction", "new", "verdict"),
    [
        ("lower", 20.0, "identical"),
        ("lower", 21.0, "within tolerance"),
        ("lower", 30.0, "worse"),
        ("higher", 30.0, "better"),
        ("none", 30.0, "changed"),
    ],
)
def test_numbers_of_all_images_together_are_compared_without_a_test(direction, new, verdict):
    columns = [*COLUMNS, {"name": "map_truth", "direction": direction, "unit": "Å"}]
    cells = [record(columns=columns, together={"map_truth": value}) for value in (20.0, new)]
    found = changes([cells[0]], [cells[1]], tolerance=0.1)
    change = one(found, "map_truth")
    assert (change.verdict, change.p, change.lo, change.unit) == (verdict, None, None, "Å")
    assert change.difference == new - 20
    assert bool(found.regressions) == (verdict == "worse")
    assert any("one number per cell" in remark for remark in found.remarks)
