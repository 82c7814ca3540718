"""How results show themselves as text, HTML or a picture: looks up the rendering in ``show``, above it.

A result asks by the name of its class; :data:`vramcalc.show.renderings.RENDERINGS` says which function answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
Form = Literal["text", "html", "figure"]


def text(result: object, **options: Any) -> str:
    """A result for the terminal."""
    return str(_shown(result, "text", options))


def html(result: object, **options: Any) -> str:
    """A result for a notebook."""
    return str(_shown(result, "html", options))


def figure(result: object, **options: Any) -> Figure:
    """A result as a figure of matplotlib.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    drawn: Figure = _shown(result, "figure", options)
    return drawn


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items, with a bar on stderr while somebody watches."""
    from vramcalc.show.progress import track as tracked

    return tracked(items, what, total)


def _shown(result: object, form: Form, options: dict[str, Any]) -> Any:
    # The one import upwards, made when something is shown.
    from vramcalc.show.renderings import RENDERINGS

    module, _, name = RENDERINGS[type(result).__name__, form].partition(":")
    return getattr(import_module(module), name)(result, **options)
