"""Model families, one file per architecture, by ``model_type``."""

from __future__ import annotations

from vramcalc.shadow.families import granite, llama, mistral, mixtral, qwen2, qwen3

FAMILIES: dict[str, type[llama.CausalLM]] = {
    "granite": granite.CausalLM,
    "llama": llama.CausalLM,
    "mistral": mistral.CausalLM,
    "mixtral": mixtral.CausalLM,
    "qwen2": qwen2.CausalLM,
    "qwen3": qwen3.CausalLM,
}
