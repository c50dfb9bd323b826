"""Renderings of a leaderboard: Rich tables, CSV, JSON, Markdown, LaTeX, a fragment of HTML and, in `chart`, a figure.
Nothing is printed here.

Every comparison is one table under a title line, with remarks below. The ranking metric comes first, with its interval.
CSV and JSON hold all columns. A summary follows where there are several comparisons.
"""

from cryobench.leaderboard.render.markup import escape_markdown, to_html, to_latex, to_markdown
from cryobench.leaderboard.render.terminal import rich_tables
from cryobench.results.tables import to_csv, to_json

__all__ = ["escape_markdown", "rich_tables", "to_csv", "to_html", "to_json", "to_latex", "to_markdown"]
