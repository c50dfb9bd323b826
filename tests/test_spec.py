"""The spec language: round trips for every value, and one-line errors with the given and the expected value."""

from __future__ import annotations

import re
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryobench.errors import CryobenchError, SpecError, UnknownName
from cryobench.registry import KINDS, did_you_mean, installed
from cryobench.spec import ByName, Choice, Component, Range, Spec, bind, fields_of, first_field, parse, unbind

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True)
keys = st.from_regex(r"[a-z_][a-z0-9_]{0,5}(\.[a-z_][a-z0-9_]{0,5}){0,2}", fullmatch=True)
values = st.text(max_size=20) | st.sampled_from(
    ["a,b", 'say "hi"', "k=v", " x ", "", "a@b", "hf:owner/name", "\\", "="]
)
singles = st.builds(
    Spec,
    names,
    st.none() | values,
    st.dictionaries(keys, values, max_size=3).map(lambda d: tuple(d.items())),
)
chains = st.lists(singles, min_size=1, max_size=3).map(
    lambda links: (
        Spec(*[getattr(links[0], f) for f in ("name", "value", "params")], None)
        if len(links) == 1
        else Spec(links[0].name, links[0].value, links[0].params, Spec(links[1].name, links[1].value, links[1].params))
    )
)


@given(chains)
def test_specs_round_trip_through_text(spec: Spec):
    assert parse(str(spec)) == spec


def test_the_parts_of_a_spec():
    spec = parse("sumpool:16,count=50,mask=random_binary,mask.prob=0.3")
    assert spec == Spec("sumpool", "16", (("count", "50"), ("mask", "random_binary"), ("mask.prob", "0.3")))
    assert parse("gaussian:rel=0.05") == parse("gaussian,rel=0.05") == Spec("gaussian", None, (("rel", "0.05"),))
    assert parse("cryosense:prior=diffusion:hf:owner/name").params == (("prior", "diffusion:hf:owner/name"),)
    assert parse("sumpool:4@ctf") == Spec("sumpool", "4", (), Spec("ctf"))
    assert parse('file:"a,b=c@d.mrc"').value == "a,b=c@d.mrc"


@pytest.mark.parametrize(
    "text",
    ["", ":16", "sumpool:16,50", "sumpool:16,count=1,count=2", 'x:"a', 'x:a"b"', "x:", "x:1,k=", "3x", "a@", "x,,"],
)
def test_malformed_specs_give_a_one_line_error(text: str):
    with pytest.raises(SpecError) as error:
        parse(text)
    assert "\n" not in str(error.value)
    assert repr(text) in str(error.value)


@dataclass(frozen=True)
class Inner:
    prob: Annotated[float, "a probability"] = 0.5
    kind: Literal["soft", "hard"] = "soft"


@dataclass(frozen=True)
class Outer:
    block: Annotated[int, "a size"]
    count: int | None = None
    flag: bool = False
    name: str = "x"
    where: Path | None = None
    sizes: tuple[int, ...] = (1, 2)
    mask: Annotated[Inner, Component("masks"), "what multiplies"] = Inner()


@dataclass(frozen=True)
class After:
    outer: Annotated[object, Component("masks"), "acts last"]
    inner: Annotated[object, Component("masks"), "acts first"]


@dataclass(frozen=True)
class Stored:
    source: Annotated[str, "a folder"] = "home"
    deep: bool = False


@dataclass(frozen=True)
class User:
    prior: Annotated[Stored, Component("masks", folder="stored"), ByName(), "a name, a spec or a folder"] = Stored()
    size: int = 1


@dataclass(frozen=True)
class Derived(User):
    extra: Annotated[int, ByName()] = 0
    steps: Annotated[int, "how many"] = 3


@dataclass(frozen=True)
class Named:
    only: Annotated[int, ByName(), "given by name"] = 1


@dataclass(frozen=True)
class Holder:
    what: Annotated[object, Component("masks"), "may be composed"]
    size: int = 1


NAMES = {Inner: "inner", Outer: "outer", After: "composed", Holder: "holder", Stored: "stored", User: "user"}


