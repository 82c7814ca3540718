"""Every error a caller can meet: what was given, what was expected, what to do.

All of them derive from :class:`VramcalcError`, so that one ``except`` is enough; those that stand for a bad argument
are also ``ValueError``.
"""

from __future__ import annotations

import difflib
import itertools
import reprlib
from collections.abc import Iterable
from typing import Any


class _Short(reprlib.Repr):
    """``repr`` up to a size, the keys of a dictionary in their own order."""

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        """The first few entries."""
        if level <= 0 and value:
            return "{...}"
        few = itertools.islice(value.items(), self.maxdict)
        texts = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in few]
        return f"{{{', '.join(texts + ['...'] * (len(value) > self.maxdict))}}}"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlevel = 3
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = _SHORT.maxdict = 12


def shown(value: object) -> str:
    """A value short enough for one line, whatever it is: its ``repr`` may be endless."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # Python refuses to spell whole numbers of more than 4,300 digits
        text = f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= 80 else text[:77] + "..."


def one_line(text: str) -> str:
    r"""Text without line breaks, and with what would steer a terminal spelled out: ``"\x1b"`` for an escape."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Text whose characters a terminal shows, and nothing that steers it; line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _LAYOUT else c.encode("unicode_escape").decode() for c in text)


_LAYOUT = "\n\t\N{NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}"


class VramcalcError(Exception):
    """Base of all errors raised on purpose by vramcalc.

    They can be copied and pickled, whatever their constructors take: a process pool hands them on.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (type(self), self.args), vars(self)


def _made_again(kind: type[VramcalcError], args: tuple[Any, ...]) -> VramcalcError:
    """An error with its message, without its constructor; its attributes follow."""
    return kind.__new__(kind, *args)


class InvalidValue(VramcalcError, ValueError):
    """A value that no estimate can be made from.

    Attributes:
        name: the argument or field.
        value: what was given.
    """

    def __init__(self, name: str, value: object, expected: str, remedy: str = "") -> None:
        self.name, self.value = name, value
        super().__init__(f"{name} = {shown(value)}: expected {expected}{'; ' + remedy if remedy else ''}")


class UnknownName(VramcalcError, ValueError):
    """A name that no table holds; the nearest names are offered.

    Attributes:
        name: what was asked for.
        near: the nearest known names, best first.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        self.name = name
        by_lower = {k.lower(): k for k in known}
        matches = difflib.get_close_matches(name.lower()[:200], by_lower, n=3, cutoff=0.5)
        self.near = [by_lower[m] for m in matches]
        offer = f"; did you mean {' or '.join(repr(n) for n in self.near)}?" if self.near else ""
        super().__init__(f"no {kind} named {shown(name)}{offer or ';' * bool(remedy)}{' ' + remedy if remedy else ''}")


class AmbiguousName(UnknownName):
    """A name that several things of a table go by; ``near`` holds their names."""

    def __init__(self, name: str, meant: dict[str, str], remedy: str = "") -> None:
        """From what the name may mean: names of the table, each with what tells it from the others."""
        self.name, self.near = name, list(meant)
        *first, last = (f"{known} ({what})" for known, what in meant.items())
        text = f"{shown(name)} may mean {', '.join(first)} or {last}: name one{'; ' + remedy if remedy else ''}"
        VramcalcError.__init__(self, text)


class Unsupported(VramcalcError, ValueError):
    """A setting that is real but outside what vramcalc models; it is refused, never approximated."""


class BadConfig(VramcalcError, ValueError):
    """A ``config.json`` that cannot be read as a model."""


class HubError(VramcalcError):
    """The model hub could not give a configuration."""


class HubOffline(HubError):
    """No answer from the hub and nothing in the local cache."""


class HubGated(HubError):
    """The repository asks for a token that was not given or has no access."""


class HubMissing(HubError):
    """The hub has no such repository, or the repository has no ``config.json``."""


class DoesNotFit(VramcalcError):
    """Nothing, however small, fits the memory that was given."""


class DetectionError(VramcalcError):
    """NVML could not tell which GPUs this machine has."""


class MissingExtra(VramcalcError):
    """Libraries of an optional extra that are not installed.

    Attributes:
        extra: the extra that brings them.
        missing: the libraries.
    """

    def __init__(self, extra: str, why: str, missing: Iterable[str]) -> None:
        self.extra, self.missing = extra, tuple(missing)
        are = "is" if len(self.missing) == 1 else "are"
        super().__init__(f"{why}, and {', '.join(self.missing)} {are} not installed: pip install '.[{extra}]'")


class DataError(VramcalcError):
    """A shipped or user-supplied table is broken."""


class PriceError(VramcalcError):
    """New prices could not be had whole; those there were are kept."""


class OutputError(VramcalcError):
    """A file that cannot be written."""
