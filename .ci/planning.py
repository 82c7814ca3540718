"""The documents under ``tables/planning``: what ``.ci/generate.py`` writes there, and holds against what is there.

``python .ci/planning.py memory`` prints one. Everything comes from the library and the shipped tables alone.
"""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from vramcalc import estimate as estimate_of
from vramcalc import verdict
from vramcalc.accuracy import claims
from vramcalc.inputs import catalog
from vramcalc.memory.estimate import Estimate
from vramcalc.planning import prices
from vramcalc.planning.plan import Plan, plan_of, step_time_of
from vramcalc.planning.prices import Offer
from vramcalc.planning.workload import Workload
from vramcalc.show.formats import formatted
from vramcalc.show.text.plans import time_text
from vramcalc.show.words import common_lines, method_line, precision, step_line
from vramcalc.units import GIB, usd

MODELS = (
    "llama-3.2-1b", "llama-3.2-3b", "qwen2.5-7b", "llama-3.1-8b", "llama-2-13b", "qwen2.5-14b", "qwen2.5-32b",
    "llama-3.1-70b",
)  # fmt: skip
METHODS = ("full", "lora", "qlora")
LENGTHS = (512, 2048, 8192)
FIT_GPUS = ("rtx-3060-12", "rtx-4090", "a10g", "l4", "l40s", "a100-sxm-40", "a100-sxm-80", "h100-sxm", "h200")
JOB_GPUS = ("l4", "a10g", "rtx-4090", "l40s", "a100-sxm-80", "h100-sxm", "h200")
JOB_MODELS = ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "qwen2.5-14b", "qwen2.5-32b", "llama-3.1-70b")
EXAMPLES, TOKENS = (1_000, 10_000, 50_000, 100_000), 512
BATCHES = ((4, 4), (1, 16))
"""Micro batch and accumulation of a standard job; the first that fits."""
CHECKPOINTED = {"gradient_checkpointing": "non_reentrant"}
NOTICE = "Written by `python .ci/generate.py`; continuous integration holds it against what the library says today."


@cache
def _offers() -> tuple[Offer, ...]:
    return prices.read(prices.shipped_path())


def _estimate(model: str, method: str, **settings: Any) -> Estimate:
    return estimate_of(model, method, **settings)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], decimals: int | None = None) -> str:
    places = {} if decimals is None else dict.fromkeys(columns, decimals)
    return formatted(columns, rows, "md", places)


def _prose(text: str) -> str:
    return textwrap.fill(text, 110, break_on_hyphens=False)


def _params(model: str) -> str:
    return f"{catalog.model(model).params_total / 1e9:.2f} B"


def _recipes(model: str, **settings: Any) -> str:
    """What the figures of a document assume, as a list."""
    jobs = [_estimate(model, method, **settings).job for method in METHODS]
    lines = [f"{job.method.kind}: {method_line(job)}; {precision(job)}" for job in jobs]
    batch_and_loop, versions = common_lines(jobs[0])
    loop = batch_and_loop.partition("; ")[2]
    lines += [f"{jobs[0].stack.name}: {step_line(jobs[0])}, {loop}", versions]
    return "\n".join(f"- {line}" for line in lines)


# -- memory ------------------------------------------------------------------------------------------------------------


def memory() -> str:
    """Memory by method and model size."""
    parts = [
        f"# Memory by method and model size\n\n{NOTICE}",
        _prose(
            "GiB that the process takes of an A100: what torch's allocator reserves, and the CUDA context. One "
            "sequence in a micro batch; *checkpointed* with gradient checkpointing. Empty where a model has no "
            "positions for the length. Any other batch, length, recipe or GPU: `vramcalc estimate`."
        ),
        _recipes(MODELS[0], seq_len=LENGTHS[0], gpu="a100-sxm-80"),
    ]
    columns = ["model", "parameters", *(f"{m}{how}" for m in METHODS for how in ("", ", checkpointed"))]
    for length in LENGTHS:
        rows = [[catalog.model(m).name, _params(m), *_peaks(m, length)] for m in MODELS]
        parts.append(f"## {length:,} tokens\n\n{_table(columns, rows, 2)}")
    return "\n\n".join(parts) + "\n"


def _peaks(model: str, length: int) -> Iterator[float | None]:
    """None where the model has no positions for the length."""
    for method in METHODS:
        for how in ({}, CHECKPOINTED):
            known = length <= catalog.model(model).max_position_embeddings
            asked = {"gpu": "a100-sxm-80", "seq_len": length, **how}
            yield _estimate(model, method, **asked).process_bytes / GIB if known else None


