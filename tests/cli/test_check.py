"""The command `cryobench check`."""

from __future__ import annotations

import json

import pytest

BROKEN = """
from dataclasses import dataclass
from cryobench.core import Reconstruction, Solver

@dataclass(frozen=True)
class Rough(Solver):
    "The back-projection, negative."
    def solve(self, problem, *, rng, progress=None):
        return Reconstruction(-problem.operator.A_adjoint(problem.y))
"""


def test_rules_that_hold_or_are_broken_are_printed_with_remedies(cli, install_plugin):
    install_plugin("cryobench-rough", {"cryobench.solvers": {"rough": "rough:Rough"}}, rough=BROKEN)
    code, out, err = cli("check", "rough", "pinv")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0] == "solvers/rough"
    assert "  ok      its answer has the dtype of the problem" in lines
    broken = next(i for i, line in enumerate(lines) if line.startswith("  BROKEN"))
    assert "its residual is smaller than that of a blank image: on sumpool:2, ||A x - y|| is" in lines[broken]
    assert "check the sign and the scale of the data term" in lines[broken + 1]
    assert "  n/a     its progress rises to the number of steps: it reports no progress" in lines
    assert lines[lines.index("solvers/pinv") - 2] == "  16 ok, 1 BROKEN, 1 n/a"
    assert cli("check", "rough", "-q")[1].splitlines() == [
        "solvers/rough", lines[broken], lines[broken + 1], "  16 ok, 1 BROKEN, 1 n/a", ""
    ]  # fmt: skip
    assert cli("check", "pinv", "-q")[0] == 0


def test_json_output(cli):
    code, out, _ = cli("check", "masks/superres", "noises/none", "--json")
    report = json.loads(out)
    assert code == 0
    assert [(each["kind"], each["spec"]) for each in report] == [("masks", "superres"), ("noises", "none")]
    assert {rule["status"] for each in report for rule in each["rules"]} == {"holds", "does not apply"}
    assert all(rule["remedy"] for each in report for rule in each["rules"])


def test_a_name_of_several_kinds_is_checked_for_each_kind(cli):
    out = cli("check", "tv", "-q")[1]
    assert [line for line in out.splitlines() if line[:1].strip()] == ["priors/tv", "solvers/tv"]


def test_a_missing_required_parameter_is_reported(cli):
    code, out, _ = cli("check", "sumpool")
    assert code == 1
    assert "made from its spec: block must be given: check a spec such as sumpool:VALUE" in out
    assert out.splitlines()[-2] == "  1 BROKEN"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("solvers/pinw", "no solver 'pinw'; did you mean 'pinv'?"),
        ("pinw", "nothing is registered as 'pinw'; did you mean 'pinv'?"),
        ("dct:steps=10", "'dct:steps=10' is ambiguous between priors and solvers; write priors/dct:steps=10"),
        ("sumpool:4,4", "spec 'sumpool:4,4': expected key=value"),
    ],
)
def test_unknown_components_give_a_one_line_error(cli, spec, message):
    code, out, err = cli("check", spec)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
