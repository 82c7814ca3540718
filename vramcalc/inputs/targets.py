"""Which modules of a model get an adapter or a trainable copy, and in which dtype those train."""

from __future__ import annotations

from vramcalc.inputs import patterns
from vramcalc.inputs.families import FAMILIES
from vramcalc.inputs.families.common import PROJECTIONS
from vramcalc.inputs.stack import LoRA, Stack


def is_target(method: LoRA, name: str) -> bool:
    """Whether PEFT gives a module an adapter.

    References:
        PEFT 0.21 tuners/tuners_utils.py, ``check_target_module_exists`` and ``_maybe_include_all_linear_layers``.
    """
    if is_saved(method, name):
        return False
    targets = method.target_modules
    if not isinstance(targets, str):
        return name in targets or any(name.endswith(f".{t}") for t in targets)
    if targets.lower() == "all-linear":
        return ".layers." in name and name.endswith(_LINEAR)
    return patterns.fullmatch(targets, name)


def is_saved(method: LoRA, name: str) -> bool:
    """Whether a module is in ``modules_to_save`` or inside one that is."""
    return any(patterns.match(patterns.of_saved(m), name) for m in method.modules_to_save)


def adapts_whole_mlp(method: LoRA, n_layers: int) -> bool:
    """Whether some decoder layer gets an adapter on each of gate_proj, up_proj and down_proj."""
    names = ("gate_proj", "up_proj", "down_proj")
    return any(all(is_target(method, f"model.layers.{i}.mlp.{n}") for n in names) for i in range(n_layers))


_LINEAR = ("_proj", ".gate", ".w1", ".w2", ".w3")
"""How the names of linear layers inside a decoder layer end."""

_LEAVES = tuple(dict.fromkeys([*PROJECTIONS, *(name for f in FAMILIES.values() for name in (*f.modules, *f.norms))]))
"""Leaves of a decoder layer, of every family and release."""


def layers_alike(method: LoRA, n_layers: int, n_experts: int = 0) -> bool:
    """Whether targets and saved modules are the same in every decoder layer."""
    experts = [f"block_sparse_moe.experts.{i}.{w}" for i in range(n_experts) for w in ("w1", "w2", "w3")]

    def choices(layer: int) -> list[tuple[bool, bool]]:
        names = [f"model.layers.{layer}.{p}" for p in (*_LEAVES, *experts)]
        return [(is_target(method, n), any(n.endswith(m) for m in method.modules_to_save)) for n in names]

    if all(name.replace("_", "").replace(".", "").isalpha() for name in _plain_names(method)):
        return True
    first = choices(0)
    return all(choices(layer) == first for layer in range(1, n_layers))


def _plain_names(method: LoRA) -> list[str]:
    r"""What is matched; a pattern may tell layers apart without a digit in it, as ``\d`` does."""
    targets = method.target_modules
    if isinstance(targets, str):
        targets = frozenset() if targets.lower() == "all-linear" else frozenset([f"^{targets}"])
    return [*targets, *method.modules_to_save]


def adapter_dtype(stack: Stack, base_dtype: str) -> str:
    """Dtype of an adapter: that of its layer, which in four bits is the compute dtype, unless the recipe casts it."""
    return base_dtype if stack.adapter_dtype == "weights" else stack.adapter_dtype


def copy_dtype(stack: Stack, original: str) -> str:
    """Dtype of a saved module's copy: PEFT keeps it, a trainer that casts what trains to 16 bits casts it too."""
    return original if stack.adapter_dtype in ("weights", "float32") else stack.adapter_dtype


def usual_adapter_dtype(method: LoRA, stack: Stack) -> str:
    """Dtype of the adapters on a model's projections."""
    storage = method.storage
    return adapter_dtype(stack, stack.dtype if storage is None else storage.bnb_4bit_compute_dtype)
