"""LoRA as PEFT wraps it: adapters around layers, copies of saved modules, and their forward passes."""

from __future__ import annotations

from collections.abc import Callable

from vramcalc.errors import InvalidValue
from vramcalc.inputs.stack import LoRA, QLoRA, Stack
from vramcalc.inputs.targets import adapter_dtype, copy_dtype, is_target
from vramcalc.shadow.engine import ops
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.modules import Embedding, Linear, Module, TiedHead
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.engine.tape import Storage, Tensor
from vramcalc.shadow.families.common.decoder import CausalLM
from vramcalc.shadow.quantization.bitsandbytes import Linear4bit

SPECS = (LoRA, QLoRA)
Wrap = Callable[[Module, LoRA, Size, Stack], "Module | None"]
"""An adapter around a module, None around one that takes none."""


def attach(net: CausalLM, method: LoRA, stack: Stack, rank: Size | None) -> None:
    """LoRA's adapters."""
    attach_adapters(net, method, stack, rank, wrap)


def attach_adapters(net: CausalLM, method: LoRA, stack: Stack, rank: Size | None, wrap: Wrap) -> None:
    """Wrap targets with adapters and copy ``modules_to_save``; everything else is frozen.

    Raises:
        InvalidValue: targets that match no module, or a module that takes no adapter.
    """
    tape = net.engine.tape
    found = False
    for parent, attribute, module in list(net.modules()):
        if is_target(method, module.name):
            tape.at(module.layer)
            wrapped = wrap(module, method, method.rank if rank is None else rank, stack)
            if wrapped is None:
                raise InvalidValue(
                    "target_modules",
                    module.name,
                    "linear layers or the embedding",
                    "PEFT supports no other module here",
                )
            setattr(parent, attribute, wrapped)
            found = True
    tape.at(None)
    if not found:
        raise InvalidValue(
            "target_modules",
            method.target_modules if isinstance(method.target_modules, str) else sorted(method.target_modules),
            "names or a pattern that match at least one module",
            "the modules are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head and embed_tokens",
        )
    _save_modules(net, method, stack)


def wrap(module: Module, method: LoRA, rank: Size, stack: Stack) -> Module | None:
    """LoRA's adapter around a module."""
    match module:
        case Linear() | TiedHead():
            return LoraLinear(module, module.d_in, module.d_out, method, rank, stack)
        case Linear4bit():
            return LoraLinear4bit(module, module.d_in, module.d_out, method, rank, stack)
        case Embedding():
            return LoraEmbedding(module, method, rank, stack)
    return None


def _save_modules(net: CausalLM, method: LoRA, stack: Stack) -> None:
    """Replace the modules named in ``modules_to_save`` by trainable copies; the originals stay, frozen."""
    tape = net.engine.tape
    for parent, attribute, module in list(net.modules()):
        if not any(module.name.endswith(m) for m in method.modules_to_save):
            continue
        if isinstance(module, Linear4bit):
            raise InvalidValue(
                "modules_to_save",
                module.name,
                "modules that bitsandbytes leaves alone",
                "a weight packed in four bits cannot be trained: save lm_head, embed_tokens or a norm, or use LoRA",
            )
        tape.at(module.layer)
        setattr(parent, attribute, SavedModule(module, stack))
    tape.at(None)
    missing = {
        m
        for m in method.modules_to_save
        if not any(isinstance(s, SavedModule) and s.name.endswith(m) for _, _, s in net.modules())
    }
    if missing:
        raise InvalidValue("modules_to_save", sorted(missing), "names of modules of this model", "try lm_head")


