"""A grid says, element by element, what one estimate at a time says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from small import CHECKPOINTING, METHODS, TINY, going_with

from vramcalc import VramcalcError, estimate, estimate_grid
from vramcalc.errors import Unsupported
from vramcalc.inputs.releases import RELEASES
from vramcalc.inputs.settings import METHOD_CLASSES

POINTS = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 6000), st.integers(1, 300)), min_size=1, max_size=6)
SETTINGS = st.fixed_dictionaries(
    {
        "gradient_checkpointing": st.sampled_from(CHECKPOINTING),
        "loss": st.sampled_from(["full", "chunked", "fused_linear", "fused_cross_entropy"]),
        "optim": st.sampled_from(["adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "adafactor"]),
        "padded": st.booleans(),
        "autocast": st.sampled_from([None, "bfloat16"]),
        "attn_implementation": st.sampled_from(["sdpa", "eager"]),
        "gradient_accumulation_steps": st.integers(1, 2),
        "transformers": st.sampled_from(
            ["4.44", "4.45", "4.47", "4.48", "4.49", "4.52", "4.53", "4.55", "4.57", "5.23"]
        ),
    }
)


@given(POINTS, SETTINGS, st.sampled_from(METHODS))
@settings(max_examples=60, deadline=None)
def test_a_grid_equals_scalars_at_every_point(
    points: list[tuple[int, int, int]], settings: dict[str, Any], method: str
) -> None:
    batch, seq, rank = (np.array(column) for column in zip(*points, strict=True))
    axes = {"micro_batch_size": batch, "seq_len": seq} | (
        {"rank": rank} if "rank" in METHOD_CLASSES[method].model_fields else {}
    )
    settings = going_with(method, settings)
    try:
        estimate(TINY, method, **settings)
    except Unsupported:
        reject()
    grid = estimate_grid(TINY, method, **axes, **settings)
    for i in range(len(points)):
        own = {name: int(values[i]) for name, values in axes.items()}
        scalar = estimate(TINY, method, **own, **settings)
        assert grid.allocated_bytes[i] == scalar.allocated_bytes
        assert scalar.allocated_bytes == next(
            n.n_bytes
            for n in scalar.instants
            if n.name.split(",")[0] == str(grid.instant[i]).split(",")[0] and n.n_bytes == scalar.allocated_bytes
        )


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("release", [*(r.checked for r in RELEASES)], ids=str)
def test_a_grid_equals_scalars_where_masks_are_padded_to_multiples_of_eight(
    release: tuple[int, int], padded: bool
) -> None:
    settings = {"padded": padded, "transformers": "{}.{}".format(*release), "stack": "pure-bf16-loop"}
    if not padded and (4, 38) <= release <= (4, 39):
        # Llama's SDPA has a mask in these releases, which is not modelled.
        settings["attn_implementation"] = "flash_attention_2"
    seq = np.array([1, 7, 8, 63, 64, 512, 513, 1016, 1023, 1024])
    if padded and release < (4, 48):
        with pytest.raises(Unsupported, match="padded=True has not been checked"):
            estimate(TINY, "lora", **settings)  # type: ignore[arg-type]
        return
    scalars = [estimate(TINY, "lora", seq_len=int(n), **settings).allocated_bytes for n in seq]  # type: ignore[arg-type]
    assert estimate_grid(TINY, "lora", seq_len=seq, **settings).allocated_bytes.tolist() == scalars


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen2.5-0.5b", "qwen3-8b", "mistral-7b-v0.1"])
@pytest.mark.parametrize("method", METHODS)
def test_a_grid_over_a_real_model_equals_scalars(model: str, method: str) -> None:
    rng = np.random.default_rng(7)
    batch, seq = rng.integers(1, 33, 400), rng.integers(1, 16_000, 400)
    grid = estimate_grid(model, method, micro_batch_size=batch, seq_len=seq)
    for i in range(0, 400, 57):
        scalar = estimate(model, method, micro_batch_size=int(batch[i]), seq_len=int(seq[i]))
        assert grid.allocated_bytes[i] == scalar.allocated_bytes
    assert grid.walks < 100


def test_axes_broadcast_as_in_numpy() -> None:
    grid = estimate_grid(TINY, "lora", micro_batch_size=[[1], [2], [4]], seq_len=[64, 128])
    assert grid.allocated_bytes.shape == grid.seq_len.shape == grid.instant.shape == (3, 2)
    assert grid.rank is not None
    assert (np.diff(grid.allocated_bytes, axis=0) > 0).all()
    assert estimate_grid(TINY, "full", seq_len=[64]).rank is None


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"seq_len": [0, 5]}, "seq_len = 0: expected between 1 and"),
        ({"seq_len": [1.5]}, "seq_len = .*whole number"),
        ({"seq_len": [float("nan")]}, "seq_len = .*whole number"),
        ({"seq_len": [True]}, "seq_len = .*whole number"),
        ({"seq_len": ["7"]}, "seq_len = .*whole number"),
        ({"seq_len": []}, "seq_len = .*non-empty"),
        ({"rank": [1, 2**40]}, "rank = .*expected between 1 and"),
        ({"seq_len": [1, 2], "micro_batch_size": [1, 2, 3]}, "broadcast"),
        ({"seq_length": [1, 2]}, "no setting of lora named 'seq_length'; did you mean 'seq_len'"),
    ],
)
def test_bad_axes_are_refused(axes: dict[str, Any], said: str) -> None:
    with pytest.raises(VramcalcError, match=said):
        estimate_grid(TINY, "lora", **axes)
