"""Write the pages of the documentation site into a folder, for MkDocs.

    uv run --group docs python tools/site_pages.py build/pages
    uv run --group docs mkdocs build --strict

The pages are README.md, docs/, the log of the benchmarks, the published leaderboards and the project's pages, with
links that hold in the site; a gallery of the leaderboards; the notebooks with what their cells print and draw; and a
reference of the registered components and of the public names, from their docstrings, with equations as MathML and a
figure of what the component does. A link to a file that is not a page becomes its text: the site does not depend on the
address of the repository.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import site_notebooks
from site_boards import gallery
from site_equations import display
from site_figures import Figure, figure
from site_prose import variables, with_equations

import cryobench
import cryobench.core
from cryobench.registry import KINDS, installed
from cryobench.spec import fields_of, first_field

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
HOME = "index.md"
LOG = Path("benchmarks/log.md")
NOTEBOOKS = ROOT / "docs" / "notebooks"
_CODE = r"(?<!`)(?P<ticks>`+)(?!`)(?:(?!\n\s*\n)[\s\S])+?(?<!`)(?P=ticks)(?!`)"
_CODE_OR_LINK = re.compile(_CODE + r"|(?P<image>!?)\[(?P<label>(?:`[^`]*`|[^\]`])*)\]\((?P<target>[^)\s]+)\)")
_CODE_SPAN = re.compile(r"(`[^`\n]+`)")
_SPECIAL = str.maketrans(
    {**{char: f"\\{char}" for char in "\\*_[]"}, "&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
)


def sources() -> dict[Path, str]:
    """The place in the site of each page and picture, by its path in the repository."""
    found = {Path("README.md"): HOME, LOG: LOG.as_posix()} | {Path(name): name.lower() for name in PROJECT}
    found |= {path.relative_to(ROOT): path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*")
              if path.suffix in (".md", ".png", ".css")}  # fmt: skip
    found |= {path.relative_to(ROOT): f"notebooks/{path.stem}.md" for path in NOTEBOOKS.glob("*.ipynb")}
    return found | {
        path.relative_to(ROOT): f"leaderboards/{path.name}" for path in (ROOT / "leaderboards").glob("*.md")
    }


def relinked(text: str, source: Path, places: dict[Path, str]) -> str:
    """The text of a page with links to other pages as they are in the site; other relative links become their text."""

    def link(found: re.Match[str]) -> str:
        if found["ticks"]:
            return found[0]
        image, label, target = found["image"], found["label"], found["target"]
        path, hash_, anchor = target.partition("#")
        if "://" in target or not path:
            return found[0]
        named = Path(os.path.normpath(source.parent / path))
        place = places.get(named) or places.get(named / "README.md")
        if place is None:
            return label
        here = Path(places[source]).parent
        return f"{image}[{label}]({Path(os.path.relpath(place, here)).as_posix()}{hash_}{anchor})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)  # code has no links
    return "".join(part if part.startswith("```") else _CODE_OR_LINK.sub(link, part) for part in parts)


def escaped(text: str, names: Collection[str] = ()) -> str:
    """Plain text as Markdown, except for `code`; equations are MathML. names: of variables that stand alone."""
    return "".join(
        part if part.startswith("`") else with_equations(part, lambda own: own.translate(_SPECIAL), names)
        for part in _CODE_SPAN.split(text)
    )


def documented(doc: str | None) -> str:
    """A docstring as Markdown with its equations as MathML; indented lines are equations.

    Raises `EquationError` for an indented line that does not convert.
    """
    names = variables_of(doc)
    return "\n\n".join(
        display(part) if is_equation(part) else escaped(" ".join(part.split()), names) for part in paragraphs(doc)
    )


def paragraphs(doc: str | None) -> list[str]:
    """The paragraphs of a docstring."""
    return inspect.cleandoc(doc or "").split("\n\n")


def is_equation(paragraph: str) -> bool:
    """Whether all lines of a paragraph are indented."""
    return paragraph != "" and all(line.startswith("    ") for line in paragraph.splitlines())


def variables_of(doc: str | None) -> set[str]:
    """The single letters in the equations of a docstring."""
    return {name for part in paragraphs(doc) for name in variables(_CODE_SPAN.sub("", part))}


def component(kind: str, name: str, shown: str = "") -> str:
    """The page of a registered component. shown: its figure, or why there is none, as Markdown."""
    registry = installed()
    cls = registry.get(kind, name)
    lines = [f"# {name}", "", documented(cls.__doc__), "", *([shown, ""] if shown else [])]
    names = variables_of(cls.__doc__)
    fields = fields_of(cls)
    if fields:
        lines += ["| parameter | type | default | meaning |", "|:--|:--|:--|:--|"]
        for field in fields:
            default = "required" if field.required else value_text(field.default)
            meaning = escaped(" ".join(field.doc.split()), names)
            lines.append(f"| `{field.name}` | {escaped(field.type_name)} | {default} | {meaning} |")
        lines.append("")
    if (first := first_field(cls)) is not None:
        lines += [f"`{name}:VALUE` sets `{first.name}`.", ""]
    return "\n".join([*lines, f"`{registry.origins(kind, name)[0].target}`", ""])


def value_text(value: Any) -> str:
    """A default as in a spec."""
    if value is None:
        return "none"
    text = str(installed().spec_of(value)) if hasattr(value, "__dataclass_fields__") else str(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`" if text else "empty"


def names_of(module: Any, title: str, about: str) -> str:
    """A page of the public names of a module."""
    lines = [f"# {title}", "", about, ""]
    for name in module.__all__:
        found = getattr(module, name)
        lines += [f"## {name}", ""]
        if inspect.isclass(found) or inspect.isfunction(found):
            lines += ["```python", signature(name, found), "```", ""]
            lines += [documented(found.__doc__), ""]
            for method, function in sorted(vars(found).items()) if inspect.isclass(found) else ():
                if inspect.isfunction(function) and not method.startswith("_") and function.__doc__:
                    lines += [f"**`{method}`**: {documented(function.__doc__)}", ""]
        else:
            lines += [f"`{found!r}`", ""]
    return "\n".join(lines)


def signature(name: str, found: Any) -> str:
    """`solve(method, measured_by, y, *, shape=None)`, without types."""
    try:
        given = inspect.signature(found)
    except (TypeError, ValueError):
        return name
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in given.parameters.values()]
    return name + str(given.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def reference(drawn: bool) -> Iterator[tuple[str, str | bytes]]:
    """The pages of the reference, and the pictures of their figures if these are drawn, with their places."""
    index = ["# Reference", "", "What is registered, by kind, and the public names of Python.", ""]
    index += ["- [cryobench](python.md)", "- [cryobench.core](core.md)", ""]
    for kind in KINDS:
        names = [name for name in installed().names(kind)
                 if installed().origins(kind, name)[0].distribution == "cryobench"]  # fmt: skip
        index += [f"## {kind}", ""]
        for name in names:
            doc = inspect.cleandoc(installed().get(kind, name).__doc__ or "").split("\n\n")[0]
            index.append(f"- [{name}]({kind}/{name}.md): {escaped(' '.join(doc.split()), variables_of(doc))}")
            made = figure(kind, name) if drawn else None
            shown, pictures = made.markdown(name) if isinstance(made, Figure) else (made or "", {})
            yield f"reference/{kind}/{name}.md", component(kind, name, shown)
            yield from ((f"reference/{kind}/{file}", picture) for file, picture in pictures.items())
        index.append("")
    yield "reference/index.md", "\n".join(index)
    yield (
        "reference/python.md",
        names_of(cryobench, "cryobench", "`import cryobench as cb`: the functions of the command line."),
    )
    yield "reference/core.md", names_of(cryobench.core, "cryobench.core", "What plugins derive from and are given.")


def listing(title: str, folder: str, pages: dict[str, str]) -> str:
    """A page with links to the pages of a folder, by their titles."""
    places = sorted(place for place in pages if place.startswith(f"{folder}/"))
    links = [f"- [{pages[place].splitlines()[0].removeprefix('# ')}]({Path(place).name})" for place in places]
    return "\n".join([f"# {title}", "", *links, ""])


def notebooks(places: dict[Path, str], outputs: bool) -> dict[str, str | bytes]:
    """The pages of the notebooks and their pictures by their places. outputs: whether the notebooks are run."""
    files: dict[str, str | bytes] = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        source = path.relative_to(ROOT)
        notebook = site_notebooks.run(path) if outputs else site_notebooks.read(path)
        files[places[source]], pictures = site_notebooks.page(
            notebook, path.stem, lambda text, source=source: relinked(text, source, places)
        )
        files |= {f"notebooks/{name}": picture for name, picture in pictures.items()}
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the pages; it is emptied first")
    parser.add_argument(
        "--no-run", action="store_true", help="run neither notebooks nor components: no outputs, no figures"
    )
    given = parser.parse_args()
    folder = given.folder
    if folder.exists() and not (folder / HOME).exists() and any(folder.iterdir()):
        print(f"{folder} is not a folder of pages; give an empty or a new one", file=sys.stderr)
        return 2
    shutil.rmtree(folder, ignore_errors=True)
    places = sources()
    pages = {place: relinked((ROOT / path).read_text(encoding="utf-8"), path, places)
             for path, place in places.items() if path.suffix == ".md"}  # fmt: skip
    pages["adr/index.md"] = listing("Decisions", "adr", pages)
    pages["leaderboards/index.md"] = listing("Published leaderboards", "leaderboards", pages)
    made = pages | dict(reference(drawn=not given.no_run)) | gallery(ROOT / "leaderboards")
    made |= notebooks(places, outputs=not given.no_run)
    for place, content in made.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    for path, place in places.items():
        if not place.endswith(".md"):
            shutil.copyfile(ROOT / path, folder / place)
    print(f"{sum(place.endswith('.md') for place in made)} pages in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
