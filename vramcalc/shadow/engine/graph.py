"""The graph that autograd records: nodes with what they save, leaves where gradients end, parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vramcalc.shadow.engine.tape import Shape, Storage, Tape, Tensor

Gradients = list[Tensor | None]
Backward = Callable[[list[Tensor], Tensor], Gradients]


_NO_SUMS: dict[int, Shape] = {}


class Node:
    """One recorded operation."""

    __slots__ = (
        "__weakref__",
        "backward",
        "dtypes",
        "edges",
        "frame",
        "keep",
        "layer",
        "module",
        "name",
        "saved",
        "seq",
        "slots",
        "summed",
    )

    def __init__(self, seq: int, name: str, inputs: Sequence[Tensor], backward: Backward, tape: Tape) -> None:
        self.seq, self.name, self.backward = seq, name, backward
        self.edges = [t.node for t in inputs]
        self.dtypes = [t.dtype for t in inputs]
        self.module, self.layer = tape.module, tape.layer
        self.saved: list[Tensor] = []
        self.frame: Any = None
        self.slots: list[int] = []
        self.keep: Any = None
        self.summed: dict[int, Shape] = _NO_SUMS


class Leaf(Node):
    """Where a gradient ends: a parameter, or a tensor that merely requires one."""

    __slots__ = ("grad", "parameter")

    def __init__(self, parameter: Parameter | None = None) -> None:
        self.seq, self.edges, self.parameter = -1, [], parameter
        self.grad: Tensor | None = None

    def accept(self, gradient: Tensor, tape: Tape) -> None:
        """Keep the gradient; a later one is added in place and dropped."""
        target = self.parameter or self
        if target.grad is None:
            target.grad = Tensor(gradient.storage, gradient.shape, gradient.dtype)
            if self.parameter is not None:
                birth = tape.births[gradient.storage.id]
                birth.kind, birth.module = "gradient", self.parameter.name


class Parameter:
    """A weight and its gradient."""

    __slots__ = ("grad", "layer", "name", "tensor")

    def __init__(self, tape: Tape, name: str, shape: Shape, dtype: str) -> None:
        self.name, self.layer = name, tape.layer
        self.tensor = Tensor(Storage(tape, shape, dtype, name.rsplit(".", 1)[-1], "parameter"), shape, dtype)
        tape.births[-1].module = name
        self.grad: Tensor | None = None

    @property
    def trainable(self) -> bool:
        """Whether the parameter requires a gradient."""
        return self.tensor.node is not None

    def train(self, on: bool = True) -> None:
        """Require a gradient, or no longer."""
        self.tensor.node = Leaf(self) if on else None


def reachable(root: Node) -> tuple[list[Node], dict[Node, int]]:
    """Nodes under ``root`` in ascending order of creation, and how many gradients each is waiting for."""
    waiting: dict[Node, int] = {}
    order: list[Node] = []
    stack: list[Node] = [root]
    while stack:
        node = stack.pop()
        if not isinstance(node, Leaf):
            order.append(node)
        for edge in node.edges:
            if edge is not None:
                if edge not in waiting:
                    waiting[edge] = 0
                    stack.append(edge)
                waiting[edge] += 1
    order.sort(key=_by_seq)
    return order, waiting


def _by_seq(node: Node) -> int:
    return node.seq
