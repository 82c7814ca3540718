"""The products of a training step and the bytes it moves, counted while its walk performs them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from vramcalc.errors import Unsupported
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import Method, Stack
from vramcalc.inputs.targets import layers_alike
from vramcalc.memory.walks import depths_of
from vramcalc.shadow.depth.few_layers import depths, walk_few
from vramcalc.shadow.depth.products import at_full_depth, copies
from vramcalc.shadow.engine.work import Pass, Product, Work
from vramcalc.shadow.training.loop import Loop, Sizes
from vramcalc.timing.matrices import Matrices
from vramcalc.timing.outline import walk_outline

What = Literal["layers", "adapters", "attention", "head"]
Key = tuple[What, Pass, str]
"""Whose products, in which pass, in which dtype."""
_STEP = "step."
"""Phases of the step itself: the walk may go on into the next one's forward pass."""
_OPTIMIZER = "step.optimizer"
"""The phase after all micro-batches."""


@dataclass(frozen=True)
class Counted:
    """Products and moves of one micro-batch, at full depth.

    Attributes:
        flops: operations; attention's are of all pairs of two tokens.
        tokens: that go through the layers.
        square: pairs of such a token and one whose keys it could see.
        moved: that all operators read and write. [B]
        after_step: that those read and write which follow the optimizer's step, once for all micro-batches. [B]
    """

    flops: Mapping[Key, int]
    tokens: int
    square: int
    moved: int
    after_step: int = 0


@lru_cache(maxsize=1024)
def counted(job: Job) -> Counted:
    """Walk one micro-batch of a job forward and backward, and count.

    Raises:
        Unsupported: something that trains is multiplied in a way that is not counted.
    """
    once = job.training.replace(gradient_accumulation_steps=1)
    one = Job(job.model, job.method, once, job.stack, job.compute_capability)

    def walk(walked: int) -> tuple[Work, frozenset[str]]:
        loop = Loop(one, Sizes.of(one), walked, counts=True)
        loop.steady_step()
        assert isinstance(loop.work, Work)
        _refuse_uncounted(loop, loop.work)
        return loop.work, loop.added

    flops, moved, after = _at_full_depth(walk, depths_of(one), job.model.num_hidden_layers)
    batch = job.training.micro_batch_size
    tokens = batch * (job.training.seq_len if job.method.virtual_keys_only else job.longest)
    return Counted(flops, tokens, tokens * job.longest, moved, after)


@lru_cache(maxsize=1024)
def counted_outline(matrices: Matrices, method: Method, stack: Stack, checkpointing: str) -> Counted:
    """The same for an architecture whose matrices alone are known, and a single token, with which all of it grows."""
    n_layers = matrices.num_hidden_layers
    adapters = method.adapters
    alike = adapters is None or layers_alike(adapters, n_layers)

    def walk(walked: int) -> tuple[Work, frozenset[str]]:
        return walk_outline(matrices, method, stack, checkpointing, walked)

    return Counted(*_at_full_depth(walk, depths(n_layers, alike=alike), n_layers)[:1], 1, 1, 0)


def _at_full_depth(
    walk: Callable[[int], tuple[Work, frozenset[str]]], depths: Sequence[int], n_layers: int
) -> tuple[dict[Key, int], int, int]:
    """Operations by key and bytes moved of the micro-batch, and bytes moved after it.

    They are of the first depth at which the last layers are alike.
    """

    def count(walked: int) -> tuple[dict[Key, int], int, int]:
        work, added = walk(walked)
        parts, flops = _Parts(added, work.looked_up), defaultdict[Key, int](int)
        for p, times in at_full_depth(work.products, walked, n_layers):
            if p.phase.startswith(_STEP):
                flops[parts.of(p), p.made_in, p.dtype] += int(p.flops) * times
        moved = [0, 0]
        for m in work.moves:
            if m.phase.startswith(_STEP):
                moved[m.phase == _OPTIMIZER] += int(m.read + m.written) * copies(m.layer, walked, n_layers)
        return dict(flops), moved[False], moved[True]

    return walk_few(depths, count)


@dataclass(frozen=True)
class _Parts:
    """Tells parts of a model apart by names of weights."""

    added: Collection[str]
    looked_up: Collection[str]

    def of(self, p: Product) -> What:
        """Whose product it is; copies that a method makes stay what they are copies of.

        What is looked up by token and multiplied as well is the weight of a head tied to the embedding.
        """
        if p.attends:
            return "attention"
        if p.owner in self.added:
            return "adapters"
        return "head" if p.owner.startswith("lm_head.") or p.owner in self.looked_up else "layers"


def _refuse_uncounted(loop: Loop, work: Work) -> None:
    """Refuse a step in which a matrix trains that no counted product has touched: its time would be another's."""
    known = {p.owner for p in work.products} | work.looked_up
    matrices = [p.name for p in loop.updated if sum(n > 1 for n in p.tensor.shape) > 1]
    missing = [name for name in matrices if name not in known]
    if missing:
        raise Unsupported(
            f"{loop.job.model.name}, {loop.job.method.kind}: work of {', '.join(missing[:3])} is not counted, so that "
            "its FLOPs and its time are not known; memory is"
        )
