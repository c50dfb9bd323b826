"""Exceptions. Each message is one line: what was given, what was expected, what to do."""

from __future__ import annotations


class CryobenchError(Exception):
    """Base class: an invalid request, or a failed part of it. The command line prints it without a traceback.

    The middle of a message of more than 2000 characters is left out.
    """

    def __init__(self, *args: object):
        super().__init__(*(_without_middle(part) if isinstance(part, str) else part for part in args))


LONGEST = 2000
"""Maximum number of characters of a message."""


def valid_text(text: object) -> str:
    """A text in which the parts that are not valid Unicode are escaped: a lone surrogate, which stands for a byte of a
    file name that is not UTF-8, becomes "\\udcff"."""
    return str.encode(str(text), "utf-8", "backslashreplace").decode()


def one_line(text: object, length: int = LONGEST) -> str:
    """A text of a plugin for a record or a message: on one line and valid; its beginning and its end where it is longer
    than `length`."""
    line = " ".join(valid_text(text).split())
    half = length // 2
    return line if len(line) <= length else f"{line[:half]}... ({len(line)} characters) ...{line[-half:]}"


def reason_of(error: BaseException) -> str:
    """The message of an exception on one line, or its type if the message is empty. Never raises, except for Ctrl-C."""
    return _message_of(error) or _type_of(error)


def shortened(text: str, length: int = 200) -> str:
    """A text for a message: its beginning where it is longer than `length`."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


def quoted(text: str) -> str:
    """A text in quotes for a message, shortened."""
    return repr(shortened(text))


def _without_middle(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    kept = LONGEST // 2 - 100  # a message may be repeated in another one
    return f"{text[:kept]} ... ({len(text) - 2 * kept} characters) ... {text[-kept:]}"


def described(error: BaseException) -> str:
    """An exception of another library or a plugin on one line: type and message. Never raises, except for Ctrl-C."""
    message = _message_of(error)
    return f"{_type_of(error)}: {message}" if message else _type_of(error)


def _message_of(error: BaseException) -> str:
    try:
        return one_line(error)
    except KeyboardInterrupt:
        raise
    except BaseException as other:  # `__str__` of a plugin's exception can raise anything
        return f"its message cannot be read, {_type_of(other)}"


def _type_of(error: BaseException) -> str:
    return one_line(type.__dict__["__name__"].__get__(type(error)), 200)  # not of the metaclass, which can raise


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
