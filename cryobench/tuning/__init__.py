"""Searches for the best parameters of solvers on validation images with equal budgets, for `cryobench tune`.

Lives here: tasks, the search space, the objective and the search.
May be imported by the command line.
"""

from importlib.util import find_spec

from cryobench.errors import DependencyError


def check_installed() -> None:
    """Raise `DependencyError` if Optuna is not installed."""
    if find_spec("optuna") is None:
        raise DependencyError('tuning needs Optuna, which is not installed: pip install "cryobench[tune]"')
