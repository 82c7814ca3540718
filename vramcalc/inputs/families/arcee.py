"""Arcee: Llama's attention, and a feed-forward network without a gate, whose activation is a squared ReLU.

It came with 4.53; no trace of a release before 5.23 has been compared.
"""

from __future__ import annotations

from vramcalc.inputs.families.common import Family

FAMILY = Family(
    "arcee",
    "Arcee",
    max_position_embeddings=4096,
    since=(5, 23),
    earlier="builds arcee in a way that no trace has been compared with",
    divides_hidden=True,
    activation=("hidden_act", "relu2"),
    biases=("attention_bias", "mlp_bias"),
    gated=False,
    liger=False,
)
