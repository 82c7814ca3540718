"""Storages that are born and die, and the tape that writes it down.

A shadow tensor has a shape, a dtype and a storage, but no values. Its storage dies with the last Python reference to
it, exactly as a torch tensor's does in CPython, so code that mirrors a library's code, variable by variable, leaves
the same sequence of allocations and frees on the tape. Shapes may hold symbols; see ``dims``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vramcalc.shadow.engine.sizes import Size, product

if TYPE_CHECKING:
    from vramcalc.shadow.engine.graph import Node

Shape = tuple[Size, ...]

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}
"""Bytes per element by dtype name."""


def promote(a: str, b: str) -> str:
    """Dtype of an elementwise result of two floating tensors, as torch promotes them."""
    return a if a == b else "float32"


class Birth:
    """What the tape knows of one allocation."""

    __slots__ = ("dtype", "kind", "layer", "module", "op", "saved_by", "shape")

    def __init__(self, shape: Shape, dtype: str, op: str, module: str, layer: int | None, kind: str) -> None:
        self.shape, self.dtype, self.op, self.module, self.layer, self.kind = shape, dtype, op, module, layer, kind
        self.saved_by = ""

    @property
    def requested_bytes(self) -> int:
        """Bytes as the program asks for them; the sizes of the shape must be numbers."""
        return int(product(self.shape)) * ITEMSIZE[self.dtype]


class Tape:
    """The sequence of allocations and frees of one walk.

    Attributes:
        births: what each allocation is, by id.
        events: ``id`` for a birth, ``~id`` for a death.
        marks: ``(index into events, phase, layer)``: where segments begin; ``layer`` is None outside decoder layers.
        module: name of the module that is running.
        layer: decoder layer that is running.
    """

    def __init__(self) -> None:
        self.births: list[Birth] = []
        self.events: list[int] = []
        self.marks: list[tuple[int, str, int | None]] = [(0, "load", None)]
        self.phase = "load"
        self.module = ""
        self.layer: int | None = None
        self.kind = ""

    def mark(self, phase: str, layer: int | None = None) -> None:
        """Open a segment."""
        self.phase, self.layer = phase, layer
        self.marks.append((len(self.events), phase, layer))

    def at(self, layer: int | None) -> None:
        """Open a segment of the current phase when the running layer changes."""
        if layer != self.layer:
            self.layer = layer
            self.marks.append((len(self.events), self.phase, layer))


class Storage:
    """Bytes on the device; dying is written on the tape."""

    __slots__ = ("_events", "id")

    def __init__(self, tape: Tape, shape: Shape, dtype: str, op: str, kind: str = "") -> None:
        births = tape.births
        self._events = tape.events
        self.id = len(births)
        births.append(Birth(shape, dtype, op, tape.module, tape.layer, kind or tape.kind))
        tape.events.append(self.id)

    def __del__(self) -> None:
        self._events.append(~self.id)


class Tensor:
    """A shape and dtype over a storage, and the autograd node that made it.

    ``node`` is None when no gradient is required. ``view`` marks a tensor that torch's engine will not add to in place.
    """

    __slots__ = ("dtype", "node", "shape", "storage", "view")

    def __init__(
        self, storage: Storage, shape: Shape, dtype: str, node: Node | None = None, view: bool = False
    ) -> None:
        self.storage, self.shape, self.dtype, self.node, self.view = storage, shape, dtype, node, view
