"""Full fine-tuning: every parameter trains."""

from __future__ import annotations

from vramcalc.shadow.families.llama import CausalLM


def attach(net: CausalLM) -> None:
    """Require a gradient of every parameter."""
    for parameter in net.parameters():
        parameter.train()
