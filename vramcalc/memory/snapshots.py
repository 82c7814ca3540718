"""Allocated memory between the phases of a run, such as after loading or after a forward pass."""

from __future__ import annotations

from vramcalc.memory.ledger import size_of
from vramcalc.memory.walks import Walks


def snapshots(walks: Walks) -> dict[str, int]:
    """Bytes alive at the end of each phase, ``torch.cuda.memory_allocated()`` but for blocks that are not split. [B]

    Args:
        walks: of a job.

    Returns:
        By name, in time order: ``base loaded`` (without adapters), ``loaded``; of every step that differs, such as
        ``step0.forward``, ``step0.backward``, ``step0.optimizer`` and, where gradients are dropped at the end,
        ``step0.zero_grad``. Of several micro-steps the last counts.
    """
    program, expansion, _, _ = walks.written_out
    sizes = [size_of(b) for b in program.births]
    found: dict[str, int] = {}
    alive = adapters = 0
    stops = [*expansion.starts[1:], len(expansion.events)]
    for start, stop, instance in zip(expansion.starts, stops, program.instances, strict=True):
        events = expansion.events[start:stop]
        for event in events:
            alive += sizes[expansion.births[event]] if event >= 0 else -sizes[expansion.births[~event]]
        step, _, phase = program.segments[instance.segment].phase.partition(".")
        if step == "load":
            born = (expansion.births[event] for event in events if event >= 0)
            adapters += sum(sizes[b] for b in born if ".lora_" in program.births[b].module)
        name = "loaded" if step == "load" else f"{step}.{_NAMES.get(last := phase.rpartition('.')[2], last)}"
        found[name] = alive
    return {"base loaded": found["loaded"] - adapters, **found}


_NAMES = {"head": "forward"}
