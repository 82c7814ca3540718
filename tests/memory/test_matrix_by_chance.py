"""Thousands of jobs by chance: answered without contradiction, as a walk of every layer answers, or refused."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any
from unittest.mock import patch

import pytest
from random_jobs import REPLAYED, SEED, answer, broken, drawn, estimated

from vramcalc import Estimate
from vramcalc.memory import walks
from vramcalc.memory.walks import Walks

JOBS = 5_000
PARTS = 50
"""Files of many tests start first, so that none is still at work when the others are done."""
EVERY_LAYER = 25
"""One job in so many is walked over every layer, too."""


@pytest.mark.parametrize("part", range(PARTS))
def test_jobs_by_chance_contradict_neither_themselves_nor_a_walk_of_every_layer(part: int) -> None:
    jobs = list(islice(drawn(JOBS), part, None, PARTS))
    found, answered = broken(jobs, replayed=REPLAYED, seed=SEED + part)
    assert found == []
    assert answered > len(jobs) / 3
    for made in jobs[::EVERY_LAYER]:
        if (short := answer(made, replays=False)) is not None:
            assert said(short) == said_by_every_layer(short), made


RUNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("llama", "lora", {"autocast": "float16"}),
    ("llama", "full", {"dtype": "float16"}),
    ("llama", "qlora", {"use_cache": True}),
    ("llama", "qlora", {"stack": "peft-loop", "keeps_outputs": "no"}),
    ("llama", "lora", {"stack": "pure-bf16-loop", "attn_implementation": "eager", "keeps_outputs": "no"}),
    ("llama", "qlora", {"stack": "trl-sft", "modules_to_save": ["embed_tokens"]}),
    ("llama", "full", {"optim": "adafactor", "empty_cache_steps": 2}),
    ("qwen3", "lora", {"optim": "adafactor", "empty_cache_steps": 3, "seq_lens": (100, 64, 100, 100, 64, 64, 100)}),
)


@pytest.mark.parametrize("made", RUNS, ids=str)
def test_layers_that_are_not_alike_are_all_walked(made: tuple[str, str, dict[str, Any]]) -> None:
    found = estimated(made)
    assert said(found) == said_by_every_layer(found)


def said(found: Estimate) -> tuple[Any, ...]:
    """Everything a walk says, but for what a middle layer's tensor was saved for."""
    return _said(found.walks)


def said_by_every_layer(found: Estimate) -> tuple[Any, ...]:
    with patch.object(walks, "depths_of", lambda job: [job.model.num_hidden_layers]):
        return _said(Walks(found.job))


def _said(walks: Walks) -> tuple[Any, ...]:
    rows: Counter[tuple[Any, ...]] = Counter()
    for r in walks.rows:
        rows[r.group, r.module, r.what, r.shape, r.dtype] += r.n_bytes
    return walks.instants, rows, walks.trainable_params, walks.paged_bytes, walks.replay(walks.job.stack.allocator)
