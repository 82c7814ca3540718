"""What each optimizer keeps, and what its step allocates on the way.

Written in the order of the libraries' own loops, variable by variable: a temporary that a loop leaves in a local lives
until the next iteration overwrites it.
"""

from __future__ import annotations

from collections.abc import Sequence

from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.sizes import product
from vramcalc.shadow.engine.tape import Shape, Tensor

Groups = Sequence[Sequence[Parameter]]


class Optimizer:
    """States by parameter, and a step.

    Attributes:
        state: tensors kept between steps.
        paged: states in managed memory, outside torch's allocator: parameter, shape and dtype.
    """

    def __init__(self, e: Engine, groups: Groups) -> None:
        self.e, self.groups = e, groups
        self.state: dict[Parameter, list[Tensor]] = {}
        self.paged: list[tuple[Parameter, Shape, str]] = []

    def prepare(self) -> None:
        """Make every state there will be, as if a step had been taken."""
        for group in self.groups:
            for p in group:
                self.ensure(p)
        self.e.tape.at(None)

    def ensure(self, p: Parameter) -> None:
        """Make a parameter's states unless it has them."""
        if p not in self.state:
            self.e.tape.at(p.layer)
            self.state[p] = []
            self.init(p)

    def step(self) -> None:
        """One optimizer step over all parameters that have a gradient."""
        for group in self.groups:
            self.step_group([p for p in group if p.grad is not None])
            self.e.tape.at(None)

    def init(self, p: Parameter) -> None:
        """Make a parameter's states."""
        raise NotImplementedError

    def step_group(self, group: Sequence[Parameter]) -> None:
        """One step over one parameter group: nothing but states, unless overridden."""
        for p in group:
            self.ensure(p)

    def keep(self, p: Parameter, shape: Shape, dtype: str, what: str) -> None:
        """Allocate a state tensor of a parameter."""
        t = self.e.new(shape, dtype, what)
        birth = self.e.tape.births[t.storage.id]
        birth.kind, birth.module = "optimizer", p.name
        self.state[p].append(t)


class FusedAdamW(Optimizer):
    """``torch.optim.AdamW(fused=True)``: one kernel, no temporaries, the step count on the device.

    References:
        pytorch torch/optim/adam.py, for this class and its subclasses.
    """

    step_on_device = True

    def init(self, p: Parameter) -> None:
        """Two moments in the parameter's dtype."""
        if self.step_on_device:
            self.keep(p, (), "float32", "step")
        self.keep(p, p.tensor.shape, p.tensor.dtype, "exp_avg")
        self.keep(p, p.tensor.shape, p.tensor.dtype, "exp_avg_sq")


class ForeachAdamW(FusedAdamW):
    """``foreach=True``, torch's default: the square roots of a whole group at once."""

    step_on_device = False

    def step_group(self, group: Sequence[Parameter]) -> None:
        """``_multi_tensor_adam``."""
        super().step_group(group)
        held = []
        for p in group:
            self.e.tape.at(p.layer)
            held.append(self.e.new(p.tensor.shape, p.tensor.dtype, "_foreach_sqrt"))
        self.e.tape.at(None)
        for p in group:
            self.e.tape.at(p.layer)
            held.pop(0)


class LoopAdamW(FusedAdamW):
    """``foreach=False``: two temporaries per parameter, the second alive until the next one is made."""

    step_on_device = False

    def step_group(self, group: Sequence[Parameter]) -> None:
        """``_single_tensor_adam``."""
        super().step_group(group)
        denom = None
        for p in group:
            self.e.tape.at(p.layer)
            root = self.e.new(p.tensor.shape, p.tensor.dtype, "sqrt")
            divided = self.e.new(p.tensor.shape, p.tensor.dtype, "div")
            del root
            denom = divided
            del divided
        self.e.tape.at(None)
        del denom


class SGD(Optimizer):
    """``torch.optim.SGD``: nothing, or with momentum a clone of the first gradient."""

    def __init__(self, e: Engine, groups: Groups, *, momentum: bool) -> None:
        super().__init__(e, groups)
        self.momentum = momentum

    def init(self, p: Parameter) -> None:
        """The momentum buffer."""
        if self.momentum:
            self.keep(p, p.tensor.shape, p.tensor.dtype, "momentum_buffer")


