"""Lookup of components: imports are deferred, and plugins do not affect each other."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from cryobench.errors import DuplicateName, PluginError, SpecError, UnknownName
from cryobench.registry import KINDS, Registry, installed
from cryobench.spec import parse
from cryobench.testing.doctor import problems

GOOD = """
from dataclasses import dataclass
@dataclass(frozen=True)
class Good:
    level: float = 1.0
"""


class FakeDistribution:
    def __init__(self, name: str):
        self.name, self.version = name, "1.0"

    def read_text(self, filename: str) -> str:
        return f"Metadata-Version: 2.1\nName: {self.name}\nVersion: {self.version}\n\nA README: Name: other\n"


def point(name: str, value: str, distribution: str = "cryobench-a", group: str = "cryobench.solvers") -> EntryPoint:
    made = EntryPoint(name, value, group)
    vars(made).update(dist=FakeDistribution(distribution))
    return made


@pytest.fixture
def modules(tmp_path, monkeypatch):
    (tmp_path / "good_plugin.py").write_text(GOOD)
    (tmp_path / "broken_plugin.py").write_text("import a_package_that_is_not_there")
    (tmp_path / "raising_plugin.py").write_text("raise ValueError('two\\nlines')")
    (tmp_path / "odd_plugin.py").write_text(
        "from dataclasses import dataclass\nclass Plain: pass\nvalue = 3\n@dataclass\nclass Thawed: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("good_plugin", "broken_plugin", "raising_plugin", "odd_plugin"):
        sys.modules.pop(name, None)


def test_names_import_nothing_and_get_imports_one(modules):
    registry = Registry([point("good", "good_plugin:Good"), point("broken", "broken_plugin:X")])
    assert registry.names("solvers") == ["broken", "good"]
    assert not {"good_plugin", "broken_plugin"} & set(sys.modules)
    assert registry.get("solvers", "good").__name__ == "Good"
    assert "broken_plugin" not in sys.modules


def test_one_broken_plugin_is_reported_and_the_rest_work(modules):
    registry = Registry(
        [
            point("good", "good_plugin:Good"),
            point("broken", "broken_plugin:X", "cryobench-broken"),
            point("raising", "raising_plugin:X"),
            point("plain", "odd_plugin:Plain"),
            point("value", "odd_plugin:value"),
            point("thawed", "odd_plugin:Thawed"),
        ]
    )
    found = problems(registry, [])
    assert len(found) == 6  # the good one is a dataclass but not a solver
    assert all("\n" not in problem for problem in found)
    with pytest.raises(PluginError, match=r"cryobench-broken 1\.0 cannot be imported: ModuleNotFoundError"):
        registry.get("solvers", "broken")
    with pytest.raises(PluginError, match="must be a frozen dataclass; odd_plugin:Plain is the class Plain"):
        registry.get("solvers", "plain")
    with pytest.raises(PluginError, match=r"@dataclass\(frozen=True\)"):
        registry.get("solvers", "thawed")
    assert registry.make("solvers", "good:2").level == 2.0


def test_a_name_registered_twice_names_both_distributions(modules):
    registry = Registry([point("good", "good_plugin:Good"), point("good", "odd_plugin:Plain", "cryobench-b")])
    with pytest.raises(DuplicateName, match=r"cryobench-a 1\.0 and cryobench-b 1\.0"):
        registry.get("solvers", "good")
    # a distribution found twice on sys.path is not a conflict
    assert Registry([point("good", "good_plugin:Good")] * 2).get("solvers", "good").__name__ == "Good"


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UnknownName, match="did you mean 'sumpool'"):
        installed().get("operators", "sumpol")
    with pytest.raises(UnknownName, match=r"there are abinitio, cg, .*, pinv"):
        installed().get("solvers", "zzz")
    with pytest.raises(UnknownName, match="did you mean 'solvers'"):
        installed().names("solver")


def test_only_operators_can_be_composed():
    with pytest.raises(SpecError, match="composition"):
        installed().make("solvers", "dct@pinv")


@pytest.mark.parametrize(
    "text",
    [
        "sumpool:4@ctf",
        "sumpool:4,count=8@ctf:15000,pixel_size=1.5",
        "fourier:0.5,mask=fourier_ring@ctf",
        "sumpool:2,count=3,mask=random_binary,mask.prob=0.3@sumpool:2,count=1@ctf:b_factor=30",
        "identity@ctf@identity",
    ],
)
def test_compositions_round_trip(text):
    registry = installed()
    made = registry.make("operators", text)
    assert str(registry.spec_of(made)) == text
    for spec in (registry.spec_of(made), registry.spec_of(made, full=True)):
        again = registry.make("operators", str(spec))
        assert again == made
        assert hash(again) == hash(made)
        assert parse(str(spec)) == spec


def test_the_long_form_of_a_composition_is_equal():
    registry = installed()
    made = registry.make("operators", "composed:sumpool:4,inner=ctf,inner.b_factor=30")
    assert made == registry.make("operators", "sumpool:4@ctf:b_factor=30")
    left = registry.make("operators", 'composed:"sumpool:2@sumpool:2,count=1",inner=ctf')
    assert str(registry.spec_of(left)) == "sumpool:2@sumpool:2,count=1@ctf"
    with pytest.raises(UnknownName, match="did you mean 'ctf'"):
        registry.make("operators", "sumpool:4@ctff")


def test_every_built_in_component_loads_and_its_spec_names_it():
    registry = installed()
    assert problems(registry) == []
    for kind in KINDS:
        for name in registry.names(kind):
            assert registry.origin_of(registry.get(kind, name)).name == name


def test_nested_components_are_looked_up():
    operator = installed().make("operators", "sumpool:4,mask=random_binary,mask.prob=0.25")
    assert operator.mask.prob == 0.25
    assert str(installed().spec_of(operator)) == "sumpool:4,mask=random_binary,mask.prob=0.25"
    assert str(installed().spec_of(operator, full=True)) == ("sumpool:4,count=none,mask=random_binary,mask.prob=0.25")