def make(kind: str, spec: Spec) -> Inner | Stored:
    assert kind == "masks"
    known = {name: cls for cls, name in NAMES.items() if cls in (Inner, Stored)}
    if spec.name not in known:
        raise UnknownName(f"no mask {spec.name!r}")
    return bind(known[spec.name], spec, make, did_you_mean)


def bound(text: str) -> Outer:
    return bind(Outer, parse(text), make, did_you_mean)


def name_of(component: object) -> str:
    return NAMES[type(component)]


def test_values_get_the_types_of_the_annotations():
    made = bound('outer:16,count=none,flag=true,where=/a/b.mrc,sizes="3,4",mask=inner,mask.prob=0.3,mask.kind=hard')
    assert made == Outer(16, None, True, "x", Path("/a/b.mrc"), (3, 4), Inner(0.3, "hard"))
    assert bound("outer:block=2,mask=inner:0.1").mask == Inner(0.1)


@given(
    st.builds(
        Outer,
        st.integers(),
        st.none() | st.integers(),
        st.booleans(),
        st.text(max_size=12),
        st.just(None) | st.just(Path("/a,b")),
        st.lists(st.integers(), min_size=1, max_size=3).map(tuple),
        st.builds(Inner, st.floats(allow_nan=False), st.sampled_from(["soft", "hard"])),
    ),
    st.booleans(),
)
def test_components_round_trip_through_specs(outer: Outer, full: bool):
    assert bound(str(unbind(outer, name_of, full=full))) == outer


@pytest.mark.parametrize("full", [False, True])
def test_a_composition_is_written_with_an_at_sign(full: bool):
    chain = After(Inner(0.1), After(Inner(kind="hard"), Inner()))
    spec = unbind(chain, name_of, full=full)
    assert str(spec) == ("inner:0.1,kind=soft@inner:0.5,kind=hard@inner:0.5,kind=soft" if full else
                         "inner:0.1@inner:kind=hard@inner")  # fmt: skip
    assert parse(str(spec)) == spec
    held = unbind(Holder(chain), name_of, full=full)
    assert parse(dict(held.params)["what"]) == spec
    assert parse(str(held)) == held


