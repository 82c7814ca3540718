"""How few layers and steps are walked and replayed: each must say as much as all of them, and none is done in vain."""

from __future__ import annotations

from typing import Any

import pytest
from random_jobs import FAMILIES, METHODS, USUAL
from small import CHECKPOINTING, TINY, tiny

from vramcalc import estimate
from vramcalc.memory.walks import Walks
from vramcalc.shadow.allocator import replay
from vramcalc.shadow.depth.few_layers import WALKED_LAYERS


def walked(walks: Walks) -> set[int]:
    """Layers of the walk in which the peak is sought, and of that whose requests are replayed."""
    return {walks._program.walked, walks.written_out.program.walked}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_three_or_four_layers_stand_for_all_of_them(family: str, method: str, checkpointing: str) -> None:
    if method == "prefix_tuning":
        checkpointing = "none"  # PEFT refuses the others
    usual = {"seq_len": 40, "gradient_checkpointing": checkpointing, **USUAL.get(family, {})}
    found = walked(estimate(FAMILIES[family], method, **usual).walks)
    assert found <= {*WALKED_LAYERS}
    if (family, method) == ("llama", "full"):
        assert found == {WALKED_LAYERS[0]}


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 3},
        {"optim": "adamw_torch"},
        {"optim": "adamw_torch_loop"},
        {"keeps_outputs": "next_forward", "use_cache": True},
        {"zero_grad": "start"},
        {"zero_grad_set_to_none": False},
        {"attn_implementation": "eager", "padded": True},
        {"loss": "fused_linear"},
        {"loss": "chunked"},
        {"autocast": "bfloat16", "dtype": "float32"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", METHODS)
def test_so_they_do_for_other_loops(method: str, settings: dict[str, Any]) -> None:
    """But for AdaLoRA under TRL's chunked loss, which is walked whole."""
    whole = (method, settings) == ("adalora", {"loss": "chunked"})
    assert walked(tiny(method, **settings).walks) <= {TINY.num_hidden_layers if whole else WALKED_LAYERS[0], 4}


def test_a_model_of_so_few_layers_is_walked_as_it_is() -> None:
    assert walked(estimate(TINY.replace(num_hidden_layers=3), "lora", seq_len=64).walks) == {3}


@pytest.mark.parametrize(("lengths", "most"), [((64,) * 40, 5), ((64, 96) * 20, 9)])
def test_steps_that_come_again_are_replayed_until_nothing_changes(
    lengths: tuple[int, ...], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, step = [], replay._Run.step
    monkeypatch.setattr(replay._Run, "step", lambda self, *args, **how: (run.append(args), step(self, *args, **how))[1])
    found = estimate(TINY, "lora", seq_lens=lengths)
    assert found.reserved_bytes
    assert len(run) <= most
