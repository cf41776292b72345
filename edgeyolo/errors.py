"""The errors a user can see: what went wrong, where, what was got, what is allowed, and one next step.

The command line prints ``str(error)`` and exits with ``error.exit_code``; no traceback reaches a user.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Replace control characters: names come from others' files, and a terminal obeys escape sequences."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


class EdgeYoloError(Exception):
    """A mistake in the input or the request, phrased for the person who made it.

    Args:
        what: one sentence: what is wrong.
        where: file, layer or option it is wrong in.
        got: the offending value.
        allowed: what would have been accepted.
        hint: one next step.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        allowed: object = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.where, self.got, self.allowed, self.hint = what, where, got, allowed, hint
        rows = [("where", where), ("got", got), ("allowed", allowed), ("next", hint)]
        super().__init__("\n".join([what, *(f"  {k}: {v}" for k, v in rows if v is not None)]))


class InputError(EdgeYoloError):
    """A file or an option that cannot be used as it is."""


class UnsupportedError(EdgeYoloError):
    """A model that asks for something this stage or target cannot do; ``got`` lists all offenders."""


class BundleError(EdgeYoloError):
    """A bundle that is damaged, inconsistent or hostile."""


class AccuracyError(EdgeYoloError):
    """The result is valid but lost more accuracy than ``--max-drop`` allows."""

    exit_code = 3


class DifferenceError(EdgeYoloError):
    """Two executions of one model disagree."""

    exit_code = 1
