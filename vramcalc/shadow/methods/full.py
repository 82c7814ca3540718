"""Full fine-tuning: every parameter trains."""

from __future__ import annotations

from vramcalc.inputs.stack import FullFineTuning, Stack
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.families.common.decoder import CausalLM

SPECS = (FullFineTuning,)


def attach(net: CausalLM, _method: FullFineTuning, _stack: Stack, _rank: Size | None) -> None:
    """Require a gradient of every parameter."""
    for parameter in net.parameters():
        parameter.train()
