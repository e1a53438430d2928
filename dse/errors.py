"""The one tree of errors: each message says what happened, the value found, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DseError(Exception):
    """Anything a user can cause or mend; the command line prints it and exits with code 2."""


class StudyError(DseError):
    """The study file asks for something that does not exist, contradicts itself or has no unit."""


class WorkloadError(DseError):
    """A model, a data set or its training recipe cannot be used as given."""


class GraphError(DseError):
    """The network holds an operator, a shape or a number that the graph cannot represent."""


class TargetError(DseError):
    """A board, a backend or a clock is unknown, or its file is wrong."""


class StorageError(DseError):
    """The database cannot be opened, is of another version, or holds something else."""


class CompressionError(DseError):
    """A pruning or quantization step cannot be applied to this network."""


def nearest(found: str, allowed: Iterable[str]) -> str:
    """The tail of a message about an unknown word: the nearest allowed one, then the whole list."""
    words = sorted(str(word) for word in allowed)
    close = difflib.get_close_matches(found, words, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}allowed: {', '.join(words)}" if words else f"{hint}none are known"
