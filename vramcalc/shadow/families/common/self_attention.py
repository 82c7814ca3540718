"""Attention of a decoder layer: projections, rotary positions, the cache, a kernel.

Reads beside ``LlamaAttention`` of transformers' modeling_llama.py: the same modules, names and order, and local
variables that live as long as theirs. A family subclasses it and says only what differs.
"""

from __future__ import annotations

from vramcalc.inputs.stack import ModelSpec
from vramcalc.shadow.engine import attention, heads, ops
from vramcalc.shadow.engine.modules import Factory, Module
from vramcalc.shadow.engine.tape import Storage, Tensor
from vramcalc.shadow.families.common.attention_kernel import attention_kernel
from vramcalc.shadow.families.common.context import Context, Shared
from vramcalc.shadow.families.common.rotary import rotary_embedding, rotary_pair
from vramcalc.shadow.fused import fms_acceleration


class Attention(Module):
    """``LlamaAttention``, and those that differ from it by what their subclasses say."""

    def __init__(self, make: Factory, name: str, spec: ModelSpec, context: Context) -> None:
        super().__init__(make.engine, name)
        h, d = spec.hidden_size, spec.head_dim
        self.spec, self.context = spec, context
        q, kv = spec.num_attention_heads * d, spec.num_key_value_heads * d
        qkv_bias, o_bias = self.biases(spec)
        self.q_proj = make.linear(f"{name}.q_proj", h, q, bias=qkv_bias)
        self.k_proj = make.linear(f"{name}.k_proj", h, kv, bias=qkv_bias)
        self.v_proj = make.linear(f"{name}.v_proj", h, kv, bias=qkv_bias)
        self.o_proj = make.linear(f"{name}.o_proj", q, h, bias=o_bias)
        self.tables = self._tables()

    def _tables(self) -> list[Storage]:
        """Frequencies, and cosine and sine of every position, where a release keeps them in each layer."""
        tape, spec, stack, found = self.engine.tape, self.spec, self.context.stack, list[Storage]()
        outer, tape.module = tape.module, f"{self.name}.rotary_emb"
        if spec.family.has("layer_rotary", stack.release):
            found.append(Storage(tape, (spec.head_dim // 2,), "float32", "inv_freq", "parameter"))
        if self._looks_up or spec.family.has("idle_tables", stack.release):
            shape = (spec.max_position_embeddings, spec.head_dim)
            found += [Storage(tape, shape, stack.dtype, what, "parameter") for what in ("cos_cached", "sin_cached")]
        tape.module = outer
        return found

    def biases(self, spec: ModelSpec) -> tuple[bool, bool]:
        """Whether q, k and v have a bias, and whether o has."""
        return spec.attention_bias, spec.attention_bias

    @property
    def rotates_in_place(self) -> bool:
        """Rotary positions are a kernel that writes over what it is given, gradients too."""
        return self.context.stack.fused_kernels != "none"

    def query(self, projected: Tensor) -> Tensor:
        """Queries by head."""
        return self.split(projected, self.spec.num_attention_heads, head_major_grad=not self.rotates_in_place)

    def key(self, projected: Tensor) -> Tensor:
        """Keys by head."""
        return self.split(projected, self.spec.num_key_value_heads, head_major_grad=not self.rotates_in_place)

    def split(self, x: Tensor, heads: int, *, head_major_grad: bool = True) -> Tensor:
        """``view(...).transpose(1, 2)``; rotary positions send a gradient back head by head."""
        return ops.split_heads(self.engine, x, heads, self.spec.head_dim, head_major_grad=head_major_grad)

    def attend(self, x: Tensor, shared: Shared) -> tuple[Tensor, Tensor | None]:
        """``forward``: the result and, from eager code, the attention weights."""
        e, spec, stack = self.engine, self.spec, self.context.stack
        capability, masked = self.context.compute_capability, shared.mask is not None
        contiguous = stack.release.contiguous and stack.attn_implementation == "sdpa"
        cached = shared.cache is not None and shared.cache.copies
        if stack.release.projects_first:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
            q, k = self.query(q), self.key(k)
        else:
            q, k = self.query(self.q_proj(x)), self.key(self.k_proj(x))
            v = self.v_proj(x)
        kernel, repeats = attention_kernel(
            spec, stack, dtype=e.autocast or v.dtype, masked=masked, compute_capability=capability
        )
        by_head = (
            kernel in ("eager", "math")
            or cached
            or repeats
            or contiguous
            or (kernel == "flash" and spec.head_dim % 8 > 0)
        )
        v = self.split(v, spec.num_key_value_heads, head_major_grad=by_head)
        rows = self.rows(v)
        cos, sin = shared.rotary or self.rotary(v)
        if self.rotates_in_place:
            q = fms_acceleration.rotary(e, q, cos, sin, head_major_grad=by_head and not repeats)
            k = fms_acceleration.rotary(e, k, cos, sin, head_major_grad=by_head)
        else:
            q, k = rotary_pair(e, q, k, cos, sin)
        if shared.cache is not None:
            k, v = shared.cache.update(e, k, v)
        in_place = stack.release.projects_first and kernel in ("flash", "efficient")
        if repeats and in_place:
            # In the attention class itself, so that each copy replaces what was copied.
            k = heads.repeat_kv(e, k, spec.num_attention_heads)
            v = heads.repeat_kv(e, v, spec.num_attention_heads)
            repeats = False
        lowered = stack.attn_implementation == "flash_attention_2" and q.dtype == "float32"
        if lowered and in_place:
            q = self.lower(q)
            k = self.lower(k)
            v = self.lower(v)
        given = (self.lower(q), self.lower(k), self.lower(v)) if lowered and not in_place else (q, k, v)
        out, weights = attention.attend(
            e, kernel, *given, shared.mask, capability, repeats=repeats, contiguous=contiguous, cached=cached,
            soft_capped=spec.attn_logit_softcapping is not None,
        )  # fmt: skip
        del given
        out = ops.merge_heads(e, out)
        projected = self.o_proj(out)
        del rows
        return projected, weights

    def rows(self, v: Tensor) -> list[Tensor]:
        """The tables' first rows in the values' dtype, views where it is that of the tables; the layer holds them."""
        e, shape = self.engine, (v.shape[2], self.spec.head_dim)
        if not self._looks_up or v.dtype == self.context.stack.dtype:
            return []
        return [e.new(shape, v.dtype, what) for what in ("cos", "sin")]

    def rotary(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a layer's own: worked out, or picked from the rows of its tables by position."""
        e, seq, width = self.engine, v.shape[2], self.spec.head_dim
        if not self._looks_up:
            return rotary_embedding(e, seq, width, v.dtype, scales=False)
        return e.new((1, seq, width), v.dtype, "cos"), e.new((1, seq, width), v.dtype, "sin")

    @property
    def _looks_up(self) -> bool:
        return self.spec.family.has("cached_rotary", self.context.stack.release)

    def lower(self, x: Tensor) -> Tensor:
        """The 16-bit copy that flash-attn is handed."""
        return ops.to(self.engine, x, self.engine.autocast or self.context.stack.dtype)
