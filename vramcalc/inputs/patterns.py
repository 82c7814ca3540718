r"""Regular expressions that users give, matched in bounded time whatever they say.

Python's ``re`` tries one way after the other, and ``([\w.]+)+X`` has more ways through the name of a module than one
can wait for. Whether *some* way leads through is all that PEFT asks, so here every way is followed at once: a set of
positions goes through the pattern, piece by piece, as bits of a number. The pattern is read by ``re``'s own parser and
single characters are compared by ``re`` itself, so that ordinary patterns mean what they mean there.

References:
    Thompson, "Regular expression search algorithm", CACM 11 (1968); PEFT 0.21 tuners/tuners_utils.py,
    ``match_target_against_key`` (``re.fullmatch``) and ``check_target_module_exists`` (``re.match``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from vramcalc.errors import InvalidValue

# The parser has had this name since Python 3.11; typeshed does not know it.
from re import _compiler, _parser  # type: ignore[attr-defined]  # isort: skip

LONGEST = 4_096
"""Characters of a pattern."""
_LEAST_WORK, _WORK_A_CHARACTER = 2_000, 50
"""Steps that a pattern may take for one name, and more for each of its characters; ordinary ones take some hundred."""
_DEPTH = 100
_REFUSED = {
    "GROUPREF": "references to groups",
    "GROUPREF_EXISTS": "references to groups",
    "ATOMIC_GROUP": "atomic groups",
    "POSSESSIVE_REPEAT": "possessive repeats",
}
_TYPES = re.ASCII | re.LOCALE | re.UNICODE

Ends = Callable[["_Name", int], int]
"""Given a name and positions, one to a bit: the positions that a piece of a pattern leads to from any of them."""


def check(pattern: str) -> str:
    """The pattern, if it is one that can be matched in bounded time.

    Raises:
        ValueError: no regular expression, too long or too deep a one, or one with references to groups, atomic groups
            or possessive repeats.
    """
    _read(pattern)
    return pattern


@lru_cache(maxsize=1 << 16)
def fullmatch(pattern: str, name: str) -> bool:
    """Whether ``re.fullmatch(pattern, name)`` finds something.

    Raises:
        InvalidValue: the pattern asks for more work than any ordinary one.
    """
    there = _Name(name, pattern, "target_modules")
    return bool(_read(pattern)(there, 1) & there.end)


@lru_cache(maxsize=1 << 16)
def match(pattern: str, name: str) -> bool:
    """Whether ``re.match(pattern, name)`` finds something.

    Raises:
        InvalidValue: as :func:`fullmatch`.
    """
    return bool(_read(pattern)(_Name(name, pattern, "modules_to_save"), 1))


def of_saved(module: str) -> str:
    """The pattern that PEFT makes of an entry of ``modules_to_save``: the module, and what is inside it."""
    return rf"(^|.*\.){module}($|\..*)"


def check_saved(module: str) -> str:
    """An entry of ``modules_to_save``, if it can be matched in bounded time.

    Raises:
        ValueError: as :func:`check`.
    """
    check(module)
    check(of_saved(module))
    return module


class _Name:
    """A name that is matched, and how much work that was."""

    def __init__(self, text: str, pattern: str, field: str) -> None:
        self.text, self.end = text, 1 << len(text)
        self.left = _LEAST_WORK + _WORK_A_CHARACTER * len(pattern)
        self._given = field, pattern

    def work(self) -> None:
        """Count a step.

        Raises:
            InvalidValue: there were too many.
        """
        self.left -= 1
        if self.left < 0:
            raise InvalidValue(*self._given, "a regular expression with fewer repeats inside repeats", "simplify it")


@lru_cache(maxsize=256)
def _read(pattern: str) -> Ends:
    if len(pattern) > LONGEST:
        raise ValueError(f"a regular expression of at most {LONGEST:,} characters; list names instead")
    try:
        re.compile(pattern)
        parsed = _parser.parse(pattern)
        return _sequence(parsed, parsed.state.flags, 0)
    except (re.error, OverflowError) as err:
        raise ValueError(f"a regular expression ({err})") from None
    except RecursionError:
        raise ValueError("a regular expression that is not nested so deeply; simplify it") from None


def _sequence(parsed: Any, flags: int, depth: int) -> Ends:
    """Pieces one after the other."""
    if depth > _DEPTH:
        raise RecursionError
    pieces = [_piece(str(op), argument, flags, depth + 1) for op, argument in parsed]

    def ends(name: _Name, starts: int) -> int:
        for piece in pieces:
            if not starts:
                return 0
            name.work()
            starts = piece(name, starts)
        return starts

    return ends


def _piece(op: str, argument: Any, flags: int, depth: int) -> Ends:
    match op:
        case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
            return partial(_character, _matching(_alone(op, argument, flags)))
        case "AT":
            return partial(_place, _alone(op, argument, flags))
        case "BRANCH":
            return partial(_either, [_sequence(way, flags, depth) for way in argument[1]])
        case "SUBPATTERN":
            _, added, taken, inner = argument
            kept = flags & ~_TYPES if added & _TYPES else flags
            return _sequence(inner, (kept | added) & ~taken, depth)
        case "MAX_REPEAT" | "MIN_REPEAT":
            least, most, inner = argument
            return partial(_repeated, _sequence(inner, flags, depth), int(least), int(most))
        case "ASSERT" | "ASSERT_NOT":
            direction, inner = argument
            ahead, wanted = _sequence(inner, flags, depth), op == "ASSERT"
            if direction < 0:
                return partial(_behind, ahead, inner.getwidth()[0], wanted)
            return partial(_ahead, ahead, wanted)
        case "FAILURE":
            return lambda _, __: 0
        case _:
            what = _REFUSED.get(op, op.lower())
            raise ValueError(f"a regular expression without {what}, which cannot be matched in bounded time")


# -- pieces ------------------------------------------------------------------------------------------------------------


def _alone(op: str, argument: Any, flags: int) -> re.Pattern[str]:
    """A pattern of one piece, compiled by ``re``."""
    state = _parser.State()
    state.flags, state.str = flags, ""
    found: re.Pattern[str] = _compiler.compile(
        _parser.SubPattern(state, [(getattr(_parser, op), argument)]), flags & ~re.DEBUG
    )
    return found


def _matching(one: re.Pattern[str]) -> Callable[[str], bool]:
    """Whether a character is of a kind; each is asked about once."""
    return lru_cache(maxsize=512)(lambda character: one.match(character) is not None)


def _character(fits: Callable[[str], bool], name: _Name, starts: int) -> int:
    found, left = 0, starts & ~name.end
    while left:
        bit = left & -left
        if fits(name.text[bit.bit_length() - 1]):
            found |= bit
        left ^= bit
    return found << 1


def _place(anchor: re.Pattern[str], name: _Name, starts: int) -> int:
    return _where(starts, lambda at: anchor.match(name.text, at) is not None)


def _either(ways: Sequence[Ends], name: _Name, starts: int) -> int:
    found = 0
    for way in ways:
        found |= way(name, starts)
    return found


def _repeated(inner: Ends, least: int, most: int, name: _Name, starts: int) -> int:
    """Positions after ``least`` to ``most`` times; sets that no longer change are not followed further."""
    for _ in range(least):
        before, starts = starts, inner(name, starts)
        if starts in (0, before):
            break
    found = new = starts
    for _ in range(most - least):
        new = inner(name, new) & ~found
        if not new:
            break
        found |= new
    return found


def _ahead(inner: Ends, wanted: bool, name: _Name, starts: int) -> int:
    return _where(starts, lambda at: bool(inner(name, 1 << at)) is wanted)


def _behind(inner: Ends, width: int, wanted: bool, name: _Name, starts: int) -> int:
    """What is looked at behind a position is always as wide."""
    there = inner(name, starts >> width)
    return starts & there if wanted else starts & ~there


def _where(positions: int, holds: Callable[[int], bool]) -> int:
    found, left = 0, positions
    while left:
        bit = left & -left
        if holds(bit.bit_length() - 1):
            found |= bit
        left ^= bit
    return found
