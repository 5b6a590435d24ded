"""Errors that fastff raises on purpose, each with the exit code the command line gives it.

Here: the exception classes. Not here: printing them (``fastff.cli``), or recovering from them.
A message says what was wrong, the value received and what to do, in that order.
"""

from __future__ import annotations


class FastFFError(Exception):
    """Base of every error that fastff raises deliberately.

    Attributes
    ----------
    exit_code : int
        Process exit code that the command line uses for this class of error.
    """

    exit_code = 1


class UsageError(FastFFError):
    """A command or function was called with arguments that cannot be honoured."""

    exit_code = 2


class MissingDependencyError(FastFFError):
    """A package or a weight file that the request needs is not on this machine."""

    exit_code = 3


class DataError(FastFFError, ValueError):
    """A structure, label file or configuration holds something that cannot be used."""

    exit_code = 4


class UnsupportedElementError(DataError):
    """A structure contains an element that the model or teacher does not know."""


class ModelFileError(FastFFError):
    """A model file is missing, damaged, of another kind, or from a newer fastff."""

    exit_code = 5


class AccuracyError(FastFFError):
    """A required accuracy or physics check was not met."""

    exit_code = 6


class SimulationUnstableError(FastFFError):
    """Dynamics left the range where the model can be trusted (blow-up, close contact)."""

    exit_code = 6
