"""Memory that published runs reserve for an unknown reason, as a term of its own."""

from __future__ import annotations

from vramcalc.inputs.job import Job
from vramcalc.inputs.releases import minor_release
from vramcalc.shadow.engine.tape import ITEMSIZE


def unexplained_bytes(job: Job) -> int:
    """What runs with Unsloth's cross entropy reserve beyond the requests that are known: float32 logits once more. [B]

    Published runs of Llama, Mistral and Mixtral on one GPU, with transformers from 4.44 on, have reserved just this
    beside what the replay reserves, to a few MiB at any batch, with the allocated peak as predicted; those of 4.43, and
    of Granite, whose head divides its product, have not. It is cached memory, so torch gives it back under pressure.
    """
    release = minor_release(job.stack.transformers) or (0, 0)
    if job.stack.loss != "fused_cross_entropy" or release < (4, 44) or job.model.family.logits:
        return 0
    longest = max(job.training.seq_lens or (job.training.seq_len,))
    return job.training.micro_batch_size * longest * job.model.vocab_size * ITEMSIZE["float32"]
