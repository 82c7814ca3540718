"""Every method on every GPU: does it fit?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vramcalc.errors import Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.settings import METHOD_CLASSES, settings_of_method
from vramcalc.inputs.stack import Gpu, ModelSpec
from vramcalc.memory.estimate import Estimate, estimate
from vramcalc.planning.verdict import Verdict, verdict

METHODS = tuple(METHOD_CLASSES)
"""Every method there is."""
USUAL = ("full", "lora", "qlora")
"""Those that are compared where none is named."""


def fit(
    model: str | ModelSpec,
    *,
    gpus: Sequence[str | Gpu],
    methods: Sequence[str] = USUAL,
    **settings: Any,
) -> list[Verdict]:
    """Every method on every GPU, in that order.

    Args:
        model: as in :func:`vramcalc.estimate`.
        gpus: ids or specs.
        methods: names as in ``estimate``.
        **settings: as in ``estimate``; those of a method apply to the methods that have them.

    A GPU that cannot run a job another one can is left out of the answer; see :func:`fit_or_why`.

    Raises:
        UnknownName: a name that does not exist, or a setting that none of the methods has.
        InvalidValue: as ``estimate``.
        Unsupported: as ``estimate``, where no GPU is left.
    """
    return [found for found in fit_or_why(model, gpus=gpus, methods=methods, **settings) if isinstance(found, Verdict)]


@dataclass(frozen=True)
class CannotRun:
    """A method that a GPU cannot run with these settings, while another GPU can.

    Attributes:
        method: its name.
        gpu: the device.
        reason: what stands against it, and the way out.
    """

    method: str
    gpu: Gpu
    reason: str

    status: ClassVar[str] = "cannot run"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; field names are those of a verdict."""
        return {"method": self.method, "status": self.status, "gpu": self.gpu.gpu_id, "reason": self.reason}


def fit_or_why(
    model: str | ModelSpec,
    *,
    gpus: Sequence[str | Gpu],
    methods: Sequence[str] = USUAL,
    **settings: Any,
) -> list[Verdict | CannotRun]:
    """Every method on every GPU as :func:`fit`, with the reason in place of a verdict where a GPU cannot run it.

    Raises:
        UnknownName, InvalidValue: as ``fit``.
        Unsupported: as ``fit``, where a method runs on none of the GPUs.
    """
    devices = [catalog.gpu(g) for g in gpus]
    own = {name: settings_of_method(name) for name in methods}
    of_some = {name for fields in own.values() for name in fields}
    found: list[Verdict | CannotRun] = []
    for method in methods:
        apt = {n: v for n, v in settings.items() if n in own[method] or n not in of_some}
        base: dict[tuple[int, int], Estimate] = {}
        refused: list[Unsupported] = []
        for device in devices:
            known = base.get(device.capability)
            try:
                made = estimate(model, method, gpu=device, **apt) if known is None else known.on(device)
            except Unsupported as err:
                refused.append(err)
                found.append(CannotRun(method, device, str(err)))
                continue
            base.setdefault(device.capability, made)
            found.append(verdict(made))
        if refused and not base:
            raise refused[0]
    return found
