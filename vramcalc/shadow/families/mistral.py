"""Mistral: Llama's modules; a sliding window, which transformers turns into a mask once the sequence reaches it."""

from __future__ import annotations

from vramcalc.shadow.families.llama import CausalLM as CausalLM
