"""The optimizers of a job, of torch, torchao, transformers and bitsandbytes, over the parameters that train."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from vramcalc.inputs.stack import Stack, TrainingSpec

Groups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, stack: Stack) -> Groups:
    """What the optimizer is given: Trainer separates parameters without weight decay."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not stack.decay_groups:
        return [{"params": [p for _, p in named], "weight_decay": 0.0}]
    from transformers import Trainer

    decay = set(Trainer.get_decay_parameter_names(None, model))
    return [
        {"params": [p for n, p in named if n in decay], "weight_decay": 0.0},
        {"params": [p for n, p in named if n not in decay], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, training: TrainingSpec, stack: Stack) -> torch.optim.Optimizer:
    """The optimizer by its transformers name."""
    groups = parameter_groups(model, stack)
    match training.optimizer.library:
        case "torch":
            return _of_torch(groups, training)
        case "torchao":
            return _of_torchao(groups, training)
        case "transformers":
            from transformers.optimization import Adafactor

            adafactor: torch.optim.Optimizer = Adafactor(groups, lr=1e-3, scale_parameter=False, relative_step=False)
            return adafactor
        case "bitsandbytes":
            return _of_bitsandbytes(model, groups, training, stack)


def _of_torch(groups: Groups, training: TrainingSpec) -> torch.optim.Optimizer:
    optimizer, name = training.optimizer, training.optim
    if optimizer.algorithm == "sgd":
        return torch.optim.SGD(groups, lr=1e-3, momentum=0.9 if optimizer.moments else 0.0, foreach=True)
    return torch.optim.AdamW(groups, lr=1e-4, foreach=name == "adamw_torch", fused=optimizer.one_kernel)


def _of_torchao(groups: Groups, training: TrainingSpec) -> torch.optim.Optimizer:
    from torchao import optim

    optimizer: torch.optim.Optimizer = (
        optim.AdamW8bit(groups, lr=1e-4)
        if training.optimizer.state_bits == 8
        else optim.AdamW4bit(groups, lr=1e-4, block_size=256)
    )
    return optimizer


def _of_bitsandbytes(model: nn.Module, groups: Groups, training: TrainingSpec, stack: Stack) -> torch.optim.Optimizer:
    import bitsandbytes as bnb

    forget_optimizers()
    facts = training.optimizer
    name = {"adamw": "AdamW", "lion": "Lion"}[facts.algorithm]
    make = getattr(bnb.optim, f"{name}{facts.state_bits}bit")
    optimizer: torch.optim.Optimizer = make(groups, lr=1e-4, is_paged=facts.paged)
    if stack.bnb_embeddings_32bit and facts.low_bit:
        manager = bnb.optim.GlobalOptimManager.get_instance()
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


def forget_optimizers() -> None:
    """Let go of modules and parameters of earlier optimizers: bitsandbytes keeps them for the whole process."""
    bnb = sys.modules.get("bitsandbytes")
    if bnb is not None:
        bnb.optim.GlobalOptimManager.get_instance().initialize()
