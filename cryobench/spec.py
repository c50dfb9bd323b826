"""The spec language: ``sumpool:16,count=50,mask=random_binary,mask.prob=0.3`` <-> a frozen dataclass.

    spec   =  single ("@" spec)                     a@b is a after b
    single =  name [":" item] ("," item)*
    item   =  value | key "=" value                 only the first item may omit its key
    key    =  field ("." field)*

The bare first value binds the component's first field that is not marked `ByName` (`first_field`). A value that
contains ``,`` ``@`` or ``"``, is empty, starts or ends with a blank, or looks like ``key=value`` is double-quoted,
with ``\\"`` and ``\\\\`` inside the quotes. Nothing else needs quotes. ``parse(str(spec)) == spec`` for every spec.

Types, defaults and docs come only from the component's annotations:

    block: Annotated[int, "side of the pooled block, in pixels"] = 16
    mask: Annotated[PixelMask, Component("masks"), "what multiplies the image"] = RandomBinary()
    lam: Annotated[float | Literal["auto"], Range(1e-3, 10, log=True), "weight, with its search range"] = "auto"

This module is the only parser. It imports only the standard library.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cryobench.errors import SpecError, UnknownName, quoted, shortened

_NAME = re.compile(r"[A-Za-z][\w-]*")
_KEY = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_KEYED = re.compile(rf"\s*({_KEY.pattern})\s*=(.*)", re.DOTALL)
_PATH = re.compile(r"[.~/]|[^:,@]*[/\\]")
_NONE = "none"
MAX_DEPTH = 32
"""Maximum number of operators in a composition, of dots in a key, and of components inside each other."""
_MAX_LENGTH = 100_000
"""Maximum number of characters of a spec."""
COMPOSED = "composed"
"""The name under which a kind registers its composition a@b: a component with the fields outer and inner."""


@dataclass(frozen=True)
class Component:
    """Annotation marker: this field holds another registered component, of the given kind.

    folder: name of the component to make when a path is given; the path is its first value. None allows no path.
    """

    kind: str
    folder: str | None = None


@dataclass(frozen=True)
class ByName:
    """Annotation marker: this field is given by name only; the bare first value of a spec skips it.

    For fields of a base class that precede the fields of a subclass, such as the prior of every diffusion solver:
    `ddnm:20` then sets `steps`. Inheritance does not determine this: `lam` in `tv:0.02` and `steps` in `ddnm:20` are
    inherited too. The order of the fields is part of the canonical text of a spec, and so of its hash.
    """


@dataclass(frozen=True)
class Range:
    """Annotation marker: `cryobench tune` searches this field from low to high.

    log: on a logarithmic scale. also: further values to try outside the range, such as "auto".
    """

    low: float
    high: float
    log: bool = False
    also: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if not (-math.inf < self.low < self.high < math.inf and (self.low > 0 or not self.log)):
            raise ValueError(f"{self}: expected low < high, both finite, and low > 0 on a logarithmic scale")

    def __str__(self) -> str:
        scale = " (log)" if self.log else ""
        return " or ".join([f"{as_text(self.low)} to {as_text(self.high)}{scale}", *map(as_text, self.also)])


@dataclass(frozen=True)
class Choice:
    """Annotation marker: `cryobench tune` tries these values for this field; by default all of a bool or Literal."""

    options: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return ", ".join(map(as_text, self.options))


@dataclass(frozen=True)
class Spec:
    """A parsed spec: a name, the bare first value, the keyed values in order, and the spec that it is applied after.

    Values are text; `bind` converts them to the types of a component.
    """

    name: str
    value: str | None = None
    params: tuple[tuple[str, str], ...] = ()
    after: Spec | None = None

    def __str__(self) -> str:
        items = [] if self.value is None else [_quote(self.value)]
        items += [f"{key}={_quote(value)}" for key, value in self.params]
        text = self.name + (":" + ",".join(items) if items else "")
        return text if self.after is None else f"{text}@{self.after}"


@dataclass(frozen=True)
class Field:
    """One parameter of a component, read from its annotations."""

    name: str
    type: Any
    default: Any
    doc: str
    kind: str | None
    folder: str | None = None
    search: Range | Choice | None = None
    """The values that `cryobench tune` tries; None if the field is not searched."""
    by_name: bool = False
    """Whether the bare first value of a spec skips this field."""

    @property
    def is_integer(self) -> bool:
        """Whether its numbers are integers."""
        return float not in _alternatives(self.type)

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def type_name(self) -> str:
        return f"{self.kind.removesuffix('s')} spec" if self.kind else _type_name(self.type)


# ---------------------------------------------------------------------------------------------- text <-> Spec


def parse(text: str) -> Spec:
    """Parse the text of a spec. Raises `SpecError`, quoting the text, if it is malformed."""
    if len(text) > _MAX_LENGTH:
        raise SpecError(f"spec {quoted(text)} is longer than {_MAX_LENGTH} characters")
    links = _split(text, "@", text)
    if len(links) > MAX_DEPTH:
        raise SpecError(f"spec {quoted(text)} has {len(links)} parts joined by '@'; give at most {MAX_DEPTH}")
    spec: Spec | None = None
    for link in reversed(links):
        spec = dataclasses.replace(_parse_single(link, text), after=spec)
    assert spec is not None
    return spec


def _parse_single(text: str, whole: str) -> Spec:
    head, *rest = _split(text, ",", whole)
    name, colon, first = head.partition(":")
    name = name.strip()
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"spec {quoted(whole)}: expected a component name such as 'sumpool' before ':' or ',', got {quoted(name)}"
        )
    value: str | None = None
    params: dict[str, str] = {}
    items = ([first] if colon else []) + rest
    for position, item in enumerate(items):
        keyed = _KEYED.fullmatch(item)
        if keyed:
            key, raw = keyed.groups()
            if key.count(".") > MAX_DEPTH:
                raise SpecError(f"spec {quoted(whole)}: {quoted(key)} has more than {MAX_DEPTH} dots")
            if key in params:
                raise SpecError(f"spec {quoted(whole)}: {quoted(key)} is given twice")
            params[key] = _unquote(raw, whole)
        elif position == 0 and colon:
            value = _unquote(item, whole)
        else:
            raise SpecError(
                f"spec {quoted(whole)}: expected key=value, got {quoted(item.strip())} "
                "(only the first value after ':' may omit its key; a value with a comma needs double quotes)"
            )
    return Spec(name, value, tuple(params.items()))


def _split(text: str, separator: str, whole: str) -> list[str]:
    """Split at separators outside double quotes."""
    parts, start, inside, i = [], 0, False, 0
    while i < len(text):
        if inside and text[i] == "\\":
            i += 1
        elif text[i] == '"':
            inside = not inside
        elif text[i] == separator and not inside:
            parts.append(text[start:i])
            start = i + 1
        i += 1
    if inside:
        raise SpecError(f"spec {quoted(whole)}: a double quote is not closed")
    return [*parts, text[start:]]


def _shown(spec: Spec) -> str:
    """A spec, for a message."""
    return shortened(str(spec))


def _quote(value: str) -> str:
    plain = value and value == value.strip() and not re.search(r'[,@"]', value) and not _KEYED.fullmatch(value)
    return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unquote(raw: str, whole: str) -> str:
    raw = raw.strip()
    if not raw.startswith('"'):
        if not raw:
            raise SpecError(f'spec {quoted(whole)}: a value is missing (write "" for an empty one)')
        if '"' in raw:
            raise SpecError(f"spec {quoted(whole)}: quote the whole value, not a part of it: {quoted(raw)}")
        return raw
    if len(raw) < 2 or not re.fullmatch(r'"(?:[^"\\]|\\.)*"', raw, re.DOTALL):
        raise SpecError(f"spec {quoted(whole)}: quote the whole value, not a part of it: {quoted(raw)}")
    return re.sub(r"\\(.)", r"\1", raw[1:-1], flags=re.DOTALL)


# ------------------------------------------------------------------------------------------- Spec <-> component


@cache
def fields_of(cls: type) -> tuple[Field, ...]:
    """The parameters of a component class, in order, read from its dataclass annotations."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        hint = hints[field.name]
        extras = get_args(hint)[1:] if get_origin(hint) is typing.Annotated else ()
        component = next((extra for extra in extras if isinstance(extra, Component)), None)
        search = next((extra for extra in extras if isinstance(extra, Range | Choice)), None)
        fields.append(
            Field(
                name=field.name,
                type=get_args(hint)[0] if extras else hint,
                default=field.default_factory() if callable(field.default_factory) else field.default,
                doc=" ".join(extra for extra in extras if isinstance(extra, str)),
                kind=component.kind if component else None,
                folder=component.folder if component else None,
                search=search and _completed(field.name, get_args(hint)[0], search),
                by_name=any(isinstance(extra, ByName) for extra in extras),
            )
        )
    return tuple(fields)