# -- what fits ---------------------------------------------------------------------------------------------------------

LADDER: tuple[tuple[str, dict[str, Any]], ...] = (
    ("as it is", {}),
    ("checkpointing", CHECKPOINTED),
    ("and fused loss", {**CHECKPOINTED, "loss": "fused_linear"}),
    ("and 8-bit AdamW", {**CHECKPOINTED, "loss": "fused_linear", "optim": "paged_adamw_8bit"}),
)
NOTHING = "no"


def fits() -> str:
    """What fits on each common GPU."""
    parts = [
        f"# What fits on a GPU\n\n{NOTICE}",
        _prose(
            "Each cell is the first of these changes with which one sequence trains: *as it is*, with gradient "
            "*checkpointing*, *and fused loss* (Liger's fused linear loss), *and 8-bit AdamW* (paged: its state is in "
            "managed memory, which goes to the host when the GPU is full); *no* where none is enough. A star: it fits "
            "with less than 3 % of the GPU's memory to spare."
        ),
        _recipes(MODELS[0], seq_len=LENGTHS[0], gpu="a100-sxm-80"),
    ]
    usable = [f"{catalog.gpu(g).usable_bytes / GIB:.1f} GiB" for g in FIT_GPUS]
    columns = ["model", "parameters", *(f"{g}, {n}" for g, n in zip(FIT_GPUS, usable, strict=True))]
    for method in METHODS:
        for length in LENGTHS[:2]:
            rows = [[catalog.model(m).name, _params(m), *_rungs(m, method, length)] for m in MODELS]
            parts.append(f"## {method}, {length:,} tokens\n\n{_table(columns, rows)}")
    return "\n\n".join(parts) + "\n"


def _rungs(model: str, method: str, length: int) -> Iterator[str]:
    for gpu in FIT_GPUS:
        yield next(filter(None, (_rung(model, method, length, gpu, name, how) for name, how in LADDER)), NOTHING)


def _rung(model: str, method: str, length: int, gpu: str, name: str, how: dict[str, Any]) -> str:
    found = _estimate(model, method, gpu=gpu, seq_len=length, **how)
    if found.allocated_bytes + found.context.n_bytes > catalog.gpu(gpu).usable_bytes:
        return ""
    status = verdict(found).status
    return {"fits": name, "tight": f"{name} *", "does not fit": ""}[status]


# -- standard jobs -----------------------------------------------------------------------------------------------------


def jobs() -> str:
    """Hours and dollars of standard jobs on one GPU."""
    parts = [
        f"# Hours and dollars of standard jobs\n\n{NOTICE}",
        _prose(
            f"One epoch over examples of {TOKENS} tokens, {BATCHES[0][0] * BATCHES[0][1]} of them per optimizer step, "
            "with gradient checkpointing, on one GPU. Times and dollars are given with the interval in brackets. "
            "Dollars are those of the cheapest dated offer on demand; an instance with more GPUs is billed whole. "
            "Loading, saving and waiting are not counted."
        ),
        _recipes(JOB_MODELS[0], seq_len=TOKENS, gpu="a100-sxm-80", **_batch(BATCHES[0]), **CHECKPOINTED),
    ]
    columns = ["method", "GPU", "micro batch", *(f"{n:,} examples" for n in EXAMPLES), "USD/h", "price of", "offer"]
    missing: Counter[str] = Counter()
    for model in JOB_MODELS:
        rows = []
        for method in METHODS:
            for gpu in JOB_GPUS:
                row = _job_row(model, method, gpu)
                missing["does not fit"] += row is None
                rows += [row] if row else []
        parts.append(f"## {catalog.model(model).name}, {_params(model)}\n\n{_table(columns, rows)}")
    total = len(JOB_MODELS) * len(METHODS) * len(JOB_GPUS)
    left = missing["does not fit"]
    parts.append(f"{total - left} of {total} combinations of model, method and GPU; the other {left} do not fit.")
    return "\n\n".join(parts) + "\n"


def _batch(batch: tuple[int, int]) -> dict[str, int]:
    return {"micro_batch_size": batch[0], "gradient_accumulation_steps": batch[1]}


