"""A double of torch's autograd on shadow tensors: what nodes save, how backward walks them, checkpointing.

Only what decides lifetimes is here: which tensors a node saves, when it lets go of them, when a gradient is summed in
place or into a new buffer, when a checkpointed region is recomputed and how far.

References:
    pytorch torch/csrc/autograd/engine.cpp, input_buffer.cpp, functions/accumulate_grad.h;
    torch/utils/checkpoint.py.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from weakref import ReferenceType, ref

from vramcalc.shadow.engine.graph import Backward, Gradients, Leaf, Node, Parameter, reachable
from vramcalc.shadow.engine.tape import Shape, Storage, Tape, Tensor
from vramcalc.shadow.engine.work import Uncounted


class _StopRecomputation(Exception):
    """All saved tensors of a checkpointed region are back."""


class Frame:
    """One region under non-reentrant checkpointing."""

    __slots__ = ("autocast", "count", "holders", "recompute", "recovered", "seen")

    def __init__(self, recompute: Callable[[], object], autocast: str | None) -> None:
        self.recompute, self.autocast = recompute, autocast
        self.count = self.seen = 0
        self.recovered: dict[int, Tensor] | None = None
        self.holders: list[ReferenceType[Node]] = []


class Engine:
    """Runs operations forward and backward on a tape.

    Attributes:
        grad_enabled: as ``torch.is_grad_enabled``.
        autocast: dtype of ``torch.autocast``, None when off.
        casts: autocast's cache of cast weights, by parameter.
        work: where operators write down what they compute.
    """

    def __init__(self, tape: Tape, work: Uncounted | None = None) -> None:
        self.tape, self.work = tape, work or Uncounted()
        self.grad_enabled = True
        self.autocast: str | None = None
        self.casts: dict[Parameter, Tensor] = {}
        self._seq = 0
        self._frame: Frame | None = None

    @contextlib.contextmanager
    def no_autocast(self) -> Iterator[None]:
        """The inside of a composite operator: autocast has converted its arguments and does nothing more."""
        before, self.autocast = self.autocast, None
        yield
        self.autocast = before

    # -- forward -----------------------------------------------------------------------------------------------------

    def new(self, shape: Shape, dtype: str, op: str, *, view: bool = False) -> Tensor:
        """A fresh tensor."""
        return Tensor(Storage(self.tape, shape, dtype, op), shape, dtype, None, view)

    def apply(
        self,
        name: str,
        inputs: Sequence[Tensor],
        shape: Shape,
        dtype: str,
        saved: Sequence[Tensor],
        backward: Backward,
        *,
        op: str = "",
        saves_result: bool = False,
        summed: dict[int, Shape] | None = None,
    ) -> Tensor:
        """An operation with one fresh result.

        Args:
            name: of the operator; its node is called after it.
            inputs: in the order in which ``backward`` returns gradients.
            shape: of the result.
            dtype: of the result.
            saved: inputs kept for the backward pass.
            backward: from saved tensors and the result's gradient to the inputs' gradients; must hold no tensors.
            op: what the result is called on the tape, by default ``name``.
            saves_result: the result is kept for the backward pass too.
            summed: inputs that were broadcast, and the shape their gradients are summed to afterwards.
        """
        node = self.node(name, inputs, saved, backward)
        if summed and node is not None:
            node.summed = summed
        result = Tensor(Storage(self.tape, shape, dtype, op or name), shape, dtype, node)
        if saves_result and node is not None:
            self.save(node, [result])
        return result

    def view(self, name: str, x: Tensor, shape: Shape, backward: Backward) -> Tensor:
        """An operation whose result shares its input's storage."""
        return Tensor(x.storage, shape, x.dtype, self.node(name, [x], (), backward, moves=False), x.view)

    def node(
        self,
        name: str,
        inputs: Sequence[Tensor],
        saved: Sequence[Tensor],
        backward: Backward,
        *,
        moves: bool = True,
    ) -> Node | None:
        """The node of an operation that is about to run, None where no gradient is needed.

        Inputs are saved before the operator runs, as torch's generated code does: a recomputation that only wants
        them stops before the operator allocates.
        """
        if moves:
            self.work.begins(name, inputs)
        if not self.grad_enabled:
            return None
        for t in inputs:
            if t.node is not None:
                break
        else:
            return None
        self._seq += 1
        node = Node(self._seq, name, inputs, backward, self.tape)
        if saved:
            self.save(node, saved)
        return node

    def save(self, node: Node, tensors: Sequence[Tensor]) -> None:
        """Keep tensors for a node's backward pass."""
        frame = self._frame
        if frame is not None and frame.recovered is None:
            node.frame = frame
            node.slots.extend(range(frame.count, frame.count + len(tensors)))
            frame.count += len(tensors)
            frame.holders.extend([ref(node)] * len(tensors))
            return
        births = self.tape.births
        for t in tensors:
            birth = births[t.storage.id]
            birth.saved_by = birth.saved_by or node.name
            kept = Tensor(t.storage, t.shape, t.dtype)
            if frame is None:
                node.saved.append(kept)
                continue
            assert frame.recovered is not None
            if frame.holders[frame.seen]() is None:
                # Of a node that was dropped in the first pass: the one of this pass keeps it while it lives.
                node.saved.append(kept)
            else:
                frame.recovered[frame.seen] = kept
            frame.seen += 1
            if frame.seen == frame.count:
                raise _StopRecomputation

    # -- backward ----------------------------------------------------------------------------------------------------

    def backward(self, root: Node | None, gradient: Tensor) -> None:
        """Walk the graph from ``root`` as torch's engine does.

        Nodes run in descending order of creation; a leaf takes its gradient as soon as the last contribution is in.
        """
        if root is None:
            return
        order, waiting = reachable(root)
        buffers: dict[Node, Tensor] = {root: gradient}
        del gradient, root
        tape = self.tape
        before, self.grad_enabled = self.grad_enabled, False
        module, layer = tape.module, tape.layer
        while order:
            node = order.pop()
            if node not in buffers:
                for edge in node.edges:
                    if edge is not None:
                        waiting[edge] -= 1
                continue
            tape.module = node.module
            if node.layer != tape.layer:
                tape.at(node.layer)
            for leaf in self._run(node, buffers, waiting):
                leaf.accept(buffers.pop(leaf), tape)
        self.grad_enabled, tape.module = before, module
        tape.at(layer)

    def _run(self, node: Node, buffers: dict[Node, Tensor], waiting: dict[Node, int]) -> list[Leaf]:
        """Run one node and hand its gradients on; frees come in the order of engine.cpp's evaluate_function."""
        incoming = buffers.pop(node)
        saved = self._unpack(node)
        self.work.begins(node.name, saved, incoming)
        gradients = node.backward(saved, incoming)
        if node.frame is not None:
            # Recomputed tensors are locals of the node's apply(); ordinary ones are released after validation.
            del saved
        node.frame, node.backward = None, _released
        gradient = None
        for i, edge in enumerate(node.edges):
            if edge is not None:
                gradient = gradients[i]
                if gradient is None:
                    continue
                if i in node.summed:
                    self.work.begins("sum", (), gradient)
                    gradient = gradients[i] = self.new(node.summed[i], gradient.dtype, "sum")
                if gradient.dtype != node.dtypes[i]:
                    self.work.begins("to", (), gradient)
                    gradients[i] = self.new(gradient.shape, node.dtypes[i], "to")
        del gradient, incoming
        saved = []
        ready: list[Leaf] = []
        for i, edge in enumerate(node.edges):
            gradient, gradients[i] = gradients[i], None
            if edge is None:
                continue
            waiting[edge] -= 1
            if gradient is not None:
                old = buffers.pop(edge, None)
                if old is None:
                    buffers[edge] = gradient
                elif not old.view and sys.getrefcount(old) == 2 and sys.getrefcount(old.storage) == 2:
                    buffers[edge] = old
                    self.work.begins("add", [old], gradient)
                    self.work.writes_over(old)
                else:
                    self.work.begins("add", [old], gradient)
                    buffers[edge] = self.new(old.shape, old.dtype, "add")
                old = gradient = None
            if isinstance(edge, Leaf) and not waiting[edge] and edge in buffers:
                ready.append(edge)
        return ready

    def _unpack(self, node: Node) -> list[Tensor]:
        frame = node.frame
        if frame is None:
            saved, node.saved = node.saved, []
            return saved
        if frame.recovered is None:
            frame.recovered = {}
            before = (self._frame, self.grad_enabled, self.autocast, self.casts)
            self._frame, self.grad_enabled, self.autocast, self.casts = frame, True, frame.autocast, {}
            self.work.again = True
            with contextlib.suppress(_StopRecomputation):
                frame.recompute()
            self.work.again = False
            self._frame, self.grad_enabled, self.autocast, self.casts = before
        recovered = frame.recovered
        return [recovered.pop(slot) for slot in node.slots]

    # -- checkpointing -----------------------------------------------------------------------------------------------

    def checkpoint(self, flavour: str, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """One checkpointed region.

        Args:
            flavour: ``none``, ``reentrant`` or ``non_reentrant``.
            run: the region.
            x: its input.
        """
        if flavour == "none" or not self.grad_enabled:
            return run(x)
        if flavour == "non_reentrant":
            frame = Frame(lambda: run(x), self.autocast)
            outer, self._frame = self._frame, frame
            y = run(x)
            self._frame = outer
            return y
        node = self.node("CheckpointFunction", [x], [x], self._rerun(run))
        self.grad_enabled = False
        y = run(x)
        self.grad_enabled = True
        if node is None:
            return y
        node.keep = run
        return Tensor(y.storage, y.shape, y.dtype, node)

    def _rerun(self, run: Callable[[Tensor], Tensor]) -> Backward:
        autocast = self.autocast

        def backward(saved: list[Tensor], gradient: Tensor) -> Gradients:
            leaf = Leaf()
            detached = Tensor(saved[0].storage, saved[0].shape, saved[0].dtype, leaf)
            before = (self.grad_enabled, self.autocast, self.casts)
            self.grad_enabled, self.autocast, self.casts = True, autocast, {}
            self.work.again = True
            again = run(detached)
            self.work.again = False
            self.grad_enabled, self.autocast, self.casts = before
            self.backward(again.node, Tensor(gradient.storage, gradient.shape, gradient.dtype, None, True))
            return [leaf.grad]

        return backward


def _released(_saved: list[Tensor], _gradient: Tensor) -> Gradients:
    raise RuntimeError("this node has run already")
