"""The recipe: which releases of the libraries run, in which dtypes, and what a trainer does that its user does not say.

``vramcalc.inputs.presets`` fills it in for the common trainers. The other specs of a job are named here, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from vramcalc.errors import InvalidValue
from vramcalc.inputs.alloc_conf import AllocatorSettings, read
from vramcalc.inputs.base import (
    DTYPE_ALIASES,
    Dtype,
    DtypeName,
    PositiveCount,
    Spec,
    alias,
    checked,
    known_torch,
    known_transformers,
    published,
)
from vramcalc.inputs.gpu import Gpu as Gpu
from vramcalc.inputs.method import AdaLoRA as AdaLoRA
from vramcalc.inputs.method import DoRA as DoRA
from vramcalc.inputs.method import FullFineTuning as FullFineTuning
from vramcalc.inputs.method import LoRA as LoRA
from vramcalc.inputs.method import Method as Method
from vramcalc.inputs.method import PrefixTuning as PrefixTuning
from vramcalc.inputs.method import PromptTuning as PromptTuning
from vramcalc.inputs.method import PTuning as PTuning
from vramcalc.inputs.method import QLoRA as QLoRA
from vramcalc.inputs.model import AttnImplementation as AttnImplementation
from vramcalc.inputs.model import ModelSpec as ModelSpec
from vramcalc.inputs.model import ModelType as ModelType
from vramcalc.inputs.optimizers import OptimizerName as OptimizerName
from vramcalc.inputs.releases import BITSANDBYTES_CHECKED, PEFT_CHECKED, Release, minor_release, release_of
from vramcalc.inputs.torch_releases import Wheel, wheel_of
from vramcalc.inputs.training import Checkpointing as Checkpointing
from vramcalc.inputs.training import TrainingSpec as TrainingSpec

SdpaKernel = Literal["auto", "cudnn", "flash", "efficient", "math"]
KeepsOutputs = Literal["no", "backward", "step", "next_forward"]
LossKind = Literal["full", "cross_entropy", "shifted_cross_entropy", "chunked", "fused_linear", "fused_cross_entropy"]
OWN_LOSSES: tuple[LossKind, ...] = ("cross_entropy", "shifted_cross_entropy")
"""Losses that the loop makes of the model's logits."""
FusedKernels = Literal["none", "fms_acceleration"]


def _alloc_conf(text: str) -> str:
    read(text)
    return text


