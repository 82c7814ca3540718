"""The time of a step with virtual tokens: what passes through the layers, what sees more keys, what is learned."""

from __future__ import annotations

import pytest

from vramcalc import LoRA, compare_times, step_time
from vramcalc.accuracy.time.throughput import read_throughput
from vramcalc.errors import Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import Method, PrefixTuning, PromptTuning, PTuning, Stack, TrainingSpec
from vramcalc.tables import directory
from vramcalc.timing.beyond import described, learned_params
from vramcalc.timing.flops import Tokens, step_flops
from vramcalc.timing.matrices import Matrices
from vramcalc.timing.work import work_of

MODEL = catalog.model("llama-3.2-1b")
METHODS: list[Method] = [
    PromptTuning(num_virtual_tokens=50),
    PTuning(num_virtual_tokens=50),
    PrefixTuning(num_virtual_tokens=50),
    PrefixTuning(num_virtual_tokens=50, prefix_projection=True),
]


def job_of(method: Method, **training: int) -> Job:
    return Job(MODEL, method, TrainingSpec(**{"seq_len": 200, **training}), Stack())


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 30, 120])
@pytest.mark.parametrize("sequences", [1, 3])
def test_virtual_tokens_are_tokens_or_keys(sequences: int, window: int | None) -> None:
    plain, longer, only = (Tokens.padded([n] * sequences, window=window) for n in (100, 140, 40))
    whole = plain.behind(40, keys_only=False, window=window)
    assert whole == Tokens(longer.computed, plain.real, longer.pairs, longer.square, 140)
    keys = plain.behind(40, keys_only=True, window=window)
    # What the virtual tokens would have seen themselves is computed by nobody.
    assert keys == Tokens(plain.computed, plain.real, longer.pairs - only.pairs, sequences * 100 * 140, 100)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: str(m.told()))
def test_tokens_of_text_are_the_users_own(method: Method) -> None:
    given = work_of(MODEL, method, TrainingSpec(seq_len=200), Stack(), tokens=Tokens.padded([200]))
    whole = work_of(MODEL, method, TrainingSpec(seq_len=200), Stack())
    assert given == whole
    assert whole.tokens == 200
    assert whole.computed_tokens == (200 if method.virtual_keys_only else 250)


# -- what moves --------------------------------------------------------------------------------------------------------


def test_one_virtual_token_moves_nothing_beyond_itself() -> None:
    training = TrainingSpec(seq_len=200)
    found = described(MODEL, PromptTuning(num_virtual_tokens=1), training, Stack(), Tokens.padded([201]))
    assert found == (LoRA(target_modules=[]), 0, 0)


def test_a_network_and_prefixes_move_more() -> None:
    moved = [described(MODEL, m, TrainingSpec(seq_len=200), Stack(), _passing(m))[1] for m in METHODS]
    prompt, network, prefix, projected = moved
    assert prompt < network
    assert 0 < prefix < projected


def _passing(method: Method) -> Tokens:
    return Tokens.padded([200]).behind(50, keys_only=method.virtual_keys_only)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: str(m.told()))
def test_what_is_learned_is_updated(method: Method) -> None:
    job = job_of(method)
    learned = learned_params(MODEL, method, job.training, job.stack)
    per_element = {"adamw_torch_fused": 10, "sgd": 6}
    for optim, accesses in per_element.items():
        work = work_of(MODEL, method, job.training.replace(optim=optim), job.stack)
        assert work.quantities["optimizer"] == learned * 4 * accesses


def test_more_virtual_tokens_take_longer() -> None:
    for kind in (PromptTuning, PTuning, PrefixTuning):
        few, many = (step_time(job_of(kind(num_virtual_tokens=n)), "l40s").s for n in (20, 400))
        assert few < many


def test_a_prefix_takes_less_than_as_many_tokens() -> None:
    tokens, keys = (step_time(job_of(kind(num_virtual_tokens=200)), "l40s").s for kind in (PromptTuning, PrefixTuning))
    assert keys < tokens


def test_an_architecture_of_which_only_matrices_are_known_is_refused() -> None:
    with pytest.raises(Unsupported, match="method 'prompt_tuning'"):
        step_flops(Matrices.of(MODEL), PromptTuning(), TrainingSpec(seq_len=64))


# -- witnesses ---------------------------------------------------------------------------------------------------------

PUBLISHED: list[tuple[str, Method]] = [
    ("prefix_tuning-torch-2-13-200-tok", PrefixTuning(num_virtual_tokens=200)),
    ("prefix_tuning-torch-2-13-50-tok", PrefixTuning(num_virtual_tokens=50)),
    ("prompt_tuning-torch-2-13-200-tok", PromptTuning(num_virtual_tokens=200)),
    ("p_tuning-torch-2-13", PTuning()),
]


@pytest.mark.parametrize(("case", "method"), PUBLISHED, ids=[case for case, _ in PUBLISHED])
def test_published_ratios_to_lora_are_met(case: str, method: Method) -> None:
    """huggingface/peft method_comparison/MetaMathQA on an L40S, beside LoRA of rank 32 on q and v."""
    rows = {row["case_id"]: row for row in read_throughput(directory() / "throughput.csv")}
    lora, mine = (float(rows[f"speed-mmqa-l40s-{name}"]["value"]) for name in ("lora-torch-2-13-r32-q-v", case))
    training = TrainingSpec(micro_batch_size=4, seq_len=224, optim="adamw_torch", padded=True)
    model, adapters = catalog.model("llama-3.2-3b"), LoRA(rank=32, target_modules=["q_proj", "v_proj"])
    this, other = (Job(model, m, training, Stack(), (8, 9)) for m in (method, adapters))
    found = compare_times(this, other, "l40s")
    assert found.low < lora / mine < found.high
    assert found.ratio == pytest.approx(lora / mine, rel=0.03)
