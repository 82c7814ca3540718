"""Which pairs of settings the traces of ``tables/traces.csv`` have been taken with.

``python tests/reference/covered.py`` prints the pairs that no row has, and the combinations of family, method,
checkpointing and attention that no row has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, product
from typing import get_args

from vramcalc.accuracy import axes as regimes
from vramcalc.accuracy.traces.table import read_traces
from vramcalc.inputs.families import FAMILIES
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import OWN_LOSSES, Checkpointing, LoRA, LossKind, OptimizerName

Pair = tuple[tuple[str, object], tuple[str, object]]
Axes = dict[str, tuple[tuple[object, ...], Callable[[Job], object]]]

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
DENSE = tuple(name for name, family in FAMILIES.items() if not family.experts)
"""Families whose pairs are covered; the mixture of experts has fewer rows, of its own choice."""
LOSSES = tuple(loss for loss in get_args(LossKind) if loss not in ("fused_cross_entropy", *OWN_LOSSES))
"""Losses of trainers that can be traced; only the plugin that brings the other one could."""
LOOPS: dict[str, Callable[[Job], bool]] = {
    "no attention_mask": lambda j: not j.stack.passes_attention_mask,
    "gradients zeroed in place": lambda j: not j.stack.zero_grad_set_to_none,
    "outputs through backward": lambda j: j.stack.keeps_outputs == "backward",
    **{loss: (lambda j, loss=loss: j.stack.loss == loss) for loss in OWN_LOSSES},  # type: ignore[misc]
}
"""What raw loops do, of which every family and every method has a row."""
SPLIT = 64
"""Kernels and allocator round lengths up to multiples of this or of more. [tokens]"""


def _lora(job: Job) -> LoRA:
    assert isinstance(job.method, LoRA)
    return job.method


def targets(job: Job) -> str:
    """Layers with an adapter, by kind."""
    named = _lora(job).target_modules
    if isinstance(named, str):
        return "all-linear" if named == "all-linear" else "pattern"
    if named & {"embed_tokens", "lm_head"}:
        return "embeddings or head"
    inside = {"q_proj", "k_proj", "v_proj", "o_proj"}
    return "attention" if named <= inside else "mlp" if not named & inside else "both"


def batch(job: Job) -> str:
    """Small batches are special: one row needs no copy where several do."""
    size = job.training.micro_batch_size
    return str(size) if size <= 2 else "odd" if size % 2 else "even"


AXES: Axes = {
    "family": (DENSE, regimes.AXES["family"]),
    "method": (("full", "lora", "qlora"), regimes.AXES["method"]),
    "checkpointing": (get_args(Checkpointing), regimes.AXES["checkpointing"]),
    "attention": (("sdpa", "sdpa efficient", "sdpa math", "eager", "flash_attention_2"), regimes.attention),
    "weights": (
        (
            "bfloat16",
            "bfloat16 autocast bfloat16",
            "float32",
            "float32 autocast bfloat16",
            "float32 autocast float16",
            "float16",
            "float16 autocast float16",
        ),
        regimes.weights,
    ),
    "optimizer": (get_args(OptimizerName), regimes.AXES["optimizer"]),
    "loss": (LOSSES, regimes.AXES["loss"]),
    "padding": ((False, True), lambda j: j.training.padded),
    "batch": (("1", "2", "odd"), batch),
    "length": (("even", "odd"), lambda j: "odd" if j.training.seq_len % SPLIT else "even"),
    "accumulation": ((False, True), lambda j: j.training.gradient_accumulation_steps > 1),
    "tied head": ((False, True), lambda j: j.model.tie_word_embeddings),
    "layers": ((2, 3), lambda j: j.model.num_hidden_layers),
}
ADAPTER_AXES: Axes = {
    "rank": (RANKS, lambda j: _lora(j).rank),
    "targets": (("all-linear", "attention", "mlp", "both", "pattern", "embeddings or head"), targets),
    "modules_to_save": (
        ("", "lm_head", "embed_tokens", "embed_tokens lm_head"),
        lambda j: " ".join(sorted(_lora(j).modules_to_save)),
    ),
    "dropout": ((False, True), lambda j: _lora(j).lora_dropout > 0),
    "adapters": (("float32", "weights", "bfloat16"), regimes.adapters),
}
CORE = ("family", "method", "checkpointing", "attention")
"""Axes of which every combination has a row."""
REFUSED: tuple[dict[str, object], ...] = (
    # flash-attn takes 16-bit tensors only, and cuts padding out.
    {"attention": "flash_attention_2", "weights": "float32"},
    {"attention": "flash_attention_2", "padding": True},
    # Fused losses read the head's weight and pass by an adapter on it.
    {"loss": "chunked", "targets": "embeddings or head"},
    {"loss": "fused_linear", "targets": "embeddings or head"},
    # They make logits by themselves, and Granite's are scaled, Gemma's capped.
    *({"family": n, "loss": x} for n, f in FAMILIES.items() if f.logits for x in ("chunked", "fused_linear")),
    # Liger has none for them.
    *({"family": n, "loss": "fused_linear"} for n, f in FAMILIES.items() if not f.liger),
    # SDPA has no soft cap.
    *(
        {"family": n, "attention": kernel}
        for n, f in FAMILIES.items()
        if "sdpa" not in f.attention
        for kernel in ("sdpa", "sdpa efficient", "sdpa math")
    ),
)
"""Settings that are refused together."""


def settings(job: Job) -> dict[str, object]:
    """Value of each axis, adapters' only where there are some."""
    axes = {**AXES, **(ADAPTER_AXES if isinstance(job.method, LoRA) else {})}
    return {name: of(job) for name, (_, of) in axes.items()}


def pairs_of(job: Job) -> Iterator[Pair]:
    """Pairs of settings that a job has."""
    yield from combinations(settings(job).items(), 2)


def every_pair() -> Iterator[Pair]:
    """Pairs of settings that can go together."""
    axes = {**AXES, **ADAPTER_AXES}
    for (a, (ones, _)), (b, (others, _)) in combinations(axes.items(), 2):
        yield from (((a, x), (b, y)) for x, y in product(ones, others) if _goes({a: x, b: y}))


def _goes(has: dict[str, object]) -> bool:
    adapters_without = has.get("method") == "full" and not has.keys().isdisjoint(ADAPTER_AXES)
    return not adapters_without and not any(has.items() >= pair.items() for pair in REFUSED)


def missing(jobs: Iterable[Job]) -> list[Pair]:
    """Pairs that no job has."""
    found = {pair for job in jobs for pair in pairs_of(job)}
    return [pair for pair in every_pair() if pair not in found]


def missing_core(jobs: Iterable[Job]) -> list[tuple[object, ...]]:
    """Combinations of ``CORE`` that no job has."""
    found = {tuple(settings(job)[name] for name in CORE) for job in jobs}
    every = product(*(AXES[name][0] for name in CORE))
    return [one for one in every if one not in found and _goes(dict(zip(CORE, one, strict=True)))]


if __name__ == "__main__":
    jobs = [row.job for row in read_traces()]
    for pair in missing(jobs):
        print(*(f"{name} = {value}" for name, value in pair), sep=", ")
    for combination in missing_core(jobs):
        print(*combination, sep=", ")