class Adafactor(Optimizer):
    """``transformers.optimization.Adafactor`` as Trainer sets it: factored second moments, no first.

    References:
        transformers src/transformers/optimization.py, ``Adafactor.step``; the names are its names.
    """

    def __init__(self, e: Engine, groups: Groups) -> None:
        super().__init__(e, groups)
        self.rms: dict[Parameter, Tensor] = {}

    def prepare(self) -> None:
        """States, and the root mean square that every step leaves with each parameter."""
        super().prepare()
        for group in self.groups:
            for p in group:
                self.e.tape.at(p.layer)
                self.rms[p] = self.e.new((), "float32", "rms")
        self.e.tape.at(None)

    def _root_mean_square(self) -> Tensor:
        norm = self.e.new((), "float32", "norm")
        result = self.e.new((), "float32", "rms")
        del norm
        return result

    def step_group(self, group: Sequence[Parameter]) -> None:
        """``step``: locals of one parameter live until the next one overwrites them."""
        new = self.e.new
        grad = p_data_fp32 = update = None
        for p in group:
            self.e.tape.at(p.layer)
            shape, half, factored = p.tensor.shape, p.tensor.dtype != "float32", len(p.tensor.shape) >= 2
            grad = p.grad
            if half:
                grad = new(shape, "float32", "grad.float()")
            self.ensure(p)
            p_data_fp32 = p.tensor
            if half:
                p_data_fp32 = new(shape, "float32", "p.float()")
            self.rms[p] = self._root_mean_square()
            square = new(shape, "float32", "grad**2")
            update = new(shape, "float32", "add eps")
            del square
            if factored:
                for reduced in _factors(shape):
                    mean = new(reduced, "float32", "mean")
                    del mean
                update = self._approximate(shape)
            else:
                update = new(shape, "float32", "rsqrt")
            self._clip()
            negative = new(shape, "float32", "neg")
            del negative
        self.e.tape.at(None)
        del grad, p_data_fp32, update

    def init(self, p: Parameter) -> None:
        """Second moments of rows and columns, or in full for vectors."""
        shape = p.tensor.shape
        for kept in _factors(shape) if len(shape) >= 2 else (shape,):
            self.keep(p, kept, "float32", "exp_avg_sq")

    def _approximate(self, shape: Shape) -> Tensor:
        mean = self.e.new((*shape[:-2], 1), "float32", "mean of rows")
        r_factor = self.e.new(shape[:-1], "float32", "r_factor")
        del mean
        c_factor = self.e.new(_factors(shape)[1], "float32", "c_factor")
        result = self.e.new(shape, "float32", "update")
        del r_factor, c_factor
        return result

    def _clip(self) -> None:
        rms = self._root_mean_square()
        divisor = self.e.new((), "float32", "div")
        del rms, divisor


def _factors(shape: Shape) -> tuple[Shape, Shape]:
    """Of rows and of columns, for every matrix of a stack."""
    return shape[:-1], (*shape[:-2], shape[-1])


class Bitsandbytes(Optimizer):
    """bitsandbytes' optimizers: states in float32, or in blocks of 8-bit codes with a float32 scale per 256.

    Tensors below 4,096 elements keep float32 states, and so does the embedding under Trainer. A paged state of
    100,000 elements or more lies in managed memory, outside torch's allocator.

    References:
        bitsandbytes 0.50 optim/optimizer.py; transformers trainer.py, ``create_optimizer``.
    """

    def __init__(
        self, e: Engine, groups: Groups, moments: int, bits: int, paged: bool, wide: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(e, groups)
        self.moments, self.bits, self.pages, self.wide = moments, bits, paged, wide
        outer, e.tape.kind = e.tape.kind, "optimizer"
        self.maps = [e.new((256,), "float32", "8-bit code book") for _ in range(2)] if bits == 8 else []
        e.tape.kind = outer

    def init(self, p: Parameter) -> None:
        """``init_state``."""
        n = product(p.tensor.shape)
        wide = self.bits == 32 or n < 4096 or p.name in self.wide
        dtype = "float32" if wide else "uint8"
        for i in range(self.moments):
            if self.pages and n >= 100_000:
                self.paged.append((p, p.tensor.shape, dtype))
            else:
                self.keep(p, p.tensor.shape, dtype, f"state{i + 1}")
        if not wide:
            for i in range(self.moments):
                self.keep(p, ((n + 255) // 256,), "float32", f"absmax{i + 1}")


class TorchaoAdamW(Optimizer):
    """torchao's low-bit AdamW: codes, a scale per 256 and a code book per state; odd sizes stay as they are.

    Its step is compiled into fused kernels, which are taken to allocate nothing.

    References:
        torchao 0.18 optim/adam.py, subclass_8bit.py, subclass_4bit.py.
    """

    block = 256

    def __init__(self, e: Engine, groups: Groups, bits: int) -> None:
        super().__init__(e, groups)
        self.bits = bits

    def init(self, p: Parameter) -> None:
        """``_new_buffer``, twice."""
        n = product(p.tensor.shape)
        for what in ("exp_avg", "exp_avg_sq"):
            if n < 4096 or n % self.block != 0:
                self.keep(p, p.tensor.shape, p.tensor.dtype, what)
                continue
            self.keep(p, (n * self.bits // 8,), "uint8", f"{what} codes")
            self.keep(p, (n // self.block,), "float32", f"{what} scales")
            self.keep(p, (1 << self.bits,), "float32", f"{what} code book")


def build(name: str, e: Engine, groups: Groups, wide: frozenset[str]) -> Optimizer:
    """The optimizer by its transformers name.

    Args:
        name: as in ``specs.OptimizerName``.
        e: the engine.
        groups: parameter groups.
        wide: parameters that keep 32-bit states under 8-bit optimizers.
    """
    match name:
        case "adamw_torch_fused":
            return FusedAdamW(e, groups)
        case "adamw_torch":
            return ForeachAdamW(e, groups)
        case "adamw_torch_loop":
            return LoopAdamW(e, groups)
        case "sgd":
            return SGD(e, groups, momentum=False)
        case "sgd_momentum":
            return SGD(e, groups, momentum=True)
        case "adafactor":
            return Adafactor(e, groups)
        case "adamw_torch_8bit" | "adamw_torch_4bit":
            return TorchaoAdamW(e, groups, bits=8 if name.endswith("8bit") else 4)
        case _:
            return Bitsandbytes(
                e,
                groups,
                moments=1 if "lion" in name else 2,
                bits=8 if name.endswith("8bit") else 32,
                paged=name.startswith("paged"),
                wide=wide,
            )
