"""What a method or a family moves beyond the nearest of those whose element-wise work is written down."""

from __future__ import annotations

from typing import NamedTuple

from vramcalc.errors import Unsupported
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import (
    OWN_LOSSES,
    FullFineTuning,
    LoRA,
    Method,
    ModelSpec,
    PromptTuning,
    QLoRA,
    Stack,
    TrainingSpec,
)
from vramcalc.shadow.training.loop import Loop, Sizes
from vramcalc.timing.counted import counted
from vramcalc.timing.flops import Tokens
from vramcalc.timing.matrices import Matrices


class Described(NamedTuple):
    """A method that :mod:`vramcalc.timing.work` describes, and what another one moves beyond it.

    Attributes:
        method: full fine-tuning, LoRA or QLoRA.
        moved: in a micro-batch. [B]
        after_step: once the optimizer is done. [B]
    """

    method: Method
    moved: int
    after_step: int


def described(
    model: ModelSpec | Matrices, method: Method, training: TrainingSpec, stack: Stack, tokens: Tokens
) -> Described:
    """The nearest method that :mod:`vramcalc.timing.work` describes, and what a walk moves beyond a walk of that one.

    The factors of element-wise work are fitted to speeds of full fine-tuning, LoRA and QLoRA. What a method built on
    LoRA does besides (DoRA: the norm of every updated weight) is the difference of two walks. Where virtual tokens are
    learned, the nearest is LoRA without any adapter, whose layers pass gradients on. A difference is bytes: of many
    small kernels, as those of AdaLoRA's importance, the launches are in no term.

    Args:
        model: the model, or its matrices.
        method: what trains.
        training: checkpointing.
        stack: the recipe.
        tokens: of a micro-batch; the walks are of sequences as long as its longest.

    Raises:
        Unsupported: a method that is built on none of them; one of an architecture that cannot be walked whole.
    """
    if type(method) in (FullFineTuning, LoRA, QLoRA):
        return Described(method, 0, 0)
    if isinstance(model, Matrices) or (method.adapters is None and not method.num_virtual_tokens):
        raise Unsupported(
            f"what method {method.kind!r} moves is not counted, so that its time and cost are not known; its memory "
            "is: ask for an estimate, or for the time of 'full', 'lora' or 'qlora'"
        )
    same = _as_long(training, tokens, method)
    if method.adapters is None:
        bare = LoRA(target_modules=frozenset()).plain(method.storage)
        return Described(bare, _beyond_one(model, method, same, stack), 0)
    near = method.adapters.plain(method.storage)
    own, plain = (counted(Job(model, m, same, stack)) for m in (method, near))
    return Described(near, own.moved - plain.moved, own.after_step - plain.after_step)


def _beyond_one(model: ModelSpec, method: Method, training: TrainingSpec, stack: Stack) -> int:
    """Bytes that a method with virtual tokens moves beyond one learned embedding before as many tokens in all. [B]

    That one moves what a frozen model does whose gradients go all the way down. A loss of the loop's own, which goes
    with prefixes alone, is left out on both sides.
    """
    stack = stack.replace(loss="full") if stack.loss in OWN_LOSSES else stack
    through = training.seq_len + (0 if method.virtual_keys_only else method.num_virtual_tokens)
    one = PromptTuning(num_virtual_tokens=1, quantization=method.storage)
    moved = counted(Job(model, method, training, stack)).moved
    return moved - counted(Job(model, one, training.replace(seq_len=max(1, through - 1)), stack)).moved


def learned_params(model: ModelSpec | Matrices, method: Method, training: TrainingSpec, stack: Stack) -> int:
    """Elements that a method with virtual tokens learns, and which none of the described methods has."""
    if isinstance(model, Matrices) or not method.num_virtual_tokens:
        return 0
    job = Job(model, method, training, stack)
    return Loop(job, Sizes.of(job), 1).trainable_params


def moved_by_family(
    model: ModelSpec | Matrices, method: Method, training: TrainingSpec, stack: Stack, tokens: Tokens
) -> int:
    """Bytes that a family moves in a micro-batch beyond the one whose element-wise work is written down. [B]

    Those of Gemma 2 (more norms, in float32 to the end, soft caps) beyond Llama of the same sizes, by two walks.
    """
    if isinstance(model, Matrices) or not model.family.moves_beyond:
        return 0
    caps = dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"))
    near = model.replace(model_type=model.family.moves_beyond, **caps)
    same = _as_long(training, tokens, method)
    moved, plain = (counted(Job(m, method, same, stack)).moved for m in (model, near))
    return moved - plain


def _as_long(training: TrainingSpec, tokens: Tokens, method: Method) -> TrainingSpec:
    batch = max(1, round(tokens.computed / tokens.longest))
    own = tokens.longest - (0 if method.virtual_keys_only else method.num_virtual_tokens)
    return training.replace(micro_batch_size=batch, seq_len=own)
