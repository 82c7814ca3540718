"""AdaLoRA as PEFT computes it: an update of three factors, an orthogonal regularization, ranks cut by importance.

The product of ``lora_A`` and ``lora_E`` is kept for the backward pass of every adapted layer. The regularization makes
a Gram matrix of every ``lora_A`` and ``lora_B``, whose gradients are therefore there when the backward pass begins.
Three tensors of each parameter's size are kept for its importance, from the first step until ranks are final.

References:
    PEFT 0.15 to 0.21 tuners/adalora/layer.py, ``SVDLinear`` and ``RankAllocator``; bnb.py, ``SVDLinear4bit``; model.py,
    ``AdaLoraModel.forward``.
    Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR 2023. arXiv:2303.10512
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vramcalc.inputs.releases import minor_release
from vramcalc.inputs.stack import AdaLoRA, LoRA, Stack
from vramcalc.inputs.targets import adapter_dtype
from vramcalc.shadow.engine import ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Gradients, Parameter
from vramcalc.shadow.engine.modules import Linear, Module, TiedHead
from vramcalc.shadow.engine.ops import Saved
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.engine.tape import Shape, Tensor, promote
from vramcalc.shadow.families.common.decoder import CausalLM
from vramcalc.shadow.methods.around_step import AroundStep
from vramcalc.shadow.methods.lora import attach_adapters
from vramcalc.shadow.quantization.bitsandbytes import Linear4bit

SPECS = (AdaLoRA,)
_COMPUTE_DTYPE = (0, 19)
"""First release of PEFT whose adapters take the compute dtype of four-bit layers."""
_RANKNUM_TRAINS = (0, 21)
"""First release of PEFT that makes a new parameter of a ``ranknum`` it casts, which then requires a gradient."""


def attach(net: CausalLM, method: AdaLoRA, stack: Stack, rank: Size | None) -> None:
    """Wrap targets with adapters."""
    attach_adapters(net, method, stack, rank, wrap)


def wrap(module: Module, method: LoRA, rank: Size, stack: Stack) -> Module | None:
    """AdaLoRA's adapter around a module."""
    match module:
        case Linear() | TiedHead():
            return SVDLinear(module, module.d_in, module.d_out, method, rank, stack)
        case Linear4bit():
            return SVDLinear4bit(module, module.d_in, module.d_out, method, rank, stack)
    return None


class SVDLinear(Module):
    """``peft.tuners.adalora.layer.SVDLinear``."""

    def __init__(
        self, base: Linear | TiedHead | Linear4bit, d_in: Size, d_out: Size, method: LoRA, rank: Size, stack: Stack
    ) -> None:
        super().__init__(base.engine, base.name)
        self.base_layer, self.dropout, self.layer = base, method.lora_dropout > 0, base.layer
        own = _dtype_of_layer(base, stack)
        trained = adapter_dtype(stack, own)
        cast_alone = own != "float32" and (minor_release(stack.peft) or (0, 0)) >= _RANKNUM_TRAINS
        self.lora_A = self._parameter("lora_A", (rank, d_in), trained)
        self.lora_B = self._parameter("lora_B", (d_out, rank), trained)
        self.lora_E = self._parameter("lora_E", (rank, 1), trained)
        kept = trained if cast_alone or stack.adapter_dtype == "float32" else own
        self.ranknum = self._parameter("ranknum", (1,), kept, trains=cast_alone)

    def _parameter(self, name: str, shape: Shape, dtype: str, *, trains: bool = True) -> Parameter:
        made = Parameter(self.engine.tape, f"{self.name}.{name}", shape, dtype)
        made.train(trains)
        return made

    def forward(self, *args: Tensor) -> Tensor:
        """The base layer's result, to which the update is added in place."""
        e, x = self.engine, args[0]
        result = self.base_layer(x)
        ranknum = ops.add_constant(e, self.ranknum.tensor)
        x = ops.to(e, x, self.lora_A.tensor.dtype)
        update = _divided(e, ops.mul_scalar(e, self.update(x)), ranknum)
        return ops.add_in_place(e, result, update, of_view=getattr(self.base_layer, "bias", None) is not None)

    def update(self, x: Tensor) -> Tensor:
        """``dropout(x) @ (lora_A * lora_E).T @ lora_B.T``."""
        e, a, b = self.engine, self.lora_A, self.lora_B
        if self.dropout:
            x = ops.dropout(e, x)
        x = ops.linear(e, x, ops.mul(e, a.tensor, self.lora_E.tensor), owner=a.name)
        return ops.linear(e, x, b.tensor, owner=b.name)


class SVDLinear4bit(SVDLinear):
    """``peft.tuners.adalora.bnb.SVDLinear4bit``: clones the base result, and casts only where autocast does not."""

    def forward(self, *args: Tensor) -> Tensor:
        """The base layer's result, to which the update is added in place."""
        e, x = self.engine, args[0]
        result = self.base_layer(x)
        result = ops.clone(e, result)
        ranknum = ops.add_constant(e, self.ranknum.tensor)
        if e.autocast is None:
            x = ops.to(e, x, self.lora_A.tensor.dtype)
        output = self.update(x)
        if e.autocast is None:
            output = ops.to(e, output, result.dtype)
        output = _divided(e, ops.mul_scalar(e, output), ranknum)
        return ops.add_in_place(e, result, output)


