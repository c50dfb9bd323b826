"""The contract of plugins: the rules for every kind of component, as a pytest suite in one line or from the shell.

    from cryobench.testing import solver_contract

    test_contract = solver_contract("landweber:20")      # in a file that pytest collects

`cryobench check landweber:20` tests the same rules and prints which hold, which are broken, and what to do. A rule that
does not apply to a component is skipped, with the reason. Components are tested on small synthetic images, and on small
volumes if they state 3 in `dims`, on the CPU (for the rules on dtype and device also on CUDA). Test a slow solver with
few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cryobench.registry import Registry
from cryobench.testing import common, encoders, masks, metrics, noises, objectives, operators, priors, solvers, sources
from cryobench.testing.rules import Rule, RuleResult, Subject, check_rule

KINDS: dict[str, tuple[type[Subject], list[Rule]]] = {
    "operators": (operators.OperatorSubject, operators.RULES),
    "masks": (masks.MaskSubject, masks.RULES),
    "noises": (noises.NoiseSubject, noises.RULES),
    "priors": (priors.PriorSubject, priors.RULES),
    "solvers": (solvers.SolverSubject, solvers.RULES),
    "metrics": (metrics.MetricSubject, metrics.RULES),
    "sources": (sources.SourceSubject, sources.RULES),
    "objectives": (objectives.ObjectiveSubject, objectives.RULES),
    "encoders": (encoders.EncoderSubject, encoders.RULES),
}


def rules(kind: str) -> list[Rule]:
    """The rules for components of a kind, in the order in which they are tested."""
    return [*common.RULES, *KINDS[kind][1]]


def examine(kind: str, spec: str, registry: Registry | None = None) -> Iterator[RuleResult]:
    """Test a component against every rule of its kind; stops after a broken vital rule."""
    subject = KINDS[kind][0](kind, spec, registry)
    for rule in rules(kind):
        result = check_rule(rule, subject)
        yield result
        if rule.vital and result.status == "broken":
            return


def solver_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that tests the solver of a spec against its contract."""
    return _suite("solvers", spec)


def operator_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that tests the operator of a spec against its contract."""
    return _suite("operators", spec)


def mask_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that tests the mask generator of a spec against its contract."""
    return _suite("masks", spec)


def noise_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that tests the noise model of a spec against its contract."""
    return _suite("noises", spec)


def prior_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that tests the prior of a spec against its contract."""
    return _suite("priors", spec)


def metric_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that tests the metric of a spec against its contract."""
    return _suite("metrics", spec)


def source_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that tests the data source of a spec against its contract."""
    return _suite("sources", spec)


def objective_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that tests the training objective of a spec against its contract."""
    return _suite("objectives", spec)


def encoder_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that tests the encoder of a spec against its contract."""
    return _suite("encoders", spec)


def _suite(kind: str, spec: str) -> Callable[..., None]:
    import pytest

    subjects: list[Subject] = []

    @pytest.mark.parametrize("rule", rules(kind), ids=lambda rule: rule.name)
    def test_contract(rule: Rule) -> None:
        if not subjects:  # made by the first test, so that collection makes no component
            subjects.append(KINDS[kind][0](kind, spec))
        result = check_rule(rule, subjects[0])
        if result.status == "does not apply":
            pytest.skip(result.why)
        if result.status == "broken":
            pytest.fail(f"{spec}: {result.why}\n{rule.remedy}", pytrace=False)

    return test_contract


__all__ = [
    "examine",
    "mask_contract",
    "metric_contract",
    "noise_contract",
    "objective_contract",
    "operator_contract",
    "prior_contract",
    "rules",
    "solver_contract",
    "source_contract",
]
