"""The README, the tutorial and the published leaderboards: tables are those of their commands, files exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import cryobench as cb

ROOT = Path(__file__).resolve().parents[1]
README, TUTORIAL, BOARDS = ((ROOT / name).read_text(encoding="utf-8")
                            for name in ("README.md", "docs/tutorial.md", "docs/leaderboards.md"))  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TUTORIAL, re.DOTALL | re.MULTILINE)


def test_the_solver_of_the_tutorial_is_a_row_in_the_table(install_plugin, blobs):
    (source,) = [block for block in blocks("python") if "my_package" in block]
    (points,) = blocks("toml")
    group, name, target = re.search(r'"(.*?)"\]\n(\w+) = "(.*?)"', points).groups()
    install_plugin("my-package", {group: {name: target}}, my_package=source)
    command = re.search(r"--solver (landweber:\d+) --operator (\S+)`", TUTORIAL)
    records = {r.solver: r for r in cb.run(command[1], "sumpool:4", data=blobs)}
    # from zero, gradient descent converges to the least-norm solution, the floor except for the mean
    assert records[command[1]].status == "ok"
    assert np.mean(records[command[1]].values["measurement_mse"]) < 1e-2


def test_the_tables_in_readme_and_tutorial_match_the_first_command():
    """The numbers for the packaged demo are compared within 0.02 dB."""
    shown, same = (re.findall(r"^\d  (pinv|dct).*?(\d+\.\d\d) \[", text, re.MULTILINE) for text in (README, TUTORIAL))
    records = {r.solver: r for r in cb.run("dct", "sumpool:16")}
    assert shown == same
    assert dict(shown).keys() == records.keys()
    for solver, psnr in shown:
        assert np.mean(records[solver].values["psnr"]) == pytest.approx(float(psnr), abs=0.02)


def test_the_leaderboard_in_the_docs_matches_the_published_one():
    shown = re.findall(r"^\| (\S+(?: \(floor\))?) \| (\d+\.\d\d) \| (\d+ of \d+|–) \|", BOARDS, re.MULTILINE)
    published = (ROOT / "leaderboards" / "pixel.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+(?: \(floor\))?) \| (\d+\.\d\d) \| \d+ \| (\d+ of \d+|–) \|", published, re.MULTILINE)
    assert len(rows) > 4
    assert shown == rows


def test_the_files_named_by_the_readme_exist():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    for path, test in re.findall(r"`(tests/\S+?)::(\w+)`", README):
        assert f"def {test}(" in (ROOT / path).read_text()
    assert "It is not the CryoBench of the same name" in README.replace("\n", " ")


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "log.md"], ids=lambda page: page.name
)
def test_the_tests_and_benchmarks_named_by_the_docs_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`(?:uv run python )?((?:tests|benchmarks|cryobench|tools)/[\w/]+\.py)", text):
        assert (ROOT / path).exists(), path
    for path, test in re.findall(r"`(tests/\S+?)::(\w+)`", text):
        assert f"def {test}(" in (ROOT / path).read_text(), test


def test_the_figures_of_the_performance_page_are_in_the_log():
    """Numbers of the column "measured", benchmarks and dates are in the section of the log that is linked."""
    log = (ROOT / "benchmarks" / "log.md").read_text(encoding="utf-8")
    own = dict(re.findall(r"^##+ (.*?)\n(.*?)(?=^##|\Z)", log, re.DOTALL | re.MULTILINE))
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert len(sections) >= 16
    for title, text in sections:
        (anchor,) = re.findall(r"benchmarks/log\.md#([\w-]+)", text)
        (recorded,) = [body for name, body in own.items() if slug(name) == anchor]
        rows = [row.strip("| ").split(" | ") for row in re.findall(r"^\|.*\|$", text, re.MULTILINE)[2:]]
        assert rows, title
        for claim, measured, command, date in rows:
            number = r"(?<![\w.])[-+]?\d+(?:[.,]\d+)*(?:e-\d+)?"
            assert set(re.findall(number, measured)) <= set(re.findall(number, recorded)), (title, claim)
            assert all(path in recorded for path in re.findall(r"(?:benchmarks|tests)/[\w/]+\.py", command)), command
            assert re.search(rf"Recorded .*{date}", recorded), (title, claim)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