def _dtype_of_layer(base: Linear | TiedHead | Linear4bit, stack: Stack) -> str:
    """Dtype that adapters are made in: that of the layer's weight, or what it computes in over four bits."""
    if not isinstance(base, Linear4bit):
        return base.weight.tensor.dtype
    return base.compute_dtype if (minor_release(stack.peft) or (0, 0)) >= _COMPUTE_DTYPE else "float32"


def _divided(e: Engine, a: Tensor, b: Tensor) -> Tensor:
    """``a / b`` by a single number; where that needs a gradient, what is divided is kept for it.

    References:
        pytorch torch/csrc/autograd/FunctionsManual.cpp, ``div_tensor_other_grad``.
    """
    shape, dtype = a.shape, promote(a.dtype, b.dtype)
    if b.node is None:
        return ops.div(e, a, b)

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        quotients = [e.new(shape, dtype, "div"), e.new(shape, dtype, "div")]
        negative = e.new(shape, g.dtype, "neg")
        grad_b = e.new(shape, dtype, "div backward")
        del quotients, negative
        return [e.new(shape, dtype, "div backward"), grad_b]

    return e.apply("div", [a, b], shape, dtype, [a, b], backward, summed={1: b.shape})


# -- around the step ---------------------------------------------------------------------------------------------------


class RankAllocation(AroundStep):
    """The regularization of ``AdaLoraModel.forward``, and its ``RankAllocator`` in a step that cuts ranks.

    Args:
        net: with adapters.
        method: whether ranks are allocated.
        repeats: layers at full depth that a parameter stands for.
    """

    def __init__(self, net: CausalLM, method: AdaLoRA, repeats: Callable[[Parameter], int]) -> None:
        self.e, self.allocates = net.engine, method.update_and_allocate
        self.adapted = [module for _, _, module in net.modules() if isinstance(module, SVDLinear)]
        self.n_scores: Size = sum(repeats(m.lora_E) * m.lora_E.tensor.shape[0] for m in self.adapted)
        self.ipt: dict[Parameter, Tensor] = {}
        self.exp_avg_ipt: dict[Parameter, Tensor] = {}
        self.exp_avg_unc: dict[Parameter, Tensor] = {}

    def add_to_loss(self, loss: Tensor) -> Tensor:
        """The mean distance of every Gram matrix from the identity, added to the loss in place."""
        e = self.e
        regu_loss = para_cov = identity = None
        for p, transposed in [(p, t) for m in self.adapted for p, t in ((m.lora_A, False), (m.lora_B, True))]:
            e.tape.at(p.layer)
            e.tape.module = p.name
            para_cov = _gram(e, p, transposed=transposed)
            identity = e.new(para_cov.shape, para_cov.dtype, "eye")
            norm = _norm(e, ops.add_constant(e, para_cov, "sub"))
            regu_loss = ops.add_constant(e, norm) if regu_loss is None else ops.add_in_place(e, regu_loss, norm)
        e.tape.at(None)
        e.tape.module = ""
        assert regu_loss is not None, "something is adapted"
        regu_loss = ops.mul_scalar(e, regu_loss)
        loss = ops.add_in_place(e, loss, ops.mul_scalar(e, regu_loss))
        del para_cov, identity
        return loss

    @property
    def _parameters(self) -> list[Parameter]:
        return [p for m in self.adapted for p in (m.lora_A, m.lora_B, m.lora_E)]

    def prepare(self) -> None:
        """Importance of every parameter."""
        for p in self._parameters if self.allocates else ():
            self._ensure(p)
        self.e.tape.at(None)

    def step(self) -> None:
        """``update_and_allocate``."""
        if self.allocates:
            self._update_ipt()
            self._mask_to_budget()
            self.e.work.ends()

    def _ensure(self, p: Parameter) -> None:
        self.e.tape.at(p.layer)
        if p not in self.ipt:
            self.ipt[p], self.exp_avg_ipt[p], self.exp_avg_unc[p] = (
                self._kept(p, (), what) for what in ("ipt", "exp_avg_ipt", "exp_avg_unc")
            )

    def _update_ipt(self) -> None:
        """``RankAllocator.update_ipt``."""
        for p in self._parameters:
            self._ensure(p)
            assert p.grad is not None, "every adapter has a gradient"
            self.ipt[p] = self._kept(p, [self._like(p, [p.tensor, p.grad], "mul")], "ipt")
            self.exp_avg_ipt[p] = self._smoothed(p, self.exp_avg_ipt[p], self.ipt[p], "exp_avg_ipt")
            self.exp_avg_unc[p] = self._smoothed(p, self.exp_avg_unc[p], None, "exp_avg_unc")
        self.e.tape.at(None)

    def _smoothed(self, p: Parameter, before: Tensor, now: Tensor | None, what: str) -> Tensor:
        """``beta * before + (1 - beta) * now``; without ``now``, of how far importance is from its mean."""
        old = self._like(p, [before], "mul")
        if now is None:
            now = self._like(p, [self._like(p, [self.ipt[p], self.exp_avg_ipt[p]], "sub")], "abs")
        new = self._like(p, [now], "mul")
        del now
        return self._kept(p, [old, new], what)

    def _mask_to_budget(self) -> None:
        """``RankAllocator.mask_to_budget``."""
        e, rank, dtype = self.e, self.adapted[0].lora_E.tensor.shape[0], self.adapted[0].lora_E.tensor.dtype
        means: list[list[Tensor]] = []
        values, scores = [], []
        entry_ipt = ipt_ab = None
        for m in self.adapted:
            e.tape.at(m.layer)
            means.append([])
            for p in (m.lora_A, m.lora_B):
                entry_ipt = self._like(p, [self.exp_avg_ipt[p], self.exp_avg_unc[p]], "mul")
                means[-1].append(self._made([entry_ipt], (rank, 1), dtype, "mean"))
            entry_ipt = self._like(m.lora_E, [self.exp_avg_ipt[m.lora_E], self.exp_avg_unc[m.lora_E]], "mul")
            values.append(entry_ipt)
        e.tape.at(None)
        for m, both, value in zip(self.adapted, means, values, strict=True):
            e.tape.at(m.layer)
            ipt_ab = self._made(both, (rank, 2), dtype, "cat")
            summed = self._made([ipt_ab], (rank,), dtype, "sum")
            scores.append(self._made([value, summed], (rank,), dtype, "add"))
            del summed
        e.tape.at(None)
        self._threshold(dtype)
        for m, score in zip(self.adapted, scores, strict=True):
            e.tape.at(m.layer)
            self._mask([score], (rank, 1))
        e.tape.at(None)
        del entry_ipt, ipt_ab, m, both, value, score
        for layer in [m.layer for m in self.adapted]:
            e.tape.at(layer)
            means.pop(0)
            values.pop(0)
            scores.pop(0)
        e.tape.at(None)

    def _threshold(self, dtype: str) -> None:
        """``torch.kthvalue`` of all scores."""
        every = self._made([], (self.n_scores,), dtype, "cat")
        found = [self._made([every], (), dtype, "kthvalue"), self.e.new((), "int64", "kthvalue")]
        del found, every

    def _mask(self, scores: Sequence[Tensor], shape: Shape) -> None:
        """Which singular values are masked, and which are kept."""
        masked = self._made(scores, shape, "bool", "le")
        del masked
        masked = self._made(scores, shape, "bool", "le")
        kept = self._made([masked], shape, "bool", "bitwise_not")
        del masked, kept

    def _made(self, arguments: Sequence[Tensor], shape: Shape, dtype: str, op: str) -> Tensor:
        self.e.work.begins(op, arguments)
        return self.e.new(shape, dtype, op)

    def _like(self, p: Parameter, arguments: Sequence[Tensor], op: str) -> Tensor:
        return self._made(arguments, p.tensor.shape, p.tensor.dtype, op)

    def _kept(self, p: Parameter, arguments: Sequence[Tensor], what: str) -> Tensor:
        found = self._like(p, arguments, what)
        self.e.work.writes_over(found)
        birth = self.e.tape.births[found.storage.id]
        birth.kind, birth.module = "optimizer", p.name
        return found