def test_the_canonical_spec_has_the_values_that_differ_from_the_defaults():
    assert str(unbind(bound("outer:4,count=none,mask=inner,mask.prob=0.50"), name_of)) == "outer:4"
    assert str(unbind(bound("outer:4,mask=inner:0.1"), name_of)) == "outer:4,mask=inner,mask.prob=0.1"
    assert "mask.kind=soft" in str(unbind(bound("outer:4"), name_of, full=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outer:abc", "block expects int, got 'abc'"),
        ("outer:1.5", "block expects int"),
        ("outer:1,count=x", "count expects int or none, got 'x'"),
        ("outer:1,flag=yes", "flag expects bool, got 'yes'"),
        ("outer:1,mask=inner,mask.kind=firm", "one of soft, hard"),
        ("outer:1,cuont=3", "did you mean 'count'"),
        ("outer:1,mask.prob=0.3", "mask=NAME"),
        ("outer:1,mask=inner,mask.porb=0.3", "did you mean 'prob'"),
        ("outer:1,block=2", "given twice"),
        ("outer:1,count=1,count.x=2", "no parameter 'count.x'"),
        ("outer", "needs 'block' (int): a size"),
    ],
)
def test_invalid_values_are_refused_with_the_expected_type(text: str, message: str):
    with pytest.raises(SpecError) as error:
        bound(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


FIRST = {
    "abinitio": "classes", "cryodeco": "dimensions",
    "cryosense": "steps", "daps": "steps", "dct": "lam", "ddnm": "steps", "diffpir": "steps", "dmplug": "steps",
    "dps": "steps", "exact": "sweeps",
    "hqs": "steps", "pigdm": "steps", "pinv": None, "tikhonov": "lam", "tv": "lam", "wavelet": "lam",
    "wiener": "snr", "sparse": "prior", "tiled": "solver", "gaussian": "width", "n2n": "model",
    "emdiffuse": "model", "regression": "model",
    "interpolate": "kind", "flow": "method", "cg": "steps", "fourier_inversion": "radius", "direct": "steps",
    "consensus": None, "covariance": "dimensions", "curve": "degree", "hypervolume": "dimensions",
}  # fmt: skip


def test_the_first_parameter_of_every_solver_is_documented_above():
    registry = installed()
    assert set(FIRST) == {name for name in registry.names("solvers")
                          if registry.origins("solvers", name)[0].distribution == "cryobench"}  # fmt: skip


@pytest.mark.parametrize("name", FIRST)
def test_the_bare_value_of_a_solver_is_its_first_parameter(name: str):
    registry, first = installed(), FIRST[name]
    if first is None:
        with pytest.raises(SpecError, match="takes no parameters"):
            registry.make("solvers", f"{name}:20")
        return
    assert first_field(registry.get("solvers", name)).name == first
    values = {"prior": "wavelet", "solver": "pinv", "model": "denoiser", "kind": "cubic", "method": "ilk"}
    value = "conditional:network" if name in ("emdiffuse", "regression") else values.get(first, "8")
    bare, keyed = (registry.make("solvers", text) for text in (f"{name}:{value}", f"{name}:{first}={value}"))
    assert bare == keyed
    kind = {"model": "priors"}.get(first, f"{first}s")
    assert getattr(bare, first) == (registry.make(kind, value) if kind in KINDS else 8 if value == "8" else value)
    for full in (False, True):
        assert registry.make("solvers", registry.spec_of(bare, full=full)) == bare


@pytest.mark.parametrize(
    ("text", "short", "full"),
    [
        ("ddnm:20", "ddnm:steps=20", "ddnm:prior=embedded,prior.source=embedded,prior.revision=main,"
         "prior.pickle=false,prior.precision=auto,prior.noise=auto,samples=1,steps=20,eta=0.85"),
        ("hqs:prior=embedded", "hqs", "hqs:prior=embedded,prior.source=embedded,prior.revision=main,"
         "prior.pickle=false,prior.precision=auto,prior.noise=auto,steps=14,first=auto,start=0.3,end=auto,lam=1,momentum=auto,turns=true,"
         "samples=1,products=40,spread=auto"),
        ("tv:0.02", "tv:0.02", None),
    ],
)  # fmt: skip
def test_the_canonical_text_of_a_solver_is_part_of_hashes_and_does_not_change(text: str, short: str, full: str | None):
    registry = installed()
    solver = registry.make("solvers", text)
    assert str(registry.spec_of(solver)) == short
    assert full is None or str(registry.spec_of(solver, full=True)) == full


def test_the_bare_value_skips_fields_given_by_name():
    assert bind(User, parse("user:7"), make, did_you_mean) == User(size=7)
    assert bind(Derived, parse("derived:7"), make, did_you_mean) == Derived(size=7)
    with pytest.raises(SpecError, match="'size' is given twice"):
        bind(Derived, parse("derived:7,size=8"), make, did_you_mean)
    with pytest.raises(SpecError, match="'named' takes parameters only by name, got '7'"):
        bind(Named, parse("named:7"), make, did_you_mean)
    assert str(unbind(Named(7), lambda _: "named")) == "named:only=7"


def test_fields_carry_type_default_and_doc():
    block, *_, mask = fields_of(Outer)
    assert (block.name, block.type_name, block.required, block.doc) == ("block", "int", True, "a size")
    assert (mask.kind, mask.default, mask.doc) == ("masks", Inner(), "what multiplies")


# --------------------------------------------------------------------------------------- a folder for a component

segments = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="/"), min_size=1)


