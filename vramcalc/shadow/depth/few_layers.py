"""How many decoder layers are walked: three or four where later ones are alike, all of them otherwise."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

WALKED_LAYERS = (3, 4)
"""Layers to walk, tried in this order. Four set the second layer apart too: where the first has no gradients, the
second is where what all layers share is let go."""


class NotRepeatable(Exception):
    """The walked layers differ in a way that no repetition can express."""


def depths(n_layers: int, *, alike: bool, more: int = 0) -> list[int]:
    """Numbers of layers to walk, in the order they are tried.

    Args:
        n_layers: decoder layers of the model.
        alike: a layer is like the one before it, from some layer on.
        more: layers to walk besides, before those that are alike begin.
    """
    return [n + more for n in WALKED_LAYERS if alike and n + more < n_layers] + [n_layers]


def walk_few(depths: Sequence[int], walk: Callable[[int], T]) -> T:
    """The first walk whose last layers stand for all that were not walked.

    Args:
        depths: numbers of layers to try; the last one is all of them.
        walk: walks as many layers, and raises :class:`NotRepeatable` where the last do not stand for more.
    """
    with without_cycle_collector():
        for walked in depths[:-1]:
            try:
                return walk(walked)
            except NotRepeatable:
                continue
        return walk(depths[-1])


@contextmanager
def without_cycle_collector() -> Iterator[None]:
    """Lifetimes are counted references; the cycle collector would only cost time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