def first_field(cls: type) -> Field | None:
    """The field that the bare first value of a spec binds: the first that is not marked `ByName`, or None."""
    return next((field for field in fields_of(cls) if not field.by_name), None)


def _completed(name: str, expected: Any, search: Range | Choice) -> Range | Choice:
    """The marker with its options filled in. Raises `TypeError` if it does not fit the type of the field."""
    kinds = _alternatives(expected)
    if isinstance(search, Range):
        if not {int, float} & set(kinds):
            raise TypeError(f"{name}: Range requires a number, got {_type_name(expected)}")
        if float not in kinds and not (isinstance(search.low, int) and isinstance(search.high, int)):
            raise TypeError(f"{name}: the Range of an integer must have integer limits, got {search}")
        return search
    own = [(False, True) if kind is bool else get_args(kind) for kind in kinds
           if kind is bool or get_origin(kind) is Literal]  # fmt: skip
    options = search.options or tuple(option for options in own for option in options)
    if not options:
        raise TypeError(f"{name}: a Choice without options requires a bool or a Literal, got {_type_name(expected)}")
    return Choice(options)


def _alternatives(expected: Any) -> tuple[Any, ...]:
    """The types in a union, or the type itself if it is not a union."""
    return get_args(expected) if get_origin(expected) in (typing.Union, types.UnionType) else (expected,)


