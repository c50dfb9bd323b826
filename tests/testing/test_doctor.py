"""Problems of a plugin are reported with its distribution and the exact reason, and break nothing else."""

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
    ("group", "target", "message"),
    [
        ("cryobench.solvers", "nowhere:X", "{odd} cannot be imported: ModuleNotFoundError"),
        ("cryobench.solvers", "odd:X", "{odd} cannot be imported: AttributeError"),
        ("cryobench.solvers", "odd:Other", "solvers/odd of {odd} is a Other, expected a cryobench.core.Solver"),
        ("cryobench.solvers", "odd:Lacking", "solvers/odd of {odd} lacks solve, which contract 2 requires"),
        ("cryobench.solvers", "odd:Older", "solvers/odd of {odd} has solve(self, problem, rng_seed)"),
        ("cryobench.solver", "odd:Fine", "'odd' of {odd} is registered under 'cryobench.solver', which is not a known"),
        ("cryobench.hooks", "odd:nothing", "the hook 'odd' of {odd} cannot be imported: AttributeError"),
        ("cryobench.commands", "nowhere", "the command 'odd' of {odd} cannot be imported: ModuleNotFoundError"),
        ("cryobench.hooks", "odd:hook_that_is_fine", None),
        ("cryobench.solvers", "odd:Fine", None),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:hook plugin 'odd'")
def test_a_plugin_that_violates_the_contract_is_reported_and_breaks_nothing(
    group, target, message, install_plugin, cli, blobs
):
    install_plugin("cryobench-odd", {group: {"odd": target}}, odd=MODULE)
    code, out, _ = cli("list", "--problems")
    assert (code, len(out.splitlines())) == ((0, 0) if message is None else (1, 1)), out
    assert (message or "").format(odd="cryobench-odd 1.0") in out
    with_a_floor = cb.run("tikhonov", "sumpool:4", data=blobs, images="0")
    assert [record.status for record in with_a_floor] == ["ok", "ok"]


def test_a_name_clash_with_a_built_in_names_both(install_plugin, cli):
    install_plugin("cryobench-odd", {"cryobench.solvers": {"dct": "odd:Fine"}}, odd=MODULE)
    code, out, _ = cli("list", "--problems")
    assert code == 1
    assert re.search(
        r"solver 'dct' is registered by .*cryobench .* and cryobench-odd 1\.0|cryobench-odd 1\.0 and cryobench ", out
    )


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ("no-such-package>=2", "{odd} requires no-such-package, which is not installed: pip install 'no-such"),
        ("numpy<1", "{odd} requires numpy <1, but "),
        ("cryobench<0.0.1", "{odd} requires cryobench <0.0.1, but this is "),
        ("cryobench==99.*", "{odd} requires cryobench ==99.*, but this is "),
        ("?!", "{odd} has an invalid requirement, '?!'"),
        ('no-such-package; extra == "more"', None),
        ('no-such-package; python_version < "3"', None),
        ("numpy", None),
    ],
)  # fmt: skip
def test_unmet_requirements_are_reported(requirement, message, install_plugin, cli):
    site = install_plugin("cryobench-odd", {"cryobench.solvers": {"odd": "odd:Fine"}}, odd=MODULE)
    metadata = next(site.glob("*.dist-info")) / "METADATA"
    metadata.write_text(metadata.read_text() + f"Requires-Dist: {requirement}\n")
    code, out, _ = cli("list", "--problems")
    assert (code, len(out.splitlines())) == ((0, 0) if message is None else (1, 1)), out
    assert (message or "").format(odd="cryobench-odd 1.0") in out


VERSION_1 = """
from dataclasses import dataclass
from cryobench.core import NoiseModel, OperatorRecipe
from cryobench.priors.sparsity import Sparsity

@dataclass(frozen=True)
class Shifted(OperatorRecipe):
    def check(self, image_shape): ...
    def check_for(self, imaging): ...
    def build_for(self, imaging, *, seed, dtype, device): ...
    def build(self, image_shape, *, seed, dtype, device): ...

@dataclass(frozen=True)
class Plain(OperatorRecipe):
    def check(self, image_shape): ...
    def build(self, image_shape, *, seed, dtype, device): ...

@dataclass(frozen=True)
class Drawing(Plain):
    def drawn(self, image_shape, seed): ...

@dataclass(frozen=True)
class Bound(Sparsity):
    norm_squared = 8.0
    def analysis(self, x): ...
    def adjoint(self, u): ...

@dataclass(frozen=True)
class Hiss(NoiseModel):
    def apply(self, y, operator, rng): ...
"""


@pytest.mark.parametrize(
    ("kind", "cls", "method"),
    [("operators", "Shifted", "check_for"), ("operators", "Drawing", "drawn"), ("operators", "Plain", "build"),
     ("noises", "Hiss", "apply"), ("priors", "Bound", "norm_squared")],
)  # fmt: skip
def test_a_component_of_contract_1_is_recognised_by_its_methods(kind, cls, method, install_plugin, cli, blobs):
    install_plugin("cryobench-odd", {f"cryobench.{kind}": {"odd": f"odd:{cls}"}}, odd=VERSION_1)
    expected = "was written for contract 1, and this version of cryobench has contract 2; install a newer release"
    code, out, _ = cli("list", "--problems")
    assert (code, len(out.splitlines())) == (1, 1), out
    assert f"{kind}/odd of cryobench-odd 1.0 {expected}" in out
    assert f"(see its method {method})" in out
    option = {"operators": "--operator", "noises": "--noise", "priors": "--solver"}[kind]
    arguments = {"--solver": "pinv", "--operator": "identity", "--noise": "none", "--data": blobs}
    arguments[option] = "sparse:odd" if kind == "priors" else "odd"
    code, _, err = cli("run", *(text for pair in arguments.items() for text in pair))
    assert (code, err.count("\n")) == (2, 1), err
    assert expected in err


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("1", "was written for contract 1, and this version of cryobench has contract 2; install a newer release"),
        ("3", "was written for contract 3, and this version of cryobench has contract 2; upgrade cryobench"),
        ("two", "declares contract 'two', expected a number; write 2 under 'cryobench.contract'"),
        ("2", None),
    ],
)
def test_a_declared_contract_is_compared_without_importing_the_plugin(number, message, install_plugin, cli, blobs):
    groups = {"cryobench.contract": {number: "odd"}, "cryobench.solvers": {"odd": "odd:Fine", "other": "odd:Fine"}}
    install_plugin("cryobench-odd", groups, odd=MODULE if message is None else "raise RuntimeError('imported')")
    code, out, _ = cli("list", "--problems")
    assert (code, len(out.splitlines())) == ((0, 0) if message is None else (1, 1)), out
    code, _, err = cli("run", "--solver", "odd", "--operator", "identity", "--data", blobs)
    if message is None:
        assert code == 0, err
        return
    assert out.startswith(f"cryobench-odd 1.0 {message}")
    assert (code, err.count("\n")) == (2, 1), err
    assert f"cryobench-odd 1.0 {message}" in err


def test_an_import_of_a_module_that_has_moved_names_the_contract(install_plugin, cli):
    source = "from cryobench.linalg import dot"
    install_plugin("cryobench-odd", {"cryobench.solvers": {"odd": "odd:Fine"}}, odd=source)
    _, out, _ = cli("list", "--problems")
    assert "No module named 'cryobench.linalg'; it may be written for a contract other than 2" in out
