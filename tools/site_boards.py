"""Published leaderboards as interactive pages and figures of the site.

A published leaderboard is SUITE.csv, with the means and intervals of each row, and SUITE.md, the same results with the
metric of the ranking, directions, units and floors. Both together give the table of the page that `cryobench
leaderboard --format html` writes. There are no values of images: pages have no box plots, ring correlations or
pictures.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from cryobench.leaderboard.page import to_page
from cryobench.leaderboard.render.chart import to_png
from cryobench.leaderboard.table import DTYPES, INDEX
from cryobench.record import LEADING, TRAILING
from cryobench.results.tables import from_cell
from cryobench.sweep.published import NOT_RUN

COMPARISON = ["operator", "noise", "data", "seed", "within"]
CEILING = "ceiling"
DIRECTIONS = {"↑": "higher", "↓": "lower"}
INTERVAL = " [95% interval]"


class BoardError(ValueError):
    """A published leaderboard whose two files do not belong together."""


def gallery(folder: Path) -> dict[str, str | bytes]:
    """The files of the gallery by their places: `gallery/index.md`, and a page and a figure of each leaderboard.

    folder: that of the published leaderboards.
    """
    lines = ["# Gallery", "", "The published leaderboards. A page of a leaderboard has tables that can be sorted and "
             "filtered, quality against cost and compression, and average ranks. It is one file that loads nothing "
             "from a network. The figure is that of the first comparison.", ""]  # fmt: skip
    files: dict[str, str | bytes] = {}
    for csv in sorted(folder.glob("*.csv")):
        name, text = csv.stem, csv.with_suffix(".md").read_text(encoding="utf-8")
        title, about, made = head(text)
        frame = published_frame(csv)
        files[f"gallery/{name}.html"] = to_page(frame, (), lambda hash: None, made=made)
        first = frame[frame.index.get_level_values("group") == 0]
        first.attrs = frame.attrs
        files[f"gallery/{name}.png"] = to_png(first)
        lines += [f"## {title}", "", about, "", f"{made}.", ""]
        lines += [f"[Interactive page]({name}.html) · [Markdown](../leaderboards/{name}.md)", ""]
        lines += [f"![{title}: the first comparison]({name}.png)", ""]
    return {"gallery/index.md": "\n".join(lines), **files}


def head(text: str) -> tuple[str, str, str]:
    """Title, description, and when and where it was made, of the Markdown of a leaderboard."""
    found = re.match(r"# (.+)\n\n(?:(.+)\n\n)?(Made on .+) by:\n", text)
    if found is None:
        raise BoardError("a leaderboard does not begin as `cryobench sweep --publish` writes it")
    return found[1], found[2] or "", found[3]


def published_frame(csv: Path) -> pd.DataFrame:
    """The table of a published leaderboard as `leaderboard.table.leaderboard` gives it.

    csv: the file, with the Markdown beside it. Metrics are those that the Markdown shows. Cells that were not run are
    left out. Raises `BoardError` if the two files do not have the same comparisons.
    """
    text = csv.with_suffix(".md").read_text(encoding="utf-8")
    table = pd.read_csv(csv, dtype="str", keep_default_na=False, na_values=[""])
    table = table[table["status"] != NOT_RUN].reset_index(drop=True)
    metrics = _metrics(text, [name for name in table.columns if {f"{name}_lo", f"{name}_hi"} <= set(table.columns)])
    names = [*LEADING, *(column["name"] + end for column in metrics for end in ("", "_lo", "_hi")), *TRAILING]
    columns = {name: _column(table.get(name), name, len(table)) for name in names}
    groups = table[COMPARISON].ne(table[COMPARISON].shift()).any(axis=1).cumsum() - 1
    tables = re.split(r"^### ", text.partition("\n### all comparisons")[0], flags=re.MULTILINE)[1:]
    if len(tables) != groups.nunique():
        raise BoardError(f"{csv.name} has {groups.nunique()} comparisons, {csv.stem}.md {len(tables)}")
    floors = [_floors(each) for each in tables]
    floor = [solver in floors[group] for solver, group in zip(columns["solver"], groups, strict=True)]
    index = [groups, floor, columns["solver"] == CEILING, ["float32"] * len(table), [""] * len(table)]
    frame = pd.DataFrame(columns).set_index(pd.MultiIndex.from_arrays(index, names=INDEX))
    unit = "data set" if re.search(r", \d+ data sets? · ", text) else "image"
    frame.attrs |= {"by": _ranked_by(text), "columns": metrics, "unit": unit}
    return frame


def _column(texts: pd.Series | None, name: str, rows: int) -> pd.Series:
    """A column of the CSV in the type of the table; one that an older version did not write is empty."""
    kind = DTYPES.get(name, "float64")
    if texts is None:
        return pd.Series(None, range(rows), dtype=kind)
    if kind == "boolean":
        return texts.map({"True": True, "False": False}).astype(kind)
    if kind == "str":
        return texts.map(from_cell, na_action="ignore").astype(kind)
    return pd.to_numeric(texts).astype(kind)


def _cells(row: str) -> list[str]:
    """The cells of a row of a Markdown table, without escapes."""
    return [re.sub(r"\\(.)", r"\1", cell).strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def _heads(text: str) -> list[list[str]]:
    """The heads of the tables of comparisons, which begin with the rank and the solver."""
    return [found for found in map(_cells, re.findall(r"^\| \\?#.*\|$", text, re.MULTILINE)) if found[1] == "solver"]


def _metrics(text: str, known: list[str]) -> list[dict[str, Any]]:
    """The metrics that the Markdown shows with their directions and units, in the order of the CSV."""
    found: dict[str, dict[str, Any]] = {}
    for cell in (cell for cells in _heads(text) for cell in cells):
        name, *rest = cell.removesuffix(INTERVAL).split(" ")
        if name in known:
            direction = DIRECTIONS.get(rest[0], "none") if rest else "none"
            unit = " ".join(rest[1:] if direction != "none" else rest)
            found[name] = {"name": name, "direction": direction, "unit": unit}
    return [found[name] for name in known if name in found]


def _ranked_by(text: str) -> str:
    """The metric of the ranking: the column after the solver."""
    return _heads(text)[0][2].split(" ")[0]


def _floors(table: str) -> set[str]:
    """The solvers of a table that are marked as floors."""
    floor = " (floor)"
    cells = [row[1] for row in map(_cells, re.findall(r"^\|.*\|$", table, re.MULTILINE)) if len(row) > 1]
    return {cell.removesuffix(floor) for cell in cells if cell.endswith(floor)}