def bind(cls: type, spec: Spec, nested: Callable[[str, Spec], Any], suggest: Callable[[str, list[str]], str]) -> Any:
    """Make the component: an instance of the dataclass `cls` with the values of `spec`.

    `nested(kind, spec)` makes a component for a field marked `Component(kind)`; `suggest(name, known)` is the "did you
    mean" of an error message. Raises `SpecError` for unknown keys, and for missing or mistyped values.
    """
    fields, first = fields_of(cls), first_field(cls)
    texts = dict(spec.params)
    if spec.value is not None:
        if first is None:
            parameters = "parameters only by name" if fields else "no parameters"
            raise SpecError(f"{quoted(spec.name)} takes {parameters}, got {quoted(spec.value)}")
        if first.name in texts:
            raise SpecError(f"{_shown(spec)}: {first.name!r} is given twice, bare and by name")
        texts[first.name] = spec.value

    values: dict[str, Any] = {}
    for field in fields:
        own = texts.pop(field.name, None)
        inner = {key: texts.pop(key) for key in list(texts) if key.startswith(field.name + ".")}
        if field.kind is not None and own == _NONE and not inner and type(None) in get_args(field.type):
            values[field.name] = None
        elif field.kind is not None and (own is not None or inner):
            values[field.name] = _make_nested(spec, field, own, inner, nested)
        elif inner:
            raise SpecError(
                f"{_shown(spec)}: {field.name!r} is a {field.type_name} and has no parameter "
                f"{quoted(next(iter(inner)))}"
            )
        elif own is not None:
            values[field.name] = _convert(own, field.type, f"{spec.name}: {field.name}")
        elif field.required:
            raise SpecError(f"{quoted(spec.name)} needs {field.name!r} ({field.type_name}): {field.doc}")
    for key in texts:
        raise SpecError(f"{quoted(spec.name)} has no parameter {quoted(key)}; {suggest(key, [f.name for f in fields])}")
    return cls(**values)