def _job_row(model: str, method: str, gpu: str) -> list[Any] | None:
    for batch in BATCHES:
        found = _estimate(model, method, gpu=gpu, seq_len=TOKENS, **_batch(batch), **CHECKPOINTED)
        if found.allocated_bytes + found.context.n_bytes > catalog.gpu(gpu).usable_bytes:
            continue
        fit = verdict(found)
        if fit.status == "does not fit":
            continue
        step = step_time_of(fit.estimate)
        works = [Workload(examples=n, tokens_per_example=TOKENS) for n in EXAMPLES]
        plans = [plan_of(fit, work, offers=_offers(), step=step) for work in works]
        bill = plans[0].cheapest("on_demand")
        rate = [usd(bill.rate.usd_per_hour), bill.rate.as_of, bill.rate.label] if bill else ["", "", "no dated offer"]
        return [method, gpu, f"{batch[0]} x {batch[1]}", *map(_job_cell, plans), *rate]
    return None


def _job_cell(plan: Plan) -> str:
    """Time and dollars, each with its interval."""
    assert plan.hours
    bill = plan.cheapest("on_demand")
    cost = f", {usd(bill.usd.value)} USD ({usd(bill.usd.low)} to {usd(bill.usd.high)})" if bill else ""
    return time_text(plan.hours) + cost


# -- quoted figures ----------------------------------------------------------------------------------------------------

SHOWN = 3
SCENARIOS = ("c37", "c38", "c39", "c40", "c41", "c42", "c43", "c44")


def quoted() -> str:
    """Commonly quoted figures, and what would make them true."""
    found = [claims.answer(claim, _offers()) for claim in claims.read_claims()]
    answered = [a for a in found if not a.reason]
    scenarios = [a for a in found if a.claim.claim_id in SCENARIOS]
    others = [a for a in answered if a.claim.claim_id not in SCENARIOS]
    reasons = Counter(a.reason for a in found if a.reason)
    return (
        "\n\n".join(
            [
                f"# Commonly quoted figures\n\n{NOTICE}",
                _prose(
                    "Figures of `tables/claims.csv` beside what is predicted. Such figures leave most of a recipe "
                    "unsaid; each is held against a grid of recipes, and true of those whose interval holds it (time, "
                    "cost) or whose peak of live tensors is within 10 % (memory). The closest are named."
                ),
                f"## Four scenarios\n\nPredicted for {TOKENS} tokens per example and one epoch, 16 examples per step.",
                _claims(scenarios),
                *map(_implied_rate, (("c37", "c38"), ("c39", "c40"))),
                "## Others that can be checked\n\nOf memory, the least and the most over the grid are given.",
                _claims(others),
                f"## Not checked\n\n{len(found) - len(answered)} of {len(found)} figures:",
                _table(["figures", "reason"], [[n, reason] for reason, n in reasons.most_common()]),
            ]
        )
        + "\n"
    )


def _implied_rate(pair: tuple[str, str]) -> str:
    """What an hour costs where both of a pair are true, beside what offers ask."""
    time, cost = (next(c for c in claims.read_claims() if c.claim_id == name) for name in pair)
    mine = [o for o in _offers() if o.gpu_id == time.gpu and o.tier == "on_demand" and o.gpu_count == 1 and o.as_of]
    low, high = (f(mine, key=lambda o: o.price_usd_hour) for f in (min, max))
    ends = [f"{usd(o.price_usd_hour)} ({o.label}, {o.date})" for o in dict.fromkeys((low, high))]
    return _prose(
        f"{pair[0]} and {pair[1]} together are {usd(cost.low / time.low)} USD an hour. Dated offers of one {time.gpu} "
        f"on demand, of which there {'is 1' if len(mine) == 1 else f'are {len(mine)}'}, cost {' to '.join(ends)}."
    )


def _claims(answers: Sequence[claims.Answer]) -> str:
    rows = [[a.claim.claim_id, a.claim.as_stated, a.usual or "-", _true_of(a)] for a in answers]
    return _table(["id", "quoted", "predicted", "true of"], rows)


def _true_of(a: claims.Answer) -> str:
    if a.reason:
        return f"unsupported: {a.reason}"
    if not a.recipes:
        return f"none of {a.tried} recipes"
    return f"{len(a.recipes)} of {a.tried} recipes, such as " + "; ".join(a.recipes[:SHOWN])


DOCUMENTS: dict[str, Callable[[], str]] = {"memory": memory, "fits": fits, "jobs": jobs, "claims": quoted}

if __name__ == "__main__":
    sys.stdout.write(DOCUMENTS[sys.argv[1]]())
