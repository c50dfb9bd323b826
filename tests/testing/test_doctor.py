"""What is wrong with a plugin is told with its distribution and the exact reason, and breaks nothing else."""

from __future__ import annotations

import re

import pytest

import cryobench as cb

MODULE = """
from dataclasses import dataclass
from cryobench.core import Metric, Prior, Reconstruction, Solver

@dataclass(frozen=True)
class Fine(Solver):
    def solve(self, problem, *, rng, progress=None):
        return Reconstruction(problem.operator.A_dagger(problem.y))

@dataclass(frozen=True)
class Older(Solver):
    def solve(self, problem, rng_seed):
        return Reconstruction(problem.y)

@dataclass(frozen=True)
class Lacking(Solver):
    def reconstruct(self, problem): ...

@dataclass(frozen=True)
class Other(Prior): ...

def hook_that_is_fine(): ...
"""


@pytest.mark.parametrize(
    ("group", "target", "said"),
    [
        ("cryobench.solvers", "nowhere:X", "{odd} cannot be imported: ModuleNotFoundError"),
        ("cryobench.solvers", "odd:X", "{odd} cannot be imported: AttributeError"),
        ("cryobench.solvers", "odd:Other", "solvers/odd of {odd} is a Other, wanted a cryobench.core.Solver"),
        ("cryobench.solvers", "odd:Lacking", "solvers/odd of {odd} lacks solve, which this version"),
        ("cryobench.solvers", "odd:Older", "solvers/odd of {odd} has solve(self, problem, rng_seed)"),
        ("cryobench.solver", "odd:Fine", "'odd' of {odd} is registered under 'cryobench.solver', which is no group"),
        ("cryobench.hooks", "odd:nothing", "the hook 'odd' of {odd} cannot be imported: AttributeError"),
        ("cryobench.commands", "nowhere", "the command 'odd' of {odd} cannot be imported: ModuleNotFoundError"),
        ("cryobench.hooks", "odd:hook_that_is_fine", None),
        ("cryobench.solvers", "odd:Fine", None),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:hook plugin 'odd'")
def test_a_plugin_that_does_not_fit_is_told_and_breaks_nothing(group, target, said, install_plugin, cli, blobs):
    install_plugin("cryobench-odd", {group: {"odd": target}}, odd=MODULE)
    code, out, _ = cli("list", "--problems")
    assert (code, len(out.splitlines())) == ((0, 0) if said is None else (1, 1)), out
    assert (said or "").format(odd="cryobench-odd 1.0") in out
    with_a_floor = cb.run("tikhonov", "sumpool:4", data=blobs, images="0")
    assert [record.status for record in with_a_floor] == ["ok", "ok"]


def test_one_that_shadows_a_built_in_names_both(install_plugin, cli):
    install_plugin("cryobench-odd", {"cryobench.solvers": {"dct": "odd:Fine"}}, odd=MODULE)
    code, out, _ = cli("list", "--problems")
    assert code == 1
    assert re.search(
        r"solver 'dct' is registered by .*cryobench .* and cryobench-odd 1\.0|cryobench-odd 1\.0 and cryobench ", out
    )


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("no-such-package>=2", "{odd} needs no-such-package, which is not installed: pip install 'no-such"),
        ("numpy<1", "{odd} needs numpy <1, and "),
        ("cryobench<0.0.1", "{odd} was written for cryobench <0.0.1, and this is "),
        ("cryobench==99.*", "{odd} was written for cryobench ==99.*, and this is "),
        ("?!", "{odd} has a requirement that cannot be read, '?!'"),
        ('no-such-package; extra == "more"', None),
        ('no-such-package; python_version < "3"', None),
        ("numpy", None),
    ],
)  # fmt: skip
def test_what_a_distribution_needs_and_does_not_have_is_told(requirement, said, install_plugin, cli):
    site = install_plugin("cryobench-odd", {"cryobench.solvers": {"odd": "odd:Fine"}}, odd=MODULE)
    metadata = next(site.glob("*.dist-info")) / "METADATA"
    metadata.write_text(metadata.read_text() + f"Requires-Dist: {requirement}\n")
    code, out, _ = cli("list", "--problems")
    assert (code, len(out.splitlines())) == ((0, 0) if said is None else (1, 1)), out
    assert (said or "").format(odd="cryobench-odd 1.0") in out
