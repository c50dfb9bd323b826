"""`cryobench tune`: the parameters of a solver that do best on validation images, under an equal budget."""

from importlib.util import find_spec

from cryobench.errors import DependencyError


def check_installed() -> None:
    """Raise `DependencyError` where the search, which is Optuna's, is not installed."""
    if find_spec("optuna") is None:
        raise DependencyError('tuning needs Optuna, which is not installed: pip install "cryobench[tune]"')
