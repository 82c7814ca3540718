"""Which modules PEFT adapts, and how much trains: against PEFT itself on models without weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from configs import CONFIGS
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from vramcalc import LoRA, ModelSpec, VramcalcError, estimate
from vramcalc.errors import Unsupported
from vramcalc.inputs.hf_config import to_spec

FAMILIES = tuple(CONFIGS)
TARGETS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    ("all-linear", ()),
    ("ALL-LINEAR", ()),
    (["q_proj", "v_proj"], ()),
    (["proj"], ()),
    (["mlp.down_proj"], ()),
    (["o_proj", "lm_head"], ()),
    (["embed_tokens", "k_proj"], ()),
    (r".*layers\.[01]\..*(q|k)_proj", ()),
    (r".*_proj", ("lm_head",)),
    ("q_proj", ()),
    (["q_proj"], ("lm_head", "embed_tokens")),
    (["q_proj", "k_proj"], ("norm",)),
    ("all-linear", ("q_proj",)),
    (["layers.1.mlp.up_proj"], ()),
    (["nothing"], ()),
    (["input_layernorm"], ()),
)


def real(family: str, targets: Any, saved: Iterable[str]) -> Any:
    config = dict(CONFIGS[family])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        return get_peft_model(
            model,
            LoraConfig(r=4, target_modules=targets, modules_to_save=list(saved) or None, task_type="CAUSAL_LM"),
        )


def spec(family: str) -> ModelSpec:
    return to_spec(CONFIGS[family], family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("targets", "saved"), TARGETS, ids=str)
def test_what_trains_is_what_peft_trains(family: str, targets: Any, saved: tuple[str, ...]) -> None:
    method = LoRA(rank=4, target_modules=targets, modules_to_save=saved)
    if family == "mixtral" and isinstance(targets, str):
        with pytest.raises(Unsupported, match="what PEFT makes of a pattern"):
            estimate(spec(family), method, seq_len=32)
        return
    try:
        model = real(family, targets, saved)
    except ValueError:
        with pytest.raises(VramcalcError, match=r"target_modules = .*: expected"):
            estimate(spec(family), method, seq_len=32)
        return
    trainable, total = model.get_nb_trainable_parameters()
    found = estimate(spec(family), method, seq_len=32)
    assert found.trainable_params == trainable
    copies = sum(p.numel() for n, p in model.named_parameters() if "modules_to_save" in n)
    adapters = sum(p.numel() for n, p in model.named_parameters() if re.search(r"\.lora_", n))
    assert found.total_params == total - copies - adapters


@pytest.mark.parametrize("family", FAMILIES)
def test_full_fine_tuning_trains_everything(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIGS[family]))
    found = estimate(spec(family), "full", seq_len=32)
    assert found.trainable_params == found.total_params == model.num_parameters()
