"""Every error a user can cause. Each message is one line: what came, what was wanted, what to do."""

from __future__ import annotations


class CryobenchError(Exception):
    """A request that makes no sense, or a part of it that failed. The CLI prints it without a traceback."""


def said(error: BaseException) -> str:
    """What an exception says, on one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def told(error: BaseException) -> str:
    """Another library's or plugin's exception on one line: its type and what it says."""
    name = type(error).__name__
    return f"{name}: {said(error)}" if str(error).strip() else name


class SpecError(CryobenchError):
    """A spec text that does not parse, or does not fit the component it names."""


class UnknownName(CryobenchError):
    """No plugin of this kind carries this name."""


class DuplicateName(CryobenchError):
    """Two installed distributions register the same name."""


class PluginError(CryobenchError):
    """A plugin could not be imported, or is not what its entry point promises."""


class ParameterError(CryobenchError):
    """A component was given a value outside its range."""


class IncompatibleError(CryobenchError):
    """Two components that cannot work together, or with this image size."""


class Unsupported(IncompatibleError):
    """A solver, noise model or reference that cannot take a problem. The message is the reason alone."""


class DataError(CryobenchError):
    """An image file or star file that cannot be read as what it claims to be."""


class SelectionError(CryobenchError):
    """A choice of images that the data cannot satisfy."""


class DeviceError(CryobenchError):
    """A device or dtype this machine does not have."""


class DependencyError(CryobenchError):
    """An optional package that was asked for is not installed."""


class ResultsError(CryobenchError):
    """A results folder that cannot be read or written."""


class ExecutorError(CryobenchError):
    """Workers that cannot be had, or cannot do what they are asked."""


class SuiteError(CryobenchError):
    """A suite that cannot be read, or asks for what there is not."""


class TrainingError(CryobenchError):
    """A training run that cannot go on."""
