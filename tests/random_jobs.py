"""Jobs of every kind over small models: each setting at each of its values, alone, in pairs and many at once.

Settings and their values are read off the specs, so that a new field or value is tried without being named here. Only
numbers and texts need examples, which ``EXAMPLES`` gives.

``VRAMCALC_SEED=7 pytest tests/memory/test_matrix_by_chance.py`` draws other jobs; ``python tests/random_jobs.py`` tries
every pair of values over every family and method, which takes the better part of an hour.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from itertools import combinations
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from vramcalc import ModelSpec, VramcalcError, estimate
from vramcalc.inputs.base import MOVES_NO_MEMORY
from vramcalc.inputs.presets import PRESETS
from vramcalc.inputs.releases import RELEASES
from vramcalc.inputs.settings import METHOD_CLASSES
from vramcalc.inputs.stack import Stack, TrainingSpec
from vramcalc.memory.estimate import Estimate

SEED = int(os.environ.get("VRAMCALC_SEED", "0"))
"""Of everything random here."""
REPLAYED = 0.15
"""Share of jobs that the allocator is asked about."""

METHODS = tuple(METHOD_CLASSES)
_LABELS = {"kind", "name"}

EXAMPLES: dict[str, tuple[Any, ...]] = {
    "alloc_conf": ("max_split_size_mb:64", "roundup_power2_divisions:4", "expandable_segments:True"),
    "beta1": (0.5,),
    "beta2": (0.5,),
    "bitsandbytes": ("0.46", "0.50"),
    "deltaT": (1, 10),
    "empty_cache_steps": (1, 2, 3),
    "encoder_hidden_size": (8, 48),
    "gradient_accumulation_steps": (2, 5),
    "init_r": (9, 300),
    "lora_alpha": (1.0,),
    "lora_dropout": (0.1,),
    "max_grad_norm": (0.0, 1.0),
    "micro_batch_size": (2, 3),
    "modules_to_save": (["lm_head"], ["embed_tokens"], ["norm"], ["q_proj"], ["embed_tokens", "lm_head"]),
    "num_virtual_tokens": (1, 9, 20),
    "orth_reg_weight": (0.0,),
    "peft": ("0.12", "0.18", "0.21"),
    "quantization": ("none", "nf4", "fp4"),
    "rank": (1, 8, 300),
    "seq_len": (8, 100, 333),
    "seq_lens": ((100,), (128, 64, 96, 64, 64, 128), (64, 128), (48, 48, 48, 16)),
    "target_modules": (["q_proj", "v_proj"], ["gate_proj", "up_proj", "down_proj"], ["lm_head", "q_proj"],
                       ["embed_tokens", "o_proj"], r"model\.layers\.[25]\..*_proj", "all-linear"),
    "target_r": (1, 11),
    "tfinal": (0, 500),
    "tinit": (0, 200),
    "torch": ("2.13",),
    "total_step": (1, 5000),
    "transformers": tuple(dict.fromkeys(".".join(map(str, v)) for r in RELEASES for v in (r.since, r.checked))),
}  # fmt: skip
"""Values of the settings whose types do not list them."""
BESIDE: dict[str, tuple[Any, ...]] = {
    "stack": tuple(PRESETS),
    "gpu": ("t4", "a100-sxm-80", "rtx-4090", "h100-sxm", "b200"),
}
"""What is no field: recipes and GPUs."""

_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 200,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, ModelSpec] = {
    "arcee": ModelSpec(name="arcee", model_type="arcee", **_SMALL),
    "gemma2": ModelSpec(
        name="gemma2",
        model_type="gemma2",
        sliding_window=24,
        tie_word_embeddings=True,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        **_SMALL,
    ),
    "granite": ModelSpec(name="granite", model_type="granite", tie_word_embeddings=True, **_SMALL),
    "llama": ModelSpec(name="llama", model_type="llama", **_SMALL),
    "mistral": ModelSpec(name="mistral", model_type="mistral", sliding_window=64, **_SMALL),
    "mixtral": ModelSpec(name="mixtral", model_type="mixtral", num_local_experts=4, num_experts_per_tok=2, **_SMALL),
    "qwen2": ModelSpec(name="qwen2", model_type="qwen2", **{**_SMALL, "num_key_value_heads": 4}),
    "qwen3": ModelSpec(name="qwen3", model_type="qwen3", tie_word_embeddings=True, **_SMALL),
}
"""Two layers more than the longest of the short walks, so that these stand for more than they are."""

USUAL: dict[str, dict[str, Any]] = {
    "mixtral": {"transformers": "4.57"},
    "gemma2": {"attn_implementation": "eager"},
}
"""Settings of a family unless others are given: later releases have no linear layers in experts to adapt; recipes that
are given as a spec say SDPA."""

Made = tuple[str, str, dict[str, Any]]
"""Family, method, settings."""


def values(method: str) -> dict[str, tuple[Any, ...]]:
    """Every setting of a method, and the values it is tried with."""
    fields = {**METHOD_CLASSES[method].model_fields, **TrainingSpec.model_fields, **Stack.model_fields}
    found = {n: EXAMPLES.get(n) or _listed(f.annotation) for n, f in fields.items() if n not in _LABELS}
    return {**BESIDE, **found}


def _listed(kind: Any) -> tuple[Any, ...]:
    """The values that a type lists; those of a number or a text are not to be had."""
    origin = get_origin(kind)
    if kind is bool:
        return (False, True)
    if kind is NoneType:
        return (None,)
    if origin is Literal:
        return get_args(kind)
    if origin is Annotated:
        return _listed(get_args(kind)[0])
    if origin in (Union, UnionType):
        return tuple(value for part in get_args(kind) for value in _listed(part))
    return ()


TURNS = 4
"""In how many turns families and methods go through the values of a setting that is given alone."""


def alone() -> Iterator[Made]:
    """Every setting over every family and method, at values that take turns."""
    for i, family in enumerate(FAMILIES):
        for j, method in enumerate(METHODS):
            for name, tried in values(method).items():
                turn = (i + j) % min(TURNS, len(tried))
                yield from ((family, method, {name: value}) for value in tried[turn::TURNS])


def pairs(seed: int = SEED) -> Iterator[Made]:
    """Every pair of settings over every method, the families and values by chance.

    A setting that is declared to move no memory is tried beside others of that kind, and alone beside the rest.
    """
    rnd = random.Random(seed)  # noqa: S311
    for method in METHODS:
        tried = values(method)
        idle = {n for n, field in METHOD_CLASSES[method].model_fields.items() if MOVES_NO_MEMORY in field.metadata}
        for one, other in combinations(tried, 2):
            if (one in idle) != (other in idle):
                continue
            yield rnd.choice(list(FAMILIES)), method, {n: rnd.choice(tried[n]) for n in (one, other)}


def every_pair() -> Iterator[Made]:
    """Every pair of settings at every pair of their values, over every family and method: minutes."""
    for family in FAMILIES:
        for method in METHODS:
            tried = values(method)
            for one, other in combinations(tried, 2):
                yield from ((family, method, {one: a, other: b}) for a in tried[one] for b in tried[other])


def drawn(n: int, seed: int = SEED) -> Iterator[Made]:
    """Jobs with about a fifth of all settings given, by chance."""
    rnd = random.Random(seed)  # noqa: S311
    for _ in range(n):
        method = rnd.choice(METHODS)
        tried = values(method)
        given = {name: rnd.choice(tried[name]) for name in tried if rnd.random() < 0.2}
        yield rnd.choice(list(FAMILIES)), method, given


def estimated(made: Made) -> Estimate:
    """The estimate of a job."""
    family, method, given = made
    if "seq_lens" in given:
        given = {name: value for name, value in given.items() if name != "seq_len"}
    elif "seq_len" not in given:
        given = {**given, "seq_len": 40}
    return estimate(FAMILIES[family], method, **{**USUAL.get(family, {}), **given})


def answer(made: Made, *, replays: bool) -> Estimate | None:
    """A job's estimate with everything read off it, None where it is refused.

    Args:
        made: the job.
        replays: the allocator is asked too, which takes several times as long.
    """
    try:
        found = estimated(made)
    except VramcalcError:
        return None
    assert sum(row.n_bytes for row in found.rows) == found.allocated_bytes == found.peak.n_bytes, "rows"
    if replays:
        order = (found.allocated_bytes, found.block_bytes, found.reserved_bytes, found.process_bytes)
        assert list(order) == sorted(order), order
        assert found.allocated_bytes <= found.reserved_expandable_bytes
    return found


def broken(jobs: Iterable[Made], *, replayed: float = 0.0, seed: int = SEED) -> tuple[list[str], int]:
    """Jobs that are neither answered nor refused, each with what it ended in; and how many are answered.

    Args:
        jobs: to try.
        replayed: share of them that the allocator is asked about.
        seed: of which these are.
    """
    rnd, found, answered = random.Random(seed), list[str](), 0  # noqa: S311
    for made in jobs:
        try:
            answered += answer(made, replays=rnd.random() < replayed) is not None
        except Exception as err:
            found.append(f"{made}: {type(err).__name__}: {err}")
    return found, answered


if __name__ == "__main__":
    for line in broken(every_pair(), replayed=0.05)[0]:
        print(line)
