"""Commands about one job or several: ``fit``, ``estimate``, ``max``, ``trace``."""

from typing import Annotated, Any

import typer

from vramcalc.cli.common import (
    GpuMemory,
    GpuName,
    GpuNames,
    Json,
    Method,
    MethodFilter,
    Model,
    StackName,
    asked_gpus,
    exit_with,
    first_detected,
    known_method,
    named_gpu,
    summary_of,
)
from vramcalc.cli.options import noted_settings_of, settings_of, whole_number, with_options
from vramcalc.cli.terminal import painted, print_json, print_note, print_text
from vramcalc.errors import InvalidValue
from vramcalc.memory.estimate import estimate as estimate_of
from vramcalc.planning.fit import USUAL, CannotRun, fit_or_why
from vramcalc.planning.verdict import Verdict, verdict


@with_options
def fit(
    model: Model,
    method: MethodFilter = None,
    gpu: GpuNames = None,
    gpu_memory: GpuMemory = None,
    stack: StackName = "transformers-trainer",
    as_json: Json = False,
    **options: Any,
) -> None:
    """Every method on every GPU: does it fit?

    Without --gpu, on the GPUs of this machine and the memory that is free on them.
    """
    methods = [known_method(name) for name in method or USUAL]
    devices, notes = asked_gpus(gpu, gpu_memory)
    found = fit_or_why(model, gpus=devices, methods=methods, stack=stack, **noted_settings_of(options))
    verdicts = [v for v in found if isinstance(v, Verdict)]
    for note in notes:
        print_note(note)
    if as_json:
        print_json(
            [{**summary_of(v), **v.to_dict(remedies=False)} if isinstance(v, Verdict) else v.to_dict() for v in found]
        )
    else:
        from vramcalc.show.plaintext import wrapped_lines
        from vramcalc.show.text.estimates import fit_text

        print_text(painted(fit_text(verdicts)))
        refused = [f"{r.method} on {r.gpu.gpu_id} {r.status}: {r.reason}" for r in found if isinstance(r, CannotRun)]
        if refused:
            print_text("\n" + wrapped_lines(refused, ""))
    exit_with(any(v.status != "does not fit" for v in verdicts))


@with_options
def estimate(
    model: Model,
    method: Method = "lora",
    gpu: GpuName = None,
    gpu_memory: GpuMemory = None,
    stack: StackName = "transformers-trainer",
    as_json: Json = False,
    **options: Any,
) -> None:
    """Where every byte of one job goes.

    With --gpu also whether it fits, and what would help.
    """
    device = named_gpu(gpu, gpu_memory)
    found = estimate_of(model, known_method(method), gpu=device, stack=stack, **noted_settings_of(options))
    answer = verdict(found) if device else None
    if as_json:
        print_json({**found.to_dict(), "verdict": answer.to_dict() if answer else None})
    else:
        print_text(f"{found}\n" if answer else str(found))
        if answer:
            print_text(painted(str(answer)))
    exit_with(answer is None or answer.status != "does not fit")


@with_options
def largest(
    model: Model,
    gpu: GpuName = None,
    of: Annotated[str, typer.Option(help="What to maximise: micro-batch-size or seq-len.")] = "micro-batch-size",
    limit: Annotated[str | None, typer.Option(help="Stop the search there.", metavar="<int>")] = None,
    method: Method = "lora",
    gpu_memory: GpuMemory = None,
    stack: StackName = "transformers-trainer",
    as_json: Json = False,
    **options: Any,
) -> None:
    """The largest micro batch or the longest sequence that fits.

    More memory is not always reserved for more: the values right above it and the next multiples of 64 are tried, too.
    Without --gpu, on the first GPU of this machine and the memory that is free on it.
    """
    from vramcalc.planning.largest import max_micro_batch_size, max_seq_len

    search = {"micro-batch-size": max_micro_batch_size, "seq-len": max_seq_len}.get(of.replace("_", "-"))
    if search is None:
        raise InvalidValue("--of", of, "micro-batch-size or seq-len")
    extra = {} if limit is None else {"limit": whole_number("--limit", limit)}
    device = named_gpu(gpu, gpu_memory) or first_detected()
    found = search(model, known_method(method), gpu=device, stack=stack, **extra, **noted_settings_of(options))
    if as_json:
        print_json({**summary_of(found.verdict), **found.to_dict()})
    else:
        print_text(painted(str(found)))


@with_options
def trace(
    model: Model,
    layers: Annotated[str | None, typer.Option(help="Decoder layers to build.", metavar="<int>")] = None,
    method: Method = "lora",
    gpu: GpuName = None,
    gpu_memory: GpuMemory = None,
    stack: StackName = "transformers-trainer",
    as_json: Json = False,
    **options: Any,
) -> None:
    """Run the real libraries on fake tensors, and compare the estimate with them (extra 'profile')."""
    from vramcalc.accuracy.traces.compare import trace_and_estimate

    device, n_layers = named_gpu(gpu, gpu_memory), None if layers is None else whole_number("--layers", layers)
    asked = {"gpu": device, "stack": stack, "layers": n_layers, **settings_of(options)}
    found = trace_and_estimate(model, known_method(method), **asked)
    if as_json:
        print_json(found.to_dict())
    else:
        print_text(str(found))
    exit_with(found.agrees)
