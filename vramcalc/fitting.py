"""Every method on every GPU: does it fit?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vramcalc import catalog
from vramcalc.estimation import Estimate, estimate
from vramcalc.spec_base import Spec
from vramcalc.specs import FullFineTuning, Gpu, LoRA, ModelSpec, QLoRA
from vramcalc.verdicts import Verdict, verdict

METHODS = ("full", "lora", "qlora")


def fit(
    model: str | ModelSpec,
    *,
    gpus: Sequence[str | Gpu],
    methods: Sequence[str] = METHODS,
    **settings: Any,
) -> list[Verdict]:
    """Every method on every GPU, in that order.

    Args:
        model: as in :func:`vramcalc.estimate`.
        gpus: ids or specs.
        methods: ``full``, ``lora``, ``qlora``.
        **settings: as in ``estimate``; those of a method apply to the methods that have them.

    Raises:
        UnknownName: a name that does not exist, or a setting that none of the methods has.
        InvalidValue: as ``estimate``.
        Unsupported: as ``estimate``.
    """
    devices = [catalog.gpu(g) for g in gpus]
    specs: dict[str, type[Spec]] = {"full": FullFineTuning, "lora": LoRA, "qlora": QLoRA}
    own = {method: set(specs[method].model_fields if method in specs else ()) for method in methods}
    of_some = {name for fields in own.values() for name in fields}
    found = []
    for method in methods:
        apt = {n: v for n, v in settings.items() if n in own[method] or n not in of_some}
        base: dict[tuple[int, int], Estimate] = {}
        for device in devices:
            known = base.get(device.capability)
            made = estimate(model, method, gpu=device, **apt) if known is None else known.on(device)
            base.setdefault(device.capability, made)
            found.append(verdict(made))
    return found
