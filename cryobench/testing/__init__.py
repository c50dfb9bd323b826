"""The contract of plugins: what every component of a kind must do, as a pytest suite in one line or from the shell.

    from cryobench.testing import solver_contract

    test_contract = solver_contract("landweber:20")      # in a file that pytest collects

`cryobench check landweber:20` holds it to the same rules and prints what holds, what does not, and what to do. A rule
that says nothing about a component is skipped, with the reason. Components are tried on small made images on the CPU
(and on CUDA where there is one), so give a slow solver few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from cryobench.registry import Registry
from cryobench.testing import everything, masks, metrics, noises, operators, priors, solvers, sources
from cryobench.testing.rules import Rule, Subject, Verdict, judge

KINDS: dict[str, tuple[type[Subject], list[Rule]]] = {
    "operators": (operators.OperatorSubject, operators.RULES),
    "masks": (masks.MaskSubject, masks.RULES),
    "noises": (noises.NoiseSubject, noises.RULES),
    "priors": (priors.PriorSubject, priors.RULES),
    "solvers": (solvers.SolverSubject, solvers.RULES),
    "metrics": (metrics.MetricSubject, metrics.RULES),
    "sources": (sources.SourceSubject, sources.RULES),
}


def rules(kind: str) -> list[Rule]:
    """What components of a kind are held to, in the order in which it is tried."""
    return [*everything.RULES, *KINDS[kind][1]]


def examine(kind: str, spec: str, registry: Registry | None = None) -> Iterator[Verdict]:
    """Hold a component to every rule of its kind, or to those up to one without which nothing else can be told."""
    subject = KINDS[kind][0](kind, spec, registry)
    for rule in rules(kind):
        verdict = judge(rule, subject)
        yield verdict
        if rule.vital and verdict.status == "broken":
            return


def solver_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that holds the solver of a spec to its contract."""
    return _suite("solvers", spec)


def operator_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that holds the operator of a spec to its contract."""
    return _suite("operators", spec)


def mask_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that holds the mask generator of a spec to its contract."""
    return _suite("masks", spec)


def noise_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that holds the noise model of a spec to its contract."""
    return _suite("noises", spec)


def prior_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that holds the prior of a spec to its contract."""
    return _suite("priors", spec)


def metric_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that holds the metric of a spec to its contract."""
    return _suite("metrics", spec)


def source_contract(spec: str) -> Callable[..., None]:
    """A pytest suite that holds the data source of a spec to its contract."""
    return _suite("sources", spec)


def _suite(kind: str, spec: str) -> Callable[..., None]:
    import pytest

    subjects: list[Any] = []

    @pytest.mark.parametrize("rule", rules(kind), ids=lambda rule: rule.name)
    def test_contract(rule: Rule) -> None:
        if not subjects:  # when the first rule is tried: collecting a file makes nothing
            subjects.append(KINDS[kind][0](kind, spec))
        verdict = judge(rule, subjects[0])
        if verdict.status == "does not apply":
            pytest.skip(verdict.why)
        if verdict.status == "broken":
            pytest.fail(f"{spec}: {verdict.why}\n{rule.remedy}", pytrace=False)

    return test_contract


__all__ = [
    "examine",
    "mask_contract",
    "metric_contract",
    "noise_contract",
    "operator_contract",
    "prior_contract",
    "rules",
    "solver_contract",
    "source_contract",
]