class SavedModule(Module):
    """``peft.utils.ModulesToSaveWrapper``: a trainable copy beside the frozen original.

    References:
        PEFT 0.21 utils/other.py.
    """

    def __init__(self, module: Module, stack: Stack) -> None:
        super().__init__(module.engine, module.name)
        self.layer, self.original = module.layer, module
        copy = module.__class__.__new__(module.__class__)
        vars(copy).update(vars(module))
        for attribute, value in vars(module).items():
            if isinstance(value, Parameter):
                tensor = value.tensor
                made = Parameter(
                    module.engine.tape,
                    f"{module.name}.{attribute} (copy)",
                    tensor.shape,
                    copy_dtype(stack, tensor.dtype),
                )
                made.train()
                setattr(copy, attribute, made)
            elif isinstance(value, Tensor):
                storage = Storage(module.engine.tape, value.shape, value.dtype, attribute, "parameter")
                setattr(copy, attribute, Tensor(storage, value.shape, value.dtype))
        self.copy = copy

    def forward(self, *args: Tensor) -> Tensor:
        """The copy runs."""
        return self.copy(*args)


class LoraLinear(Module):
    """``peft.tuners.lora.layer.Linear``."""

    def __init__(
        self, base: Linear | TiedHead | Linear4bit, d_in: Size, d_out: Size, method: LoRA, rank: Size, stack: Stack
    ) -> None:
        super().__init__(base.engine, base.name)
        self.base_layer, self.dropout, self.layer = base, method.lora_dropout > 0, base.layer
        dtype = adapter_dtype(stack, base.compute_dtype if isinstance(base, Linear4bit) else base.weight.tensor.dtype)
        self.lora_A = Linear(base.engine, f"{base.name}.lora_A", d_in, rank, dtype)
        self.lora_B = Linear(base.engine, f"{base.name}.lora_B", rank, d_out, dtype)
        self.lora_A.weight.train()
        self.lora_B.weight.train()

    def forward(self, *args: Tensor) -> Tensor:
        """The base layer's result plus the adapter's, in the result's dtype."""
        e, x = self.engine, args[0]
        result = self.base_layer(x)
        result_dtype = result.dtype
        x = ops.to(e, x, self.lora_A.weight.tensor.dtype)
        result = ops.add(e, result, self.update(x))
        return ops.to(e, result, result_dtype)

    def update(self, x: Tensor) -> Tensor:
        """``lora_B(lora_A(dropout(x))) * scaling``."""
        e = self.engine
        if self.dropout:
            return ops.mul_scalar(e, self.lora_B(self.lora_A(ops.dropout(e, x))))
        return ops.mul_scalar(e, self.lora_B(self.lora_A(x)))


class LoraLinear4bit(LoraLinear):
    """``peft.tuners.lora.bnb.Linear4bit``: clones the base result, and casts only where autocast does not."""

    def forward(self, *args: Tensor) -> Tensor:
        """The base layer's result plus the adapter's."""
        e, x = self.engine, args[0]
        result = self.base_layer(x)
        result = ops.clone(e, result)
        if e.autocast is not None:
            output = self.update(x)
            result = ops.add(e, result, output)
            return result
        expected = result.dtype
        x = ops.to(e, x, self.lora_A.weight.tensor.dtype)
        output = self.update(x)
        output = ops.to(e, output, expected)
        result = ops.add(e, result, output)
        return result


class LoraEmbedding(Module):
    """``peft.tuners.lora.layer.Embedding``: two plain parameters, used transposed."""

    def __init__(self, base: Embedding, method: LoRA, rank: Size, stack: Stack) -> None:
        super().__init__(base.engine, base.name)
        self.base_layer, self.layer = base, base.layer
        vocab, width = base.weight.tensor.shape
        tape, dtype = base.engine.tape, adapter_dtype(stack, base.weight.tensor.dtype)
        self.lora_A = Parameter(tape, f"{base.name}.lora_embedding_A", (rank, vocab), dtype)
        self.lora_B = Parameter(tape, f"{base.name}.lora_embedding_B", (width, rank), dtype)
        self.lora_A.train()
        self.lora_B.train()

    def forward(self, *args: Tensor) -> Tensor:
        """The base embedding plus the adapter's, in the base's dtype."""
        e, ids = self.engine, args[0]
        result = self.base_layer(ids)
        result_dtype = result.dtype
        after_a = ops.embedding(e, self.lora_A, ids, transposed=True)
        output = ops.mul_scalar(e, ops.linear(e, after_a, self.lora_B))
        output = self.base_layer.scaled(output)
        result = ops.add(e, result, output)
        return ops.to(e, result, result_dtype)
