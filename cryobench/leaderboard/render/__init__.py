"""A leaderboard as Rich tables, CSV, JSON, Markdown, LaTeX and a fragment of HTML. Nothing is printed here.

Every comparison is one table under a title line, below it what its reader must know. The metric that ranks comes first,
with its interval. CSV and JSON hold all columns. Where there are several comparisons, a summary over them follows.
"""

from cryobench.leaderboard.render.flat import to_csv, to_json
from cryobench.leaderboard.render.fragment import to_html
from cryobench.leaderboard.render.latex import to_latex
from cryobench.leaderboard.render.markdown import to_markdown
from cryobench.leaderboard.render.terminal import rich_tables

__all__ = ["rich_tables", "to_csv", "to_html", "to_json", "to_latex", "to_markdown"]
