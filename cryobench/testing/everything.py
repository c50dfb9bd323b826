"""What holds for components of every kind."""

from __future__ import annotations

import inspect
import pickle

from cryobench.errors import SpecError
from cryobench.spec import fields_of
from cryobench.testing.rules import Broken, Rules, Subject, require

RULES = Rules()


@RULES(
    "it is registered, and is made from its spec",
    "register a frozen dataclass of the kind's base class, and give every required parameter in the spec",
    vital=True,
)
def builds(subject: Subject) -> None:
    missing = [f.name for f in fields_of(subject.registry.get(subject.kind, subject.spec.name)) if f.required]
    try:
        subject.component  # noqa: B018 - whether it can be made is the question
    except SpecError as error:
        if missing and subject.text == subject.spec.name:
            raise Broken(f"{', '.join(missing)} must be given: check a spec, as {subject.text}:VALUE") from error
        raise


@RULES("its spec makes it again", "give fields types that specs can write, and change none of them in __post_init__")
def round_trips(subject: Subject) -> None:
    for full in (False, True):
        spec = subject.registry.spec_of(subject.component, full=full)
        again = subject.registry.make(subject.kind, str(spec))
        require(again == subject.component, f"{spec} makes {again!r}, not {subject.component!r}")


@RULES("it can be sent to another process", "keep what cannot be pickled (open files, live networks) out of its fields")
def pickles(subject: Subject) -> None:
    require(
        pickle.loads(pickle.dumps(subject.component)) == subject.component, "what was unpickled is another component"
    )


@RULES("it says what it is", "write a docstring, which `cryobench show` prints")
def documented(subject: Subject) -> None:
    cls = type(subject.component)
    generated = f"{cls.__name__}{inspect.signature(cls)}".replace(" -> None", "")
    require((cls.__doc__ or "").replace(" -> None", "") not in ("", generated), f"{cls.__name__} has no docstring")
