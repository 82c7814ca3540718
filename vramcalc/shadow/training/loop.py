"""The training loop in shadow: a job's model, method and recipe run step by step on a tape."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import OWN_LOSSES, Stack
from vramcalc.shadow import methods
from vramcalc.shadow.engine import ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.kernels import cublas_workspace_bytes
from vramcalc.shadow.engine.scaling_and_clipping import GradScaler, clip_grad_norm
from vramcalc.shadow.engine.sizes import Size, product
from vramcalc.shadow.engine.tape import ITEMSIZE, Storage, Tape, Tensor
from vramcalc.shadow.engine.work import Uncounted, Work
from vramcalc.shadow.families import FAMILIES
from vramcalc.shadow.families.common.context import Cache, Context
from vramcalc.shadow.training import cross_entropy, fms_losses, losses, optimizers


@dataclass(frozen=True)
class Sizes:
    """What a walk takes instead of the job's own numbers; symbols make it serve a grid."""

    batch: Size
    seq: Size
    rank: Size

    @classmethod
    def of(cls, job: Job) -> Sizes:
        """The job's own."""
        adapters = job.method.adapters
        return cls(job.training.micro_batch_size, job.training.seq_len, adapters.rank if adapters else 1)


def step_name(number: int) -> str:
    """Name of a step of a run, the first being number 0: its phases are called ``<name>.<phase>``."""
    return f"step{number}"


@dataclass
class Outputs:
    """What a model returns."""

    loss: Tensor
    logits: Tensor | None
    cache: Cache | None
    metrics: list[Tensor]
    """Per token, of a loss without logits."""


