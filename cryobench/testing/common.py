"""The rules for components of every kind."""

from __future__ import annotations

import inspect
import pickle

from cryobench.core import check_dims
from cryobench.errors import IncompatibleError, SpecError
from cryobench.spec import fields_of
from cryobench.testing.rules import SHAPES, Broken, DoesNotApply, Rules, Subject, require

RULES = Rules()


@RULES(
    "it is registered and can be made from its spec",
    "register a frozen dataclass of the kind's base class, and give every required parameter in the spec",
    vital=True,
    once=True,
)
def builds(subject: Subject) -> None:
    missing = [f.name for f in fields_of(subject.registry.get(subject.kind, subject.spec.name)) if f.required]
    try:
        subject.component  # noqa: B018 - evaluated for the errors that it raises
    except SpecError as error:
        if missing and subject.text == subject.spec.name:
            raise Broken(f"{', '.join(missing)} must be given: check a spec such as {subject.text}:VALUE") from error
        raise


@RULES(
    "it states its dimensions, and refuses other images",
    "set dims to (2,) for images, (3,) for volumes, or (2, 3) for both",
    vital=True,
    once=True,
)
def dimensions(subject: Subject) -> None:
    if subject.kind == "sources":
        raise DoesNotApply("the stack of a source states the shape of its images")
    dims = subject.component.dims
    valid = isinstance(dims, tuple) and dims and set(dims) <= set(SHAPES) and len(set(dims)) == len(dims)
    require(valid, f"dims is {dims!r}, expected (2,), (3,) or (2, 3)")
    require(subject.by_dims, f"dims is {dims!r}, but its masks or priors state none of these")
    for refused in {1, 2, 3, 4} - set(dims):
        try:
            check_dims(subject.kind, subject.component, (8,) * refused)
        except IncompatibleError as error:
            require("\n" not in str(error), f"the error for images of {refused} axes has more than one line")
            continue
        raise Broken(f"dims is {dims!r}, but images of {refused} axes are accepted")


@RULES(
    "its spec makes an equal component",
    "give fields types that specs can write, and do not change them in __post_init__",
    once=True,
)
def round_trips(subject: Subject) -> None:
    for full in (False, True):
        spec = subject.registry.spec_of(subject.component, full=full)
        again = subject.registry.make(subject.kind, str(spec))
        require(again == subject.component, f"{spec} makes {again!r}, not {subject.component!r}")


@RULES("it can be pickled", "keep what cannot be pickled (open files, live networks) out of its fields", once=True)
def pickles(subject: Subject) -> None:
    again = pickle.loads(pickle.dumps(subject.component))
    require(again == subject.component, "the unpickled component is not equal to it")


@RULES("it has a docstring", "write a docstring, which `cryobench show` prints", once=True)
def documented(subject: Subject) -> None:
    cls = type(subject.component)
    generated = f"{cls.__name__}{inspect.signature(cls)}".replace(" -> None", "")
    require((cls.__doc__ or "").replace(" -> None", "") not in ("", generated), f"{cls.__name__} has no docstring")
