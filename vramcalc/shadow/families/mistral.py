"""Mistral: the decoder as it is; a sliding window becomes a mask once the sequence reaches it."""

from __future__ import annotations

from vramcalc.shadow.families.common import decoder


class CausalLM(decoder.CausalLM):
    """``MistralForCausalLM``."""
