"""A bar while long work goes on: on a terminal, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items, with a bar on stderr that goes away at the end; nothing is written where stderr is no terminal."""
    console = _console()
    if console is None:
        yield from items
        return
    from rich.progress import track as tracked

    yield from tracked(items, what, total=total, console=console, transient=True)


class Bar:
    """Progress of a kind that says more than a count: what is left, and what was done last; silent like the others."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        console = _console()
        if console is not None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            texts = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("left", "last"))
            self._bar = Progress(BarColumn(), MofNCompleteColumn(), *texts, console=console)
            self._task = self._bar.add_task("", total=None, left="", last="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int, left_s: float, last: str) -> None:
        """Show how far it is; ``last`` is a line about what was done last."""
        if self._bar is not None:
            left = f"{left_s / 60:.0f} min left" if left_s >= 90 else f"{left_s:.0f} s left"
            self._bar.update(self._task, completed=done, total=total, left=left, last=last)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A sign on stderr that something is going on whose length is not known."""
    console = _console()
    if console is None:
        yield
        return
    with console.status(what):
        yield


def _console() -> Console | None:
    """Stderr where somebody watches it, None where it is no terminal."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(stderr=True)
