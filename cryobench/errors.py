"""Exceptions. Each message is one line: what was given, what was expected, what to do."""

from __future__ import annotations


class CryobenchError(Exception):
    """Base class: an invalid request, or a failed part of it. The command line prints it without a traceback."""


def reason_of(error: BaseException) -> str:
    """The message of an exception on one line, or its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def shortened(text: str, length: int = 200) -> str:
    """A text for a message: its beginning where it is longer than `length`."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


def described(error: BaseException) -> str:
    """An exception of another library or a plugin on one line: type and message."""
    name = type(error).__name__
    return f"{name}: {reason_of(error)}" if str(error).strip() else name


class SpecError(CryobenchError):
    """A spec that does not parse, or does not fit the component that it names."""


class UnknownName(CryobenchError):
    """No plugin of this kind has this name."""


class DuplicateName(CryobenchError):
    """Two installed distributions register the same name."""


class PluginError(CryobenchError):
    """A plugin cannot be imported, or breaks the contract of its entry point."""


class ParameterError(CryobenchError):
    """A component was given a value outside its range."""


class IncompatibleError(CryobenchError):
    """Components that are incompatible with each other or with the image size."""


class Unsupported(IncompatibleError):
    """A solver, noise model or reference does not support a problem. The message is only the reason."""


class DataError(CryobenchError):
    """An image or metadata file that is invalid or cannot be read."""


class DataWarning(UserWarning):
    """What was assumed about a data file, or left out of it. The command line prints it on one line."""


class SelectionError(CryobenchError):
    """A selection of images that are not in the data."""


class DeviceError(CryobenchError):
    """A device or dtype that is not available on this machine."""


class DependencyError(CryobenchError):
    """A required optional package is not installed."""


class ResultsError(CryobenchError):
    """A results folder that cannot be read or written."""


class ExecutorError(CryobenchError):
    """Workers that cannot be started, or that fail."""


class SuiteError(CryobenchError):
    """A suite that cannot be read, or refers to something that does not exist."""


class TrainingError(CryobenchError):
    """A training run that cannot continue."""
