"""A leaderboard as one HTML file that needs nothing else: no server, no network, no framework.

Style, script and data are inside it. A Content-Security-Policy names the two by their hashes and forbids all the rest,
so that no request can leave the page, and no text of a record can become script. Tables and plots are made by the
script, of compact data, when they are looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import pandas as pd

from cryobench import environment
from cryobench.leaderboard.page.content import page_data
from cryobench.leaderboard.page.embedded import embed
from cryobench.record import Record

SCRIPTS = ("data", "format", "marks", "charts", "boxes", "table", "pictures", "main")
"""The parts of the script, in order; together they are one function."""

MOST_DETAILED = 20_000
"""Rows up to which a page has all there is to say of each: 10 MB or so."""


def to_page(frame: pd.DataFrame, records: Sequence[Record], find: Callable[[str], Path | None]) -> str:
    """The page of a leaderboard.

    frame: of `leaderboard.table.leaderboard`, its index and attributes kept; rows may have been taken out. records:
    what it was made of, in any order. find: the run folder of a record by its hash; a record without one has no
    ring correlations and no images. Of more than 20,000 rows the page has the tables whole, with the intervals of the
    ranking metric alone, and plots and images of the first 20,000 records.
    """
    by_hash = {record.hash: record for record in records[:MOST_DETAILED]}
    of_rows = [by_hash.get(hash) for hash in frame.index.get_level_values("hash")]
    told = page_data(frame, of_rows, intervals=len(frame) <= MOST_DETAILED)
    found = embed(of_rows, told["comparisons"]["row"], find)
    found.left_out += max(len(records) - MOST_DETAILED, 0)
    data = told | asdict(found) | {"version": environment.version()}
    style = _part("page.css")
    script = _script()
    parts = {
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "data": _harmless(json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("page.html"))


def _script() -> str:
    parts = "\n".join(_part(f"{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}\n}})();'


def _part(name: str) -> str:
    return (files(__name__) / "static" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded from anywhere; this style and this script may be used, and images that the page holds."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _harmless(text: str) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or opens a comment."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
