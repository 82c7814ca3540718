"""Sizes that may be symbols: arithmetic builds expressions, comparisons answer for the hint and leave a guard."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vramcalc.shadow.engine.sizes import Dim, Size, Symbols, ceil_to, evaluate, minimum, product

VALUES = {"b": np.array([1, 3, 8]), "s": np.array([7, 64, 65])}


def symbols() -> tuple[Symbols, Dim, Dim]:
    found = Symbols(b=3, s=64)
    return found, found.dims["b"], found.dims["s"]


@pytest.mark.parametrize(
    "made",
    [
        lambda b, s: b + s, lambda b, s: b - s, lambda b, s: b * s, lambda b, s: s // b, lambda b, s: s % b,
        lambda b, s: 5 + s, lambda b, s: 500 - s, lambda b, s: 4 * s, lambda b, s: 1000 // s, lambda b, s: -s,
        lambda b, s: s + 5, lambda b, s: s - 5, lambda b, s: s * 4, lambda b, s: s // 2, lambda b, s: s % 8,
        lambda b, s: ceil_to(b * s, 128), lambda b, s: product((b, s, 2)),
    ],
)  # fmt: skip
def test_an_expression_is_what_numbers_make(made: Callable[[Size, Size], Size]) -> None:
    walk, b, s = symbols()
    size = made(b, s)
    expected = [int(made(int(x), int(y))) for x, y in zip(VALUES["b"], VALUES["s"], strict=True)]
    assert list(np.broadcast_to(evaluate(size, VALUES), 3)) == expected
    assert walk.guards == {}
    assert isinstance(size, Dim)
    assert size.hint == made(3, 64)


def test_once_is_itself() -> None:
    walk, b, _ = symbols()
    assert b * 1 is b
    assert 1 * b is b
    assert walk.guards == {}


def test_equal_expressions_are_one() -> None:
    _, b, s = symbols()
    assert b * s is b * s
    assert b * s is not s * b
    assert repr(ceil_to(b, 8)) == "(((b + 7) // 8) * 8)"


@pytest.mark.parametrize("compare", [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne])
@pytest.mark.parametrize("other", [6, 7, 8, 64])
def test_a_walk_holds_where_its_comparisons_answer_alike(compare: Callable[[Any, Any], bool], other: int) -> None:
    walk, _, s = symbols()
    answer = compare(s, other)
    assert answer == compare(64, other)
    assert list(walk.holds(VALUES)) == [compare(n, other) == answer for n in (7, 64, 65)]


def test_a_size_is_not_what_is_no_size() -> None:
    _, b, _ = symbols()
    assert (b == "3", b == b) == (False, True)


def test_whether_there_is_a_remainder_is_a_guard() -> None:
    walk, _, s = symbols()
    assert not s % 8
    assert list(walk.holds(VALUES)) == [False, True, False]


def test_a_loop_pins_its_length() -> None:
    walk, b, _ = symbols()
    assert len(range(b)) == 3
    assert list(walk.holds(VALUES)) == [False, True, False]


def test_the_smaller_of_two_is_a_guard() -> None:
    walk, b, s = symbols()
    assert minimum(b, s) is b
    assert list(walk.holds(VALUES)) == [True, True, True]
    assert minimum(64, s) is s
    assert list(walk.holds(VALUES)) == [True, True, False]


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 8), (8, 8), (9, 16)])
def test_sizes_are_rounded_up(n: int, expected: int) -> None:
    assert ceil_to(n, 8) == expected
