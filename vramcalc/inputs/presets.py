"""Recipes by name: what a trainer does that its user does not say.

A preset fills in a :class:`~vramcalc.inputs.stack.Stack` and the defaults of a
:class:`~vramcalc.inputs.stack.TrainingSpec`; every field can be overridden, and every result prints the recipe it
assumed. All of them hand the model an ``attention_mask``: transformers' and TRL's collators make one with the padding,
and the raw loops pass on what the tokenizer made. TRL's leaves it out with ``padding_free=True``:
``passes_attention_mask=False``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vramcalc.errors import UnknownName
from vramcalc.inputs.stack import Stack


@dataclass(frozen=True)
class Preset:
    """One recipe.

    Attributes:
        summary: in a line.
        source: the code it was read from.
        stack: fields of ``Stack`` that differ from its defaults.
        training: defaults of ``TrainingSpec``.
        qlora: fields of ``Stack`` that differ further under QLoRA.
    """

    summary: str
    source: str
    stack: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    qlora: dict[str, Any] = field(default_factory=dict)


_RAW_LOOP: dict[str, Any] = {
    "decay_groups": False,
    "outputs_to_float32": False,
    "bnb_embeddings_32bit": False,
    "keeps_outputs": "next_forward",
    "use_cache": True,
}

PRESETS: dict[str, Preset] = {
    "transformers-trainer": Preset(
        summary="Trainer(bf16=True) on a model in bfloat16, PEFT's defaults, fused AdamW",
        source="transformers 5.23 trainer.py, training_args.py; peft 0.21 mapping_func.py",
        stack={"dtype": "bfloat16", "autocast": "bfloat16"},
    ),
    "trl-sft": Preset(
        summary="SFTTrainer on a model given by name: float32 weights, bf16 autocast, checkpointing, chunked loss",
        source="trl 1.16 trainer/sft_trainer.py, sft_config.py, base_config.py, utils.py (create_model_from_path)",
        stack={
            "dtype": "float32",
            "autocast": "bfloat16",
            "loss": "chunked",
            "prepare_model_for_kbit_training": False,
        },
        training={"gradient_checkpointing": "non_reentrant"},
        qlora={"adapter_dtype": "bfloat16"},
    ),
    "peft-loop": Preset(
        summary="PEFT's MetaMathQA benchmark: raw loop, bfloat16 base, float32 adapters, padded batches, cache left on",
        source="huggingface/peft method_comparison/MetaMathQA/run.py",
        stack={**_RAW_LOOP, "dtype": "bfloat16", "zero_grad": "start", "empty_cache_steps": 10},
        training={"optim": "adamw_torch", "padded": True},
    ),
    "pure-bf16-loop": Preset(
        summary="raw loop, everything in bfloat16, no autocast, torch's default AdamW",
        source="transformers 5.23 docs, 'Fine-tuning' without Trainer; torch 2.13 optim/adamw.py",
        stack={**_RAW_LOOP, "dtype": "bfloat16", "adapter_dtype": "weights", "prepare_model_for_kbit_training": False},
        training={"optim": "adamw_torch", "max_grad_norm": 0.0},
    ),
}


def preset(name: str) -> Preset:
    """A recipe by name.

    Raises:
        UnknownName: no recipe has that name.
    """
    found = PRESETS.get(name)
    if found is None:
        raise UnknownName("stack", name, PRESETS)
    return found


def stack_of(name: str, *, method: str, **overrides: Any) -> Stack:
    """The recipe of a preset for a method (``full``, ``lora``, ``qlora``), with fields overridden."""
    chosen = preset(name)
    extra = chosen.qlora if method == "qlora" else {}
    return Stack(**{"name": name, **chosen.stack, **extra, **overrides})
