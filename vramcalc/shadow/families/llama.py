"""Llama 2, 3, 3.1, 3.2 and whatever else is built on ``LlamaForCausalLM``: the decoder as it is."""

from __future__ import annotations

from vramcalc.shadow.families.common import decoder


class CausalLM(decoder.CausalLM):
    """``LlamaForCausalLM``."""