def _gram(e: Engine, p: Parameter, *, transposed: bool) -> Tensor:
    """``p @ p.T``, or ``p.T @ p``: autocast keeps its cast of a parameter, and not that of its transpose."""
    shape = p.tensor.shape
    rows, inner = shape[::-1] if transposed else shape
    if e.autocast is None or p.tensor.dtype == e.autocast:
        x = y = p.tensor
    elif transposed:
        y = ops.cast_weight(e, p)
        x = ops.to(e, p.tensor, e.autocast)
    else:
        y = ops.to(e, p.tensor, e.autocast)
        x = ops.cast_weight(e, p)
    dtype, owner = x.dtype, p.name

    def backward(_saved: Saved, _gradient: Tensor) -> Gradients:
        e.work.differentiated(owner, dtype, (rows, inner), rows, for_input=True, for_weight=True)
        grad_y = e.new(shape, dtype, "mm backward")
        return [e.new(shape, dtype, "mm backward"), grad_y]

    e.work.multiplied(owner, dtype, (rows, inner), rows)
    return e.apply("mm", [x, y], (rows, rows), dtype, [x, y], backward)


def _norm(e: Engine, x: Tensor) -> Tensor:
    """``torch.norm(x, p="fro")``, and ``linalg_vector_norm_backward`` of order 2."""
    shape, dtype = x.shape, x.dtype

    def backward(_saved: Saved, _gradient: Tensor) -> Gradients:
        direction, zero = e.new(shape, dtype, "div"), e.new((), "bool", "eq")
        gradient = e.new(shape, dtype, "norm backward")
        del direction, zero
        return [gradient]

    return e.apply("linalg_vector_norm", [x], (), dtype, [x], backward, saves_result=True)
