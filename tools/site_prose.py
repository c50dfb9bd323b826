"""Equations within the sentences of docstrings, which are not marked there.

`x_0`, `A^T y`, `sigma` and `y = A x` are found as runs of what only equations have. Where a run does not convert, the
sentence stays as it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection

from site_equations import FUNCTIONS, GREEK, LIMITS, LOWEST, TOKEN, EquationError, inline, is_text

_TOKEN = re.compile(rf"(?P<genitive>'s\b)|{TOKEN.pattern}|(?P<other>.)")
_STRONG = re.compile(rf"[=^_~]|\|\||<-|sqrt| / |\b({'|'.join(GREEK)})\b")
"""What makes a run an equation."""
_BETWEEN = {"=", "+", "*", "/", "~", ",", "<-", "->", "<=", ">=", "_", "^"}
_NO_START = _BETWEEN | {")", "]", "}", ">", "'"}
_NO_END = (_BETWEEN | {"(", "[", "{", "<", "-"}) - {"*"}


def with_equations(text: str, plain: Callable[[str], str], names: Collection[str] = ()) -> str:
    """Plain text with its equations as MathML and the rest through `plain`.

    An equation is a run of numbers, letters, names of functions and of Greek letters, and marks, that has a relation, a
    script, a norm, a root, a fraction or a Greek letter. names: letters that are variables where they stand alone too.
    """
    made, last = [], 0
    for start, end in _runs(text):
        run = text[start:end]
        if _STRONG.search(run) or (run in names and _is_variable(text, start, end)):
            try:
                mark = text[end:].removesuffix(text[end:].lstrip(".,;:)?"))
                math = inline(run, mark)
            except EquationError:  # prose that only looks like an equation
                continue
            made += [plain(text[last:start]), math]
            last = end + len(mark)
    return "".join([*made, plain(text[last:])])


def variables(text: str) -> set[str]:
    """The single letters in the equations of plain text, or in an indented paragraph, which is one."""
    runs = [text] if text.startswith("    ") else [text[start:end] for start, end in _runs(text)]
    return {name for run in runs if _STRONG.search(run) for name in re.findall(r"\b[A-Za-z]\d*(?![A-Za-z])", run)}


def _runs(text: str) -> list[tuple[int, int]]:
    """Where runs of tokens that may be an equation start and end."""
    found: list[tuple[int, int]] = []
    run: list[re.Match[str]] = []
    depth = 0
    for match in _TOKEN.finditer(text):
        if match.lastgroup == "space":
            continue
        if _may_belong(match, text, depth):
            run.append(match)
            depth += _opened(match, text)
        else:
            found += _trimmed(run, text)
            run, depth = [], 0
    return found + _trimmed(run, text)


def _may_belong(match: re.Match[str], text: str, depth: int) -> bool:
    """Whether a token may be part of an equation. depth: the number of open brackets."""
    own, after = match[0], text[match.end() :][:1]
    if match.lastgroup == "word":
        constant = len(own) > 1 and own.isupper() and after == "_"  # such as CRYOBENCH_CACHE
        return after == "^" or not (is_text(own) or constant)
    if own == ":":
        return depth > 0 and text[match.start() - 1] == " "  # of a set
    return match.lastgroup not in ("genitive", "other") and own not in (";", ".", "...") and (own != "," or depth > 0)


def _opened(match: re.Match[str], text: str) -> int:
    """How many brackets a token opens; -1 if it closes one."""
    own = match[0]
    if own == "<":
        return int(text[match.end() :][:1].strip() != "")
    if own == ">":
        return -int(text[match.start() - 1] != " ")
    return (own in ("(", "[", "{")) - (own in (")", "]", "}"))


def _trimmed(run: list[re.Match[str]], text: str) -> list[tuple[int, int]]:
    """Where a run starts and ends without what belongs to the prose around it; nothing if nothing is left of it, or if
    it is part of a word."""
    while run and (_is_prose_before(run, text) or _is_prose_after(run, text)):
        run = run[1:] if _is_prose_before(run, text) else run[:-1]
    if not run:
        return []
    start, end = run[0].start(), run[-1].end()
    part_of_word = re.search(r"[\w'=-]$", text[:start]) or re.match(r"[\w-]", text[end:])
    return [] if part_of_word else [(start, end)]


def _is_prose_before(run: list[re.Match[str]], text: str) -> bool:
    first, count = run[0][0], Counter(match[0] for match in run)
    if first in {*FUNCTIONS, *LIMITS} - {"Re"}:
        return text[run[0].end() :][:1] not in ("(", "_")
    return first in _NO_START or (first == "(" and count["("] > count[")"])


def _is_prose_after(run: list[re.Match[str]], text: str) -> bool:
    last, count = run[-1][0], Counter(match[0] for match in run)
    article = len(run) > 1 and run[-2][0] not in LOWEST and _is_article(text, *run[-1].span())
    return (last in _NO_END or last in {*FUNCTIONS, *LIMITS} or (last == ")" and count[")"] > count["("])
            or article)  # fmt: skip


def _is_variable(text: str, start: int, end: int) -> bool:
    """Whether a letter is a variable, and no article or initial, nor the cross of `3` x `3`."""
    initial = text[start:end].isupper() and re.match(r"\. ?\S", text[end:])
    return not (initial or _is_article(text, start, end) or text.strip() == "x")


def _is_article(text: str, start: int, end: int) -> bool:
    """Whether a letter is "a" before a word, or "A" where a sentence begins."""
    if text[start:end] not in ("a", "A") or not re.match(r" [a-z]{2}", text[end:]):
        return False
    return text[start] == "a" or re.search(r"(^|[.:?] *)$", text[:start]) is not None
