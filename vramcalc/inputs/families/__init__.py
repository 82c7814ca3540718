"""Model families by ``model_type``: what each says of itself, beside its modules in ``shadow/families``."""

from __future__ import annotations

from vramcalc.inputs.families import arcee, gemma2, granite, llama, mistral, mixtral, qwen2, qwen3
from vramcalc.inputs.families.common import Family as Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.model_type: module.FAMILY
    for module in (arcee, gemma2, granite, llama, mistral, mixtral, qwen2, qwen3)
}
