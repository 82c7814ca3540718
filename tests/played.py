"""What a piece of the shadow asks for and gives back, as one line of text, beside the library's own lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Leaf, Parameter
from vramcalc.shadow.engine.tape import ITEMSIZE, Shape, Storage, Tape, Tensor


def engine(autocast: str | None = None) -> Engine:
    found = Engine(Tape())
    found.autocast = autocast
    return found


def given(e: Engine, shape: Shape, dtype: str = "bfloat16", *, grad: bool = True) -> Tensor:
    """An input, with or without a gradient of its own."""
    return Tensor(Storage(e.tape, shape, dtype, "input"), shape, dtype, Leaf() if grad else None)


def parameter(e: Engine, shape: Shape, dtype: str = "bfloat16", *, trained: bool = True) -> Parameter:
    found = Parameter(e.tape, "layer.weight", shape, dtype)
    found.train(trained)
    return found


def played(e: Engine, run: Callable[[], Any]) -> tuple[list[str], Any]:
    """Bytes asked for, ``+``, and given back, ``-``, in order, inputs aside; what ran keeps its result alive."""
    start = len(e.tape.events)
    result = run()
    lines = [_line(e, event) for event in e.tape.events[start:]]
    return [line for line in lines if not line.endswith(" input")], result


def peak(e: Engine, run: Callable[[], Any]) -> int:
    """Most bytes that are alive at once beyond those before."""
    lines, _ = played(e, run)
    now = most = 0
    for line in lines:
        now += int(line.split()[0])
        most = max(most, now)
    return most


def _line(e: Engine, event: int) -> str:
    birth = e.tape.births[event if event >= 0 else ~event]
    n_bytes = ITEMSIZE[birth.dtype]
    for n in birth.shape:
        n_bytes *= int(n)
    return f"{'+' if event >= 0 else '-'}{n_bytes} {birth.op}"
