"""The pages of the documentation site. CI builds the site itself, strictly."""

from __future__ import annotations

import csv
import inspect
import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image
from site_tools import own, site_tool

import cryobench
import cryobench.core
from cryobench.registry import KINDS, installed
from cryobench.spec import fields_of

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return site_tool("site_pages")


@pytest.fixture(scope="module")
def pages(tool, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["site_pages.py", str(folder), "--no-run"])
        with pytest.MonkeyPatch.context() as quick:
            quick.setattr(tool, "gallery", lambda folder: {})
            assert tool.main() == 0
        assert tool.main() == 0  # its own pages may be replaced
        (folder / "index.md").rename(folder / "mine.md")
        assert tool.main() == 2  # a folder of something else may not
        (folder / "mine.md").rename(folder / "index.md")
    return folder


def test_every_component_has_a_page_with_its_parameters_and_the_index_names_it(pages):
    index = (pages / "reference" / "index.md").read_text()
    for kind in KINDS:
        for name in own(kind):
            page = (pages / "reference" / kind / f"{name}.md").read_text()
            assert f"- [{name}]({kind}/{name}.md): " in index
            for field in fields_of(installed().get(kind, name)):
                assert f"| `{field.name}` | " in page, (kind, name)


def test_every_public_name_has_a_section_with_its_docstring(tool, pages):
    for module, place in ((cryobench, "python"), (cryobench.core, "core")):
        page = (pages / "reference" / f"{place}.md").read_text()
        assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == list(module.__all__)
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.isclass(found) or inspect.isfunction(found):
                assert tool.documented(found.__doc__) in page, name


def test_links_lead_to_pages(pages):
    for path in pages.rglob("*.md"):
        text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"(?<!`)\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                assert (path.parent / target).is_file(), (path.name, target)


def test_the_navigation_has_every_page_of_the_docs(pages):
    text = (ROOT / "mkdocs.yml").read_text()
    nav = yaml.safe_load(re.sub(r"!!python\S*", "", text))["nav"]
    named = re.findall(r"[\w/]+\.md", str(nav))
    assert all((pages / name).is_file() for name in named)
    own = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert {name for name in named if "/" not in name} >= own
    published = (pages / "leaderboards" / "index.md").read_text()
    assert all(f"({path.name})" in published for path in (ROOT / "leaderboards").glob("*.md"))


def test_links_to_files_that_are_no_pages_become_text(tool):
    places = tool.sources()
    text = "[a](../cryobench/api.py) [b](data.md#x) [c](../leaderboards/pixel.md) [d](https://a.b) ![e](demo.png)\n"
    shown = tool.relinked(text + "```\n[f](data.md)\n```\n", Path("docs/adr/0001-one-spectral-filter.md"), places)
    assert shown.splitlines()[0].split() == ["a", "b", "c", "[d](https://a.b)", "e"]
    assert "[f](data.md)" in shown
    shown = tool.relinked(text, Path("docs/statistics.md"), places)
    assert shown.split() == ["a", "[b](data.md#x)", "[c](leaderboards/pixel.md)", "[d](https://a.b)", "![e](demo.png)"]
    shown = tool.relinked("[g](docs/data.md) [h](CONTRIBUTING.md)", Path("README.md"), places)
    assert shown.split() == ["[g](data.md)", "[h](contributing.md)"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`x[0](y)` and [a](docs/data.md)", "`x[0](y)` and [a](data.md)"),
        ("``a `b[0](y)` c`` [a](docs/data.md)", "``a `b[0](y)` c`` [a](data.md)"),
        ("`x\n[0](y)`", "`x\n[0](y)`"),
        ("[`x[0](y)` here](docs/data.md)", "[`x[0](y)` here](data.md)"),
        ("[`api`](cryobench/api.py)", "`api`"),
        (
            "a lone ` of a paragraph\n\n[a](docs/data.md) and another `",
            "a lone ` of a paragraph\n\n[a](data.md) and another `",
        ),
    ],
)
def test_code_within_a_line_is_no_link(tool, text, shown):
    assert tool.relinked(text, Path("README.md"), tool.sources()) == shown


def test_docstrings_are_text_and_equations_mathml(tool):
    shown = tool.documented("A <b>|x|_1</b> of `a*b`:\n\n    y = A x\n\nand *more*\n[text](link).")
    assert shown == (
        "A &lt;b&gt;&#124;x&#124;\\_1&lt;/b&gt; of `a*b`:\n\n"
        '<div class="equations">\n<div><math displaystyle="true"><mi>y</mi><mo>=</mo><mi>A</mi><mi>x</mi></math></div>'
        "\n</div>\n\nand \\*more\\* \\[text\\](link)."
    )


def test_the_gallery_has_a_page_and_a_figure_of_each_published_board(pages):
    gallery = (pages / "gallery" / "index.md").read_text()
    for path in sorted((ROOT / "leaderboards").glob("*.csv")):
        name, text = path.stem, path.with_suffix(".md").read_text()
        assert f"]({name}.html)" in gallery
        assert f"![{text.splitlines()[0][2:]}: the first comparison]({name}.png)" in gallery
        assert re.search(r"^Made on .+(?= by:$)", text, re.MULTILINE)[0] in gallery
        with Image.open(pages / "gallery" / f"{name}.png") as figure:
            assert np.asarray(figure.convert("L")).std() > 5  # something is drawn


