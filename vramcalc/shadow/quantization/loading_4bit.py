"""Linear layers inside the decoder stored by bitsandbytes in four bits."""

from __future__ import annotations

from vramcalc.inputs.quantization import BitsAndBytes4bit
from vramcalc.inputs.stack import Stack
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.modules import Embedding, Factory, Linear, Module, RMSNorm
from vramcalc.shadow.quantization.bitsandbytes import Linear4bit


class Factory4bit(Factory):
    """Leaves of a model loaded with ``BitsAndBytesConfig(load_in_4bit=True)``.

    The head, the embedding and the norms keep the weights dtype, or are raised to float32 by
    ``prepare_model_for_kbit_training``; TRL may then cast the head and the embedding to bfloat16.
    """

    def __init__(
        self, engine: Engine, storage: BitsAndBytes4bit, stack: Stack, norm_class: type[RMSNorm] = RMSNorm
    ) -> None:
        super().__init__(engine, "float32" if stack.prepare_model_for_kbit_training else stack.dtype, norm_class)
        self.storage, self.loaded_dtype = storage, stack.dtype
        self.ends_dtype = "bfloat16" if stack.casts_embeddings_to_bf16 else self.dtype

    def head(self, name: str, d_in: int, d_out: int) -> Module:
        """The output projection, which is not quantised."""
        return Linear(self.engine, name, d_in, d_out, self.ends_dtype)

    def embedding(self, name: str, vocab: int, width: int, embedding_class: type[Embedding] = Embedding) -> Embedding:
        """The token embedding."""
        return embedding_class(self.engine, name, vocab, width, self.ends_dtype)

    def linear(self, name: str, d_in: int, d_out: int, *, bias: bool = False) -> Module:
        """A four-bit projection."""
        return Linear4bit(
            self.engine,
            name,
            d_in,
            d_out,
            dtype=self.loaded_dtype,
            bias_dtype=self.dtype if bias else None,
            compute_dtype=self.storage.bnb_4bit_compute_dtype,
            double_quant=self.storage.bnb_4bit_use_double_quant,
        )
