"""Lookup: nothing imported before its time, and no plugin that breaks another."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from cryobench.errors import DuplicateName, PluginError, SpecError, UnknownName
from cryobench.registry import KINDS, Registry, installed

GOOD = """
from dataclasses import dataclass
@dataclass(frozen=True)
class Good:
    level: float = 1.0
"""


class FakeDistribution:
    def __init__(self, name: str):
        self.name, self.version = name, "1.0"


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
    problems = registry.problems()
    assert len(problems) == 5
    assert all("\n" not in problem for problem in problems)
    with pytest.raises(PluginError, match=r"cryobench-broken 1\.0 cannot be imported: ModuleNotFoundError"):
        registry.get("solvers", "broken")
    with pytest.raises(PluginError, match="must be a frozen dataclass; odd_plugin:Plain is the class Plain"):
        registry.get("solvers", "plain")
    with pytest.raises(PluginError, match=r"@dataclass\(frozen=True\)"):
        registry.get("solvers", "thawed")
    assert registry.make("solvers", "good:2").level == 2.0


def test_a_name_claimed_twice_names_both_distributions(modules):
    registry = Registry([point("good", "good_plugin:Good"), point("good", "odd_plugin:Plain", "cryobench-b")])
    with pytest.raises(DuplicateName, match=r"cryobench-a 1\.0 and cryobench-b 1\.0"):
        registry.get("solvers", "good")
    # one distribution seen twice on sys.path is no clash
    assert Registry([point("good", "good_plugin:Good")] * 2).get("solvers", "good").__name__ == "Good"


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UnknownName, match="did you mean 'sumpool'"):
        installed().get("operators", "sumpol")
    with pytest.raises(UnknownName, match="there are dct, pinv"):
        installed().get("solvers", "zzz")
    with pytest.raises(UnknownName, match="did you mean 'solvers'"):
        installed().names("solver")


def test_only_operators_may_compose():
    with pytest.raises(SpecError, match="composition"):
        installed().make("solvers", "dct@pinv")


def test_every_builtin_loads_and_its_spec_names_it():
    registry = installed()
    assert registry.problems() == []
    for kind in KINDS:
        for name in registry.names(kind):
            assert registry.origin_of(registry.get(kind, name)).name == name


def test_nested_components_are_looked_up():
    operator = installed().make("operators", "sumpool:4,mask=random_binary,mask.prob=0.25")
    assert operator.mask.prob == 0.25
    assert str(installed().spec_of(operator)) == "sumpool:4,mask=random_binary,mask.prob=0.25"
    assert str(installed().spec_of(operator, full=True)) == ("sumpool:4,count=none,mask=random_binary,mask.prob=0.25")