def test_pages_of_published_boards_have_the_rows_of_the_csv_and_the_average_ranks_of_the_markdown(pages):
    """The Markdown was written from the records, with values of images, when the board was published."""
    for path in sorted((ROOT / "leaderboards").glob("*.csv")):
        html = (pages / "gallery" / f"{path.stem}.html").read_text()
        (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
        data = json.loads(text)
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["status"] != "not run"]
        solver = data["texts"]["solver"]
        assert [solver["distinct"][code] for code in solver["codes"]] == [row["solver"] for row in rows]
        for name in (data["by"], f"{data['by']}_lo", f"{data['by']}_hi", "rank", "seconds_per_image", "diff_leader"):
            stated = [float(row[name]) if row[name] else None for row in rows]
            if any(value is not None for value in stated):
                shown = [float(value) if isinstance(value, str) else value for value in data["numbers"][name]]
                assert shown == [value and pytest.approx(value, rel=1e-5) for value in stated]
        markdown = path.with_suffix(".md").read_text()
        assert f"average rank in {data['by']} ".replace("_", r"\_") in markdown
        shown = re.findall(
            r"^\| (\S.*?) \| (\S+) \| (\d+) \| (.+?) \|$", markdown.split("### all comparisons")[1], re.MULTILINE
        )
        (summary,) = data["summaries"]
        assert [[re.sub(r"\\(.)", r"\1", cell) for cell in row] for row in shown] == summary["rows"], path.stem
        titles = re.findall(r"^### (.* · .*)$", markdown, re.MULTILINE)
        assert len(titles) == len(data["comparisons"]["operator"])
        for title, operator, context in zip(
            titles, data["comparisons"]["operator"], data["comparisons"]["context"], strict=True
        ):
            plain = re.sub(r"\\(.)", r"\1", title).split(" · ")
            assert plain[0] == operator
            assert set(", ".join(plain[2:]).split(", ")) >= set(context.replace(" · ", ", ").split(", ")[1:])


def test_a_board_whose_files_have_other_comparisons_is_refused(tool, tmp_path):
    boards = sys.modules["site_boards"]
    for suffix in (".csv", ".md"):
        text = (ROOT / "leaderboards" / f"fourier{suffix}").read_text()
        (tmp_path / f"fourier{suffix}").write_text(text)
    page = tmp_path / "fourier.md"
    kept, _, rest = page.read_text().partition("### fourier:0.5,")
    page.write_text(kept + "### all comparisons" + rest.partition("### all comparisons")[2])
    with pytest.raises(boards.BoardError, match=r"fourier\.csv has 6 comparisons, fourier\.md 4"):
        boards.published_frame(tmp_path / "fourier.csv")
    page.write_text("# A board\n")
    with pytest.raises(boards.BoardError, match="does not begin as"):
        boards.gallery(tmp_path)


def run_notebook(tool: ModuleType, name: str) -> str:
    """The page of a notebook that was run. Its pictures are pictures."""
    text, pictures = tool.site_notebooks.page(tool.site_notebooks.run(tool.NOTEBOOKS / f"{name}.ipynb"), name, str)
    assert re.findall(r"!\[.*?\]\((.*?)\)", text) == list(pictures)
    for picture in pictures.values():
        with Image.open(io.BytesIO(picture)) as image:
            assert np.asarray(image.convert("L")).std() > 5
    return text


def test_notebooks_are_stored_without_outputs():
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert cells
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells), path.name


@pytest.mark.slow
def test_the_quickstart_shows_the_board_that_the_same_run_gives(tool):
    text = run_notebook(tool, "quickstart")
    records = cryobench.run(["dct", "wavelet"], "sumpool:16", images="0:8")
    for record in records:
        assert re.search(rf"<td>{record.solver}( \(floor\))?</td>\s*<td>{np.mean(record.values['psnr']):.2f} \[", text)
    assert text.count(".png)") == 2  # the figure and the errors


@pytest.mark.slow
def test_the_notebook_of_particles_reconstructs_what_was_simulated_in_it(tool):
    text = run_notebook(tool, "your_particles")
    assert "measurements (4, 1, 64, 64) images (4, 1, 64, 64)" in text
    assert text.count('<div class="cryobench-leaderboard">') == 1
    assert text.count(".png)") == 2


@pytest.mark.slow
def test_the_solver_of_the_notebook_converges_to_the_least_norm_solution(tool):
    text = run_notebook(tool, "write_a_solver")
    rows = re.findall(r"<td>(10+)</td>\s*<td>(.*?)</td>\s*<td>(.*?)</td>\s*<td>(.*?)</td>", text)
    assert [int(row[0]) for row in rows] == [10, 100, 1000]
    misfit, distance, _ = np.array([row[1:] for row in rows], dtype=float).T
    assert (np.diff(misfit) < 0).all()
    assert (np.diff(distance) < 0).all()
    assert distance[-1] < 1e-2
    assert "cryobench-richardson/pyproject.toml" in text
    assert text.count(".png)") == 1