class Stack(Spec):
    """The recipe: what the software does that its user does not say."""

    name: str = "custom"
    """Preset this recipe came from."""
    torch: Annotated[str, AfterValidator(known_torch)] = "2.13"
    cuda: Annotated[str | None, AfterValidator(published)] = None
    """CUDA that torch's wheel is built for, such as 12.6, which decides the cuDNN that comes with it; None for the
    wheel that ``pip install torch`` takes."""
    transformers: Annotated[str, AfterValidator(known_transformers)] = "5.23"
    """``unknown``, or the date of a run as YYYY-MM-DD: the likeliest release is modelled, which is then written before
    it (``4.41@2024-06-07``), and intervals span what the others that may have run would take."""
    peft: Annotated[str, checked(*PEFT_CHECKED)] = "0.21"
    bitsandbytes: Annotated[str, checked(*BITSANDBYTES_CHECKED)] = "0.50"
    dtype: Dtype = "bfloat16"
    """Dtype the weights are loaded in."""
    autocast: Annotated[Literal["bfloat16", "float16"], alias(DTYPE_ALIASES)] | None = None
    """``torch.autocast`` around the forward pass; float16 brings loss scaling with it."""
    adapter_dtype: Annotated[DtypeName | Literal["weights"], alias(DTYPE_ALIASES)] = "float32"
    """Dtype of adapters. ``float32``: PEFT raises 16-bit ones, its default; ``weights``: that of their layers; a 16-bit
    name: the trainer casts everything that trains, as TRL does for QLoRA."""
    prepare_model_for_kbit_training: bool = True
    """PEFT's preparation of a quantised model: everything left in 16 bits becomes float32."""
    casts_embeddings_to_bf16: bool = False
    """TRL's ``peft_module_casting_to_bf16`` after that preparation, once adapters are there: embedding and head become
    bfloat16 again, and norms stay float32. SFTTrainer called it with ``bf16=True`` over four-bit layers."""
    attn_implementation: AttnImplementation = "sdpa"
    sdpa_kernel: SdpaKernel = "auto"
    """Kernel behind ``scaled_dot_product_attention``; ``auto`` chooses as torch does on the GPU at hand. Where
    ``TORCH_CUDNN_SDPA_DEPRIORITIZED=1`` is set, ``flash`` is what runs on Hopper and Blackwell."""
    passes_attention_mask: bool = True
    """The model is handed an ``attention_mask``. Without it and a cache, transformers 4.53 to 4.57 make their own."""
    repeats_kv: bool = False
    """Key and value heads are copied to the number of query heads before SDPA, as before transformers 4.48."""
    loss: LossKind = "full"
    """``full`` logits, raised to float32 by the model's own loss; ``cross_entropy``: the loop's own on 16-bit logits,
    of labels shifted beforehand; ``shifted_cross_entropy``: of ``logits[..., :-1, :].contiguous()``; ``chunked``: TRL's
    tiled log-probabilities; ``fused_linear``: Liger's fused linear loss; ``fused_cross_entropy``: Unsloth's, whose
    gradient is written over the logits."""
    fused_kernels: FusedKernels = "none"
    """Kernels in place of the model's own. ``fms_acceleration``: the fused-ops-and-kernels plugin of
    foundation-model-stack, whose norms, rotary positions and, over four-bit layers, LoRA write gradients in place."""
    use_cache: bool = False
    """The model fills a KV cache while training (raw loops that leave ``config.use_cache`` on)."""
    keeps_outputs: KeepsOutputs = "no"
    """How long the loop holds on to ``outputs`` (logits, cache): ``no``, only the loss is kept; ``backward``, when they
    are let go of before the optimizer steps; ``step``, when they are the local of a function that makes a step;
    ``next_forward``, when the next forward pass replaces them."""
    outputs_to_float32: bool = True
    """accelerate's conversion of model outputs under autocast."""
    zero_grad: Literal["start", "end"] = "end"
    """Gradients are dropped before the forward pass or after the optimizer step."""
    zero_grad_set_to_none: bool = True
    """``zero_grad(set_to_none=...)``: False fills gradients with zeros, so that they live through forward passes."""
    bnb_embeddings_32bit: bool = True
    """Trainer's rule that ``nn.Embedding`` keeps 32-bit state under bitsandbytes' 8-bit optimizers."""
    decay_groups: bool = True
    """Trainer's two parameter groups, with and without weight decay; raw loops pass one."""
    expandable_segments: bool = False
    """``PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True``."""
    alloc_conf: Annotated[str, AfterValidator(_alloc_conf)] | None = None
    """Value of ``PYTORCH_ALLOC_CONF`` (``PYTORCH_CUDA_ALLOC_CONF``), as torch reads it."""
    empty_cache_steps: PositiveCount | None = None
    """``torch.cuda.empty_cache()`` after every so many steps, None for never."""

    @model_validator(mode="after")
    def _one_allocator(self) -> Self:
        if self.expandable_segments and self.alloc_conf and read(self.alloc_conf).expandable_segments is False:
            raise InvalidValue(
                "alloc_conf", self.alloc_conf, "no expandable_segments:False beside expandable_segments=True",
                "leave one of them out",
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _cast_after_preparation(self) -> Self:
        if self.casts_embeddings_to_bf16 and not self.prepare_model_for_kbit_training:
            raise InvalidValue(
                "casts_embeddings_to_bf16", True, "prepare_model_for_kbit_training=True beside it",
                "leave casts_embeddings_to_bf16 out, or prepare the model",
            )  # fmt: skip
        return self

    @property
    def release(self) -> Release:
        """What depends on the release of transformers."""
        found = release_of(minor_release(self.transformers) or (0, 0))
        assert found is not None, "the version was validated"
        return found

    @property
    def wheel(self) -> Wheel:
        """What depends on the release of torch, and on the CUDA it is built for."""
        return wheel_of(self.torch, self.cuda)

    @property
    def allocator(self) -> AllocatorSettings:
        """Settings of torch's caching allocator."""
        settings = read(self.alloc_conf).settings if self.alloc_conf else AllocatorSettings()
        return replace(settings, expandable_segments=True) if self.expandable_segments else settings


def kbit_prepared(method: Method, stack: Stack) -> bool:
    """Whether PEFT's ``prepare_model_for_kbit_training`` ran: a setting that is heeded over quantised weights only."""
    return method.storage is not None and stack.prepare_model_for_kbit_training
