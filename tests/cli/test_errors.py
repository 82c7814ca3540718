"""Every error of the package can be handed from process to process, and says in one line what was given."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import vramcalc
from vramcalc.errors import AmbiguousName, InvalidValue, MissingExtra, UnknownName, VramcalcError, one_line, shown

PROFILE = "vramcalc.profiling"
"""Needs the extra 'profile', and defines no error."""


def _kinds(base: type[VramcalcError]) -> Iterator[type[VramcalcError]]:
    yield base
    for kind in base.__subclasses__():
        yield from _kinds(kind)


for _module in pkgutil.walk_packages(vramcalc.__path__, "vramcalc."):
    if not _module.name.startswith(PROFILE) and not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)
KINDS = sorted(set(_kinds(VramcalcError)), key=lambda kind: kind.__name__)


def example(kind: type[VramcalcError]) -> VramcalcError:
    """An error of a class, with whatever its constructor takes."""
    own: dict[type[VramcalcError], tuple[Any, ...]] = {
        InvalidValue: ("seq_len", 0, "at least 1", "or leave it out"),
        AmbiguousName: ("a100", {"a100-sxm-40": "40 GB", "a100-sxm-80": "80 GB"}),
        UnknownName: ("GPU", "h10", ["h100", "a100"], "see 'vramcalc gpus'"),
        MissingExtra: ("prices", "prices are fetched", ["gpuhunt", "other"]),
    }
    found = next((arguments for base, arguments in own.items() if issubclass(kind, base)), None)
    n = 1 if found is None else len(inspect.signature(kind).parameters)
    return kind(*(found or ("what was given, expected and to be done",))[:n])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_is_the_same_after_it_was_pickled_or_copied(kind: type[VramcalcError], protocol: int) -> None:
    made = example(kind)
    made.add_note("on the way")
    for again in (pickle.loads(pickle.dumps(made, protocol)), copy.copy(made), copy.deepcopy(made)):  # noqa: S301
        assert type(again) is kind
        assert (str(again), again.args, vars(again)) == (str(made), made.args, vars(made))


def test_the_errors_of_an_estimate_come_back_from_another_process() -> None:
    with pytest.raises(InvalidValue) as caught:
        vramcalc.estimate("qwen2.5-0.5b", "lora", seq_len=0)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (again.name, again.value, str(again)) == ("seq_len", 0, str(caught.value))


def _bomb() -> list[Any]:
    """Ten lists of ten of the same, nine deep: a billion items in some hundred objects."""
    found: list[Any] = ["lol"]
    for _ in range(9):
        found = [found] * 10
    return found


@pytest.mark.parametrize(
    "value",
    [_bomb(), {"a": _bomb()}, 10**5000, "x" * 10**6, [[[[[[1]]]]]]],
    ids=["list", "object", "number", "text", "deep"],
)
def test_a_value_is_shown_in_80_characters_whatever_it_is(value: Any) -> None:
    assert 0 < len(shown(value)) <= 80


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\r\n c", "a b c"),
        ("\x1b]0;x\x07", "\\x1b]0;x\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("right \u202e left", "right \\u202e left"),
        ("lone \udcff", "lone \\udcff"),
        ("plain é 漢", "plain é 漢"),
    ],
)
def test_what_would_steer_a_terminal_is_spelled_out(text: str, line: str) -> None:
    assert one_line(text) == line
