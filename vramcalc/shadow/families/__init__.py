"""Model families, one file per architecture, by ``model_type``."""

from __future__ import annotations

from vramcalc.shadow.families import arcee, gemma2, granite, llama, mistral, mixtral, qwen2, qwen3
from vramcalc.shadow.families.common import decoder

FAMILIES: dict[str, type[decoder.CausalLM]] = {
    "arcee": arcee.CausalLM,
    "gemma2": gemma2.CausalLM,
    "granite": granite.CausalLM,
    "llama": llama.CausalLM,
    "mistral": mistral.CausalLM,
    "mixtral": mixtral.CausalLM,
    "qwen2": qwen2.CausalLM,
    "qwen3": qwen3.CausalLM,
}