@given(
    st.sampled_from(["/", "./", "~/", "../", "runs/", "with blank/"]),
    st.lists(segments, min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_a_path_is_the_first_value_of_the_component_that_reads_it(start: str, parts: list[str], deep: bool, full: bool):
    """Any path is allowed, and other values can be given with it."""
    path = start + "/".join(parts)
    spec = Spec("user", None, (("prior", path), ("prior.deep", str(deep).lower())))
    made = bind(User, parse(str(spec)), make, did_you_mean)
    assert made == User(Stored(path, deep))
    assert bind(User, parse(str(unbind(made, name_of, full=full))), make, did_you_mean) == made


def test_names_and_specs_take_precedence_over_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stored").mkdir()
    for text, prior in {"stored": Stored(), "stored:a/b": Stored("a/b"), "stored:hf:a/b": Stored("hf:a/b")}.items():
        assert bind(User, parse(f"user:prior={text}"), make, did_you_mean) == User(prior)


@pytest.mark.parametrize("name", ["mine", "v1.0", "2024"])
def test_the_error_for_a_folder_without_a_slash_shows_the_valid_form(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    spec = parse(f"user:prior={name}")
    with pytest.raises(CryobenchError) as error:
        bind(User, spec, make, did_you_mean)
    assert "prior=./" not in str(error.value)
    (tmp_path / name).mkdir()
    with pytest.raises(type(error.value), match=re.escape(f"for the folder {name}, write prior=./{name}")):
        bind(User, spec, make, did_you_mean)
    assert bind(User, parse(f"user:prior=./{name}"), make, did_you_mean) == User(Stored(f"./{name}"))


def test_a_component_of_another_class_is_refused_where_a_folder_may_be_given():
    with pytest.raises(SpecError, match="user: prior expects a Stored, such as 'stored', got 'inner'"):
        bind(User, parse("user:prior=inner"), make, did_you_mean)


@dataclass(frozen=True)
class Tuned:
    lam: Annotated[float | Literal["auto"], Range(1e-3, 10, log=True, also=("auto",)), "a weight"] = "auto"
    steps: Annotated[int | None, Range(2, 9), "how many"] = None
    kind: Annotated[Literal["soft", "hard"], Choice()] = "soft"
    box: Annotated[bool, Choice(), "hold it"] = False
    family: Annotated[str, Choice(("haar", "sym8"))] = "haar"
    tol: Annotated[float, "not searched"] = 1e-5


@dataclass(frozen=True)
class Untuned:
    lam: Annotated[float | Literal["auto"], "a weight"] = "auto"
    steps: Annotated[int | None, "how many"] = None
    kind: Literal["soft", "hard"] = "soft"
    box: Annotated[bool, "hold it"] = False
    family: str = "haar"
    tol: Annotated[float, "not searched"] = 1e-5


def test_fields_state_their_search_ranges():
    fields = {field.name: field for field in fields_of(Tuned)}
    assert {name: str(field.search) for name, field in fields.items() if field.search is not None} == {
        "lam": "0.001 to 10 (log) or auto",
        "steps": "2 to 9",
        "kind": "soft, hard",
        "box": "false, true",
        "family": "haar, sym8",
    }
    assert [fields[name].is_integer for name in ("lam", "steps", "tol")] == [False, True, False]
    assert fields["kind"].search == Choice(("soft", "hard"))


def test_search_ranges_change_nothing_else():
    def described(cls: type) -> list:
        return [(field.name, field.type, field.default, field.doc, field.kind) for field in fields_of(cls)]

    assert described(Tuned) == described(Untuned)
    specs = [
        str(unbind(bind(cls, parse("x:0.5,steps=3,box=true"), make, did_you_mean), lambda _: "x", full=full))
        for full in (False, True)
        for cls in (Tuned, Untuned)
    ]
    assert specs[0] == specs[1]
    assert specs[2] == specs[3]


@pytest.mark.parametrize(
    ("low", "high", "log"), [(1, 1, False), (2, 1, False), (0, 1, True), (-1, 1, True), (0, float("inf"), False)]
)
def test_invalid_ranges_are_refused(low, high, log):
    with pytest.raises(ValueError, match="expected low < high"):
        Range(low, high, log)


@pytest.mark.parametrize(
    ("type_", "marker", "message"),
    [
        (str, Range(0, 1), "Range requires a number, got str"),
        (int, Range(0.5, 2), "integer limits"),
        (str, Choice(), "requires a bool or a Literal, got str"),
        (tuple[int, ...], Choice(), "requires a bool or a Literal"),
    ],
)
def test_markers_that_do_not_fit_a_field_are_refused(type_, marker, message):
    cls = make_dataclass("Wrong", [("x", Annotated[type_, marker], None)])
    with pytest.raises(TypeError, match=message):
        fields_of(cls)


def test_show_names_the_parameter_of_the_bare_value(cli):
    assert "ddnm:VALUE sets steps." in cli("show", "ddnm")[1]
    assert "VALUE" not in cli("show", "pinv")[1]