class Loop:
    """A training loop over a shadow model, as ``profiling.loop.Loop`` runs it over a real one.

    Args:
        job: what is trained.
        sizes: batch, length and rank to walk with.
        n_layers: decoder layers to build.
        counts: keep what operators compute in ``work``.
    """

    def __init__(self, job: Job, sizes: Sizes, n_layers: int, *, counts: bool = False) -> None:
        self.job, self.sizes, self._walked = job, sizes, n_layers
        self.tape = tape = Tape()
        self.work = Work(tape) if counts else Uncounted()
        self.engine = e = Engine(tape, self.work)
        stack, training = job.stack, job.training
        context = Context(
            stack,
            job.compute_capability,
            training.gradient_checkpointing,
            training.padded,
            not job.method.trains_base and training.gradient_checkpointing != "none",
        )
        make = methods.factory(e, job.method, stack)
        self.net = FAMILIES[job.model.model_type](make, job.model, n_layers, context)
        self._loaded = frozenset(p.name for p in self.net.parameters())
        methods.attach(self.net, job.method, stack, sizes.rank)
        self.trainable = list(dict.fromkeys(p for p in self.net.parameters() if p.trainable))
        without_gradient = methods.without_gradient(self.net)
        self.updated = [p for p in self.trainable if p not in without_gradient]
        self.optimizer = optimizers.build(training.optim, e, _groups(self.updated, stack), self._kept_in_float32())
        self.around = methods.around_step(self.net, job.method, self._repeats)
        self.scaler = GradScaler(e) if stack.autocast == "float16" else None
        self._batch = _BATCH if stack.passes_attention_mask else _BATCH[:-1]
        self._workspaces: dict[str, Storage] = {}
        self._kept: Outputs | None = None
        self._steps = 0

    def _kept_in_float32(self) -> frozenset[str]:
        """Names of the weights that keep 32-bit optimizer state: those of every ``nn.Embedding``, copies included."""
        if not self.job.stack.bnb_embeddings_32bit:
            return frozenset()
        embeddings = [*self.net.embed_tokens.parameters()]
        if self.net.prompt is not None:
            embeddings.append(self.net.prompt.embedding.weight)
        return frozenset(p.name for p in embeddings if ".weight" in p.name)

    @property
    def added(self) -> frozenset[str]:
        """Names of the weights that the method brought, copies of the model's own left out."""
        found = {p.name for p in self.net.parameters()} - self._loaded
        return frozenset(name for name in found if not name.endswith("(copy)"))

    @property
    def trainable_params(self) -> int:
        """Elements that train, at the model's full depth."""
        return sum(int(product(p.tensor.shape)) * self._repeats(p) for p in self.trainable)

    @property
    def paged_bytes(self) -> int:
        """Optimizer state in managed memory, at the model's full depth. [B]"""
        return sum(int(product(shape)) * ITEMSIZE[dtype] * self._repeats(p) for p, shape, dtype in self.optimizer.paged)

    def _repeats(self, p: Parameter) -> int:
        """Layers at full depth for each walked one: the inner layers are alike, so the last stands for the rest."""
        rest = self.job.model.num_hidden_layers - self._walked
        return 1 + rest if p.layer == self._walked - 1 else 1

    def steps(self, lengths: Iterable[Size]) -> None:
        """Optimizer steps from the first on, each of its own length."""
        for seq in lengths:
            tag = step_name(self._steps)
            if self.job.stack.zero_grad == "start":
                self._zero_grad(tag)
            # One more than differ: the third finds the heap as a pass that adds to gradients has left it.
            for micro in range(min(self._accumulated, 3)):
                self._micro_step(f"{tag}.{micro}", seq)
            self._optimizer_step(tag)
            self._steps += 1
        self.tape.mark("end")

    def steady_step(self) -> None:
        """One step of those after the first: every optimizer state is there already."""
        self.tape.mark("states")
        self.optimizer.prepare()
        self.around.prepare()
        if not self.job.stack.zero_grad_set_to_none:
            self._make_gradients()
        for what in (MAIN_WORKSPACE, _AUTOGRAD_WORKSPACE):
            self._workspace(what)
        seq = self.sizes.seq
        # The highest forward pass is one that finds the outputs of the pass before: those of another step if a step
        # has one pass only.
        finds = self.job.stack.keeps_outputs == "next_forward" and self._accumulated == 1
        # Those that differ: the first, and one that adds to its gradients.
        for micro in range(min(self._accumulated, 2)):
            self._micro_step(f"step.{micro}", seq)
        if finds:
            self._zero_grad("step.0")
            self._micro_step("next.0", seq)
        self._optimizer_step("step")
        self.tape.mark("end")

    @property
    def _accumulated(self) -> int:
        return self.job.training.gradient_accumulation_steps

    def _workspace(self, what: str) -> None:
        if what not in self._workspaces:
            n = cublas_workspace_bytes(self.job.compute_capability)
            self._workspaces[what] = Storage(self.tape, (n,), "uint8", what, "workspace")

    def _micro_step(self, tag: str, seq: Size) -> None:
        """Forward and backward of one micro-batch."""
        e, tape, stack = self.engine, self.tape, self.job.stack
        tape.mark(f"{tag}.forward")
        self._workspace(MAIN_WORKSPACE)
        batch = [e.new((self.sizes.batch, seq), "int64", what) for what in self._batch]
        loss = self._forward(tag, batch)
        if stack.keeps_outputs == "no":
            del batch
        tape.mark(f"{tag}.backward")
        self._workspace(_AUTOGRAD_WORKSPACE)
        root = loss if self.scaler is None else self.scaler.scale(loss)
        gradient = e.new((), root.dtype, "gradient of the loss")
        e.backward(root.node, gradient)
        self.work.ends()
        if stack.keeps_outputs == "backward":
            self._keep(None)

    def _forward(self, tag: str, batch: list[Tensor]) -> Tensor:
        """The model's call and its loss; what the loop keeps of the outputs stays alive."""
        e, stack = self.engine, self.job.stack
        e.autocast = stack.autocast
        cache = Cache(copies=stack.release.copies_into_cache) if self.job.fills_cache else None
        prompted = self.net.prompt.before(batch, self.net.embed) if self.net.prompt is not None else None
        if prompted is not None and prompted.cache is not None:
            cache = prompted.cache
        hidden = self.net.hidden_states(batch[0], cache, prompted.inputs_embeds if prompted else None)
        logits: Tensor | None = None
        metrics: list[Tensor] = []
        self.tape.mark(f"{tag}.head")
        if stack.loss in ("full", "fused_cross_entropy", *OWN_LOSSES):
            logits = self.net.logits(hidden)
            release = stack.release
            if self.job.model.family.has("raises_logits", release):
                logits = ops.to(e, logits, "float32")
            if stack.loss == "full":
                loss = cross_entropy.causal_lm_loss(e, logits, shifts_logits=release.shifts_logits)
            elif stack.loss == "fused_cross_entropy":
                loss = fms_losses.fused_cross_entropy(e, logits)
        elif stack.loss == "chunked":
            metrics = losses.chunked_outputs(e, hidden, _head_weight(self.net.lm_head))
        elif stack.fused_kernels == "fms_acceleration":
            loss = fms_losses.fused_linear_loss(e, hidden, _head_weight(self.net.lm_head))
        else:
            loss = losses.fused_linear_loss(e, hidden, _head_weight(self.net.lm_head), self.job.compute_capability)
        del hidden, prompted
        if metrics:
            metrics[-1] = self.around.add_to_loss(metrics[-1])
        elif stack.loss not in OWN_LOSSES:
            loss = self.around.add_to_loss(loss)
        e.autocast = None
        self._forget_casts()
        if metrics:
            loss = losses.sft_loss(e, metrics[0])
        if stack.autocast is not None and stack.outputs_to_float32:
            logits = logits and ops.to(e, logits, "float32")
            if cache is not None and stack.release.legacy_cache:
                cache.to_float32(e)
        if stack.loss in OWN_LOSSES and logits is not None:
            shifts, autocast = stack.loss == "shifted_cross_entropy", stack.autocast is not None
            loss = cross_entropy.cross_entropy(e, logits, batch[1], shifts_logits=shifts, autocast=autocast)
        if stack.keeps_outputs != "no":
            self._keep(Outputs(loss, logits, cache, metrics))
        elif cache is not None:
            self._let_go(cache)
        return loss

    def _keep(self, outputs: Outputs | None) -> None:
        """Hold on to the outputs; those of the pass before die, the cache layer by layer."""
        old, self._kept = self._kept, outputs
        if old is not None and old.cache is not None:
            self._let_go(old.cache)

    def _let_go(self, cache: Cache) -> None:
        for layer in range(len(cache.layers)):
            self.tape.at(layer)
            cache.layers[layer] = None
        self.tape.at(None)

    def _forget_casts(self) -> None:
        """Autocast's cache is emptied when its context ends."""
        casts = self.engine.casts
        for parameter in list(casts):
            self.tape.at(parameter.layer)
            del casts[parameter]
        self.tape.at(None)

    def _optimizer_step(self, tag: str) -> None:
        self.tape.mark(f"{tag}.optimizer")
        if self.job.training.max_grad_norm:
            if self.scaler is not None:
                self.scaler.unscale()
            clip_grad_norm(self.engine, self.updated, sum(map(self._repeats, self.updated)))
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer.step, fused=self.job.training.optim == "adamw_torch_fused")
            self.scaler.update()
        self.around.step()
        if self.job.stack.zero_grad == "end":
            self._zero_grad(tag)
        if self.job.stack.keeps_outputs == "step":
            self._keep(None)

    def _make_gradients(self) -> None:
        """Those that the step before filled with zeros."""
        for parameter in self.updated:
            self.tape.at(parameter.layer)
            shape, dtype = parameter.tensor.shape, parameter.tensor.dtype
            storage = Storage(self.tape, shape, dtype, "gradient", "gradient")
            self.tape.births[storage.id].module = parameter.name
            parameter.grad = Tensor(storage, shape, dtype)
        self.tape.at(None)

    def _zero_grad(self, tag: str) -> None:
        self.tape.mark(f"{tag}.zero_grad")
        if not self.job.stack.zero_grad_set_to_none:
            return
        for parameter in self.trainable:
            self.tape.at(parameter.layer)
            parameter.grad = None
        self.tape.at(None)


MAIN_WORKSPACE, _AUTOGRAD_WORKSPACE = "cuBLAS, main thread", "cuBLAS, autograd thread"
_BATCH = ("input_ids", "labels", "attention_mask")


def _groups(trainable: list[Parameter], stack: Stack) -> list[list[Parameter]]:
    """Parameter groups as the loop passes them: Trainer separates biases and norms."""
    if not stack.decay_groups:
        return [trainable]
    plain = {p for p in trainable if p.name.endswith("bias") or "norm" in p.name.rsplit(".", 2)[-2]}
    return [[p for p in trainable if p not in plain], [p for p in trainable if p in plain]]


def _head_weight(head: object) -> Parameter:
    """The head's own weight; a fused loss does not see an adapter around it."""
    return getattr(head, "copy", head).weight  # type: ignore[attr-defined, no-any-return]
