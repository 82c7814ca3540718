"""What reading a quantised checkpoint asks for before training, and what of it ends there."""

from __future__ import annotations

from collections import Counter

import pytest
from small import TINY

from vramcalc import estimate
from vramcalc.shadow.training.reading_checkpoint import read_quantised


def transient(*, tied: bool, casts: bool) -> Counter[int]:
    """Bytes that loading asks for and gives back, of a model whose embedding TRL casts to bfloat16 or leaves alone."""
    found = estimate(
        TINY.replace(tie_word_embeddings=tied),
        "qlora",
        stack="trl-sft",
        dtype="bfloat16",
        prepare_model_for_kbit_training=True,
        casts_embeddings_to_bf16=casts,
        seq_len=64,
    )
    walks = found.walks
    program, expansion = walks.written_out.program, walks.written_out.expansion
    births = [program.births[b] for b in expansion.births]
    stream = walks.stream
    events, sizes = read_quantised(stream.load, births, stream.sizes, found.job.stack)
    return Counter(sizes[~event] for event in events if event < 0)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_are_read_raised_and_cast_where_trl_casts_them(tied: bool) -> None:
    """trl trainer/utils.py, ``peft_module_casting_to_bf16``: each was read in 16 bits and raised to float32 before."""
    left, cast = transient(tied=tied, casts=False), transient(tied=tied, casts=True)
    n_bytes = 2 * TINY.vocab_size * TINY.hidden_size
    ends = 1 if tied else 2
    assert cast[2 * n_bytes] - left[2 * n_bytes] == ends
    assert sum(cast.values()) >= sum(left.values())
