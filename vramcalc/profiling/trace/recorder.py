"""Every storage that a program asks for, in order, and the moment each one dies.

A torch dispatch mode sees the output of every operator; a weak reference on its storage tells when the last tensor
that used it is gone. Under fake tensors nothing is computed and no memory is taken, yet the sequence is the one that
the CUDA caching allocator would be asked for, but for two things that are put right here: the engine's in-place
accumulation, which an active mode switches off, and the buffers that CUDA kernels take inside one operator.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from vramcalc.errors import Unsupported
from vramcalc.units import round_up

_ADD = torch.ops.aten.add.Tensor
_ITEM = torch.ops.aten._local_scalar_dense.default
_EQUAL = torch.ops.aten.equal.default
_INDEX = torch.ops.aten.index.Tensor
_INDEX_PUT = (torch.ops.aten._index_put_impl_.default, torch.ops.aten.index_put.default)
"""In place on a GPU; autograd takes the second, out of place, for fake tensors only."""
_IN_PLACE = {
    _INDEX_PUT[1]: torch.ops.aten.index_put_.default,
    torch.ops.aten.scatter.src: torch.ops.aten.scatter_.src,
}
"""Backward formulas write into zeros of their own, and make a copy for subclasses of tensors, as fake ones are."""
_MASKED_SELECT = torch.ops.aten.masked_select.default

_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "gemm_4bit"})

HiddenBuffers = Callable[[str, tuple[Any, ...], dict[str, Any]], list[tuple[int, str]]]


@dataclass(slots=True)
class Allocation:
    """One storage."""

    id: int
    n_bytes: int
    """As requested. [B]"""
    op: str
    node: str
    """Autograd node that was running, empty in the forward pass."""
    module: str
    shape: tuple[int, ...]
    dtype: str
    phase: str
    label: str = ""
    """What the job says it is: parameter, gradient, optimizer, workspace."""
    _ref: Any = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """As the caching allocator counts it: rounded up to 512. [B]"""
        return round_up(self.n_bytes, 512)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records allocations and frees; see the module's text.

    Attributes:
        allocations: by id, in order of birth.
        events: ``id`` for a birth, ``~id`` for a death.
        marks: ``(index into events, phase)``.
        at_product: called once, when the next matrix product has its result.
    """

    def __init__(self, hidden_buffers: HiddenBuffers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocations: list[Allocation] = []
        self.events: list[int] = []
        self.marks: list[tuple[int, str]] = []
        self.phase = "load"
        self.modules: list[str] = [""]
        self._live: dict[int, Allocation] = {}
        self._hidden = hidden_buffers
        self.at_product: Callable[[], None] | None = None

    def mark(self, phase: str) -> None:
        """Open a phase."""
        self.phase = phase
        self.marks.append((len(self.events), phase))

    def allocate(self, n_bytes: int, op: str, shape: tuple[int, ...] = (), dtype: str = "") -> Allocation:
        """Write down a birth."""
        node = torch._C._current_autograd_node()
        made = Allocation(
            len(self.allocations),
            n_bytes,
            op,
            node.name() if node is not None else "",
            self.modules[-1],
            tuple(shape),
            dtype,
            self.phase,
        )
        self.allocations.append(made)
        self.events.append(made.id)
        return made

    def free(self, allocation: Allocation) -> None:
        """Write down a death."""
        self.events.append(~allocation.id)

    def label(self, tensor: torch.Tensor, label: str, module: str = "") -> None:
        """Say what a tensor's storage holds, and whose it is."""
        found = self._live.get(tensor.untyped_storage()._cdata)
        if found is not None:
            found.label = label
            found.module = module or found.module

    def label_rest(self, label: str) -> None:
        """Label everything alive that has no label yet."""
        for allocation in self._live.values():
            allocation.label = allocation.label or label

    def see(self, tensor: torch.Tensor, op: str) -> None:
        """Record the storage of an operator's output, unless it is known."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live or storage.nbytes() == 0 or tensor.device.type != "cpu":
            return
        made = self.allocate(storage.nbytes(), op, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        self._live[key] = made

        def dead(_: object, key: int = key, made: Allocation = made) -> None:
            self._live.pop(key, None)
            self.free(made)

        made._ref = weakref.ref(storage, dead)

    def _ignore(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        host = Allocation(-1, 0, "host", "", "", (), "", self.phase)
        host._ref = weakref.ref(storage, lambda _: self._live.pop(key, None))
        self._live[key] = host

    @staticmethod
    def _accumulates_in_place(args: tuple[Any, ...]) -> bool:
        """Whether autograd's InputBuffer would add in place: it owns the first gradient and that is no view.

        The counts are one owner and what Python's dispatch itself holds.
        """
        a, b = args[0], args[1]
        return bool(
            torch._C._current_autograd_node() is not None
            and not torch.is_grad_enabled()
            and isinstance(b, torch.Tensor)
            and a.shape == b.shape
            and a.dtype == b.dtype
            and a._use_count() == 4
            and torch._C._storage_Use_Count(a.untyped_storage()._cdata) == 2
        )

    def _select(self, func: Any, args: tuple[Any, ...]) -> torch.Tensor | None:
        """Boolean selection, whose size depends on data: every element is taken, which is the largest result."""
        if func is _MASKED_SELECT:
            found: torch.Tensor = args[0].new_empty(args[1].numel())
            self.see(found, "masked_select")
            return found
        if func not in (_INDEX, *_INDEX_PUT):
            return None
        x: torch.Tensor = args[0]
        mask = args[1][0]
        if mask is None or mask.dtype != torch.bool:
            return None
        positions = self.allocate(8 * mask.numel() * mask.dim(), "nonzero")
        if func is _INDEX:
            x = x.new_empty((mask.numel(), *x.shape[mask.dim() :]))
            self.see(x, "index")
        self.free(positions)
        return x

    def _any_value(self, t: torch.Tensor) -> float:
        """A number where one is asked for: no size depends on which.

        Raises:
            Unsupported: a yes or no, on which what runs next depends.
        """
        if t.dtype == torch.bool:
            raise Unsupported(
                f"{self.modules[-1] or 'the program'} asks in step phase {self.phase!r} whether values of a tensor are "
                "so or otherwise; a trace has no values, so what runs then is not known"
            )
        return 1.0 if t.is_floating_point() else 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _ADD and not kwargs and self._accumulates_in_place(args):
            torch.ops.aten.add_.Tensor(*args)
            return args[0]
        if func is _EQUAL:
            return True
        if func is _ITEM:
            try:
                return func(*args)
            except DataDependentOutputException:
                return self._any_value(args[0])
        selected = self._select(func, args)
        if selected is not None:
            return selected
        if func in _IN_PLACE and torch._C._current_autograd_node() is not None:
            _IN_PLACE[func](*args, **kwargs)
            return args[0]
        out = func(*args, **kwargs)
        name = func._overloadpacket.__name__ if hasattr(func, "_overloadpacket") else str(func)
        if name == "lift_fresh" and out.dim() == 0:
            # A literal such as an optimizer's step count: a host tensor on a GPU machine.
            self._ignore(out)
            return out
        buffers = [self.allocate(n, why) for n, why in self._hidden(name, args, kwargs)]
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor):
                self.see(tensor, name)
        if self.at_product is not None and name in _PRODUCTS:
            taken, self.at_product = self.at_product, None
            taken()
        for buffer in buffers:
            self.free(buffer)
        return out