def _make_nested(
    spec: Spec, field: Field, own: str | None, inner: dict[str, str], nested: Callable[[str, Spec], Any]
) -> Any:
    """The component of a nested field. If a folder is allowed, its class is checked too."""
    assert field.kind is not None
    if field.folder is None:
        return nested(field.kind, _nested_spec(spec, field, own, inner))
    try:
        base = _nested_spec(spec, field, own, inner)
        made = nested(field.kind, base)
    except (SpecError, UnknownName) as error:
        if own is None or _PATH.match(own) or not Path(own).is_dir():
            raise
        raise type(error)(f"{error}; for the folder {shortened(own)}, write {field.name}=./{shortened(own)}") from error
    allowed = [kind for kind in _alternatives(field.type) if isinstance(kind, type) and kind is not type(None)]
    if allowed and not isinstance(made, tuple(allowed)):
        expected = f"a {' or '.join(kind.__name__ for kind in allowed)}, such as {field.folder!r}"
        raise SpecError(f"{spec.name}: {field.name} expects {expected}, got {quoted(base.name)}")
    return made


def _nested_spec(spec: Spec, field: Field, own: str | None, inner: dict[str, str]) -> Spec:
    """The spec of a nested component: its own text, with the dotted keys of the outer spec added."""
    if own is None:
        raise SpecError(f"{_shown(spec)}: {quoted(next(iter(inner)))} needs its {field.name}; add {field.name}=NAME")
    base = Spec(field.folder, own) if field.folder is not None and _PATH.match(own) else parse(own)
    prefix = len(field.name) + 1
    params = dict(base.params) | {key[prefix:]: value for key, value in inner.items()}
    return dataclasses.replace(base, params=tuple(params.items()))


def unbind(component: Any, name_of: Callable[[Any], str], *, full: bool = False) -> Spec:
    """The canonical spec of a component: the values that differ from the defaults, or all of them when `full`.

    `name_of(component)` is the name under which its class is registered. A composition is written outer@inner. The
    first field is written bare unless it is nested or marked `ByName`; all others are written with their names. Hashes
    of results contain this text.
    """
    name = name_of(component)
    if name == COMPOSED:
        outer, inner = (unbind(part, name_of, full=full) for part in (component.outer, component.inner))
        return dataclasses.replace(outer, after=inner)
    value: str | None = None
    params: list[tuple[str, str]] = []
    for position, field in enumerate(fields_of(type(component))):
        current = getattr(component, field.name)
        if not full and current == field.default:
            continue
        if field.kind is not None and current is not None:
            inner = unbind(current, name_of, full=full)
            if inner.after is not None:
                params.append((field.name, str(inner)))
                continue
            params.append((field.name, inner.name))
            if inner.value is not None:
                first = fields_of(type(current))[0].name
                params.append((f"{field.name}.{first}", inner.value))
            params += [(f"{field.name}.{key}", text) for key, text in inner.params]
        elif position == 0 and not field.by_name:
            value = as_text(current)
        else:
            params.append((field.name, as_text(current)))
    return Spec(name, value, tuple(params))


def as_text(value: Any) -> str:
    """A value in the syntax of a spec."""
    if value is None:
        return _NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(as_text(item) for item in value)
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _convert(text: str, expected: Any, where: str) -> Any:
    """The text converted to a type. The types of a union are tried in order; `none` is None if None is allowed."""
    origin = get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        options = get_args(expected)
        if type(None) in options and text.lower() == _NONE:
            return None
        for option in options:
            if option is not type(None):
                try:
                    return _convert(text, option, where)
                except SpecError:
                    continue
    elif origin is Literal:
        for choice in get_args(expected):
            if text == str(choice):
                return choice
    elif origin is tuple:
        return tuple(_convert(part.strip(), get_args(expected)[0], where) for part in text.split(",") if text)
    elif expected is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif expected in (str, Path):
        return expected(text)
    elif expected in (int, float) and text.isascii() and "_" not in text:
        try:
            return expected(text)
        except ValueError:  # falls through to the error below
            pass
    raise SpecError(f"{where} expects {_type_name(expected)}, got {quoted(text)}")


def _type_name(expected: Any) -> str:
    origin = get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_NONE if option is type(None) else _type_name(option) for option in get_args(expected))
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(expected))
    if origin is tuple:
        return f"{_type_name(get_args(expected)[0])},..."
    if expected is Path:
        return "path"
    return getattr(expected, "__name__", str(expected))
