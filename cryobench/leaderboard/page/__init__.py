"""A leaderboard as one HTML file without dependencies (`figures.page`). The script builds tables and plots from compact
data, on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.resources import files
from itertools import islice
from pathlib import Path

import pandas as pd

from cryobench import environment
from cryobench.figures.page import assembled
from cryobench.leaderboard.page.content import page_data
from cryobench.leaderboard.page.embedded import embed
from cryobench.record import Record

SCRIPTS = ("data", "format", "marks", "charts", "table", "pictures", "main")
"""The parts of the script, in order; they are concatenated into one function."""

MAX_DETAILED = 20_000
"""Maximum number of rows for which a page has all details: about 10 MB."""


def to_page(
    frame: pd.DataFrame, records: Iterable[Record], find: Callable[[str], Path | None], *, made: str = ""
) -> str:
    """The page of a leaderboard.

    frame: from `leaderboard.table.leaderboard`, with its index and attributes; rows may have been removed. records:
    those of the leaderboard, in any order. find: returns the run folder of a record by its hash, for ring correlations
    and images. made: when and with what the results were made, shown in the place of the version of cryobench that
    writes the page. With more than 20,000 rows, the page has intervals of the ranking metric only, and plots and images
    of the first 20,000 records only.
    """
    by_hash = {record.hash: record for record in islice(records, MAX_DETAILED)}
    of_rows = [by_hash.get(hash) for hash in frame.index.get_level_values("hash")]
    data = page_data(frame, of_rows, intervals=len(frame) <= MAX_DETAILED)
    data |= embed(of_rows, data["comparisons"]["row"], find)
    data["left_out"] += max(len(frame) - MAX_DETAILED, 0)
    data["version"], data["made"] = environment.version(), made
    style = _part("page.css")
    parts = "\n".join(_part(f"{name}.js") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{parts}\n}})();'
    return assembled(_part("page.html"), style, script, data)


def _part(name: str) -> str:
    return (files(__name__) / "static" / name).read_text(encoding="utf-8")
