"""The ``vramcalc`` command: each subcommand parses, calls the library, prints.

Exit status: 0 something fits (or nothing was asked to fit), 1 nothing fits or a trace differs, 2 bad input.
"""

import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from vramcalc import __version__, catalog
from vramcalc.errors import DoesNotFit, InvalidValue, VramcalcError
from vramcalc.estimation import estimate
from vramcalc.fitting import METHODS, fit
from vramcalc.options import noted_settings_of, settings_of, whole_number, with_options
from vramcalc.presets import PRESETS
from vramcalc.specs import Gpu
from vramcalc.terminal import painted as _painted
from vramcalc.terminal import print_json as _print_json
from vramcalc.terminal import print_text as _print
from vramcalc.units import parse_bytes
from vramcalc.verdicts import Verdict, verdict

if TYPE_CHECKING:
    from vramcalc.detect import Detection

COMMON_GPUS = ("t4", "rtx-4090", "l40s", "a100-sxm-80", "h100-sxm")
"""Shown by ``fit`` when no GPU is named and none is found."""

app = typer.Typer(
    name="vramcalc",
    help="How much GPU memory a fine-tuning run takes, where every byte goes, and whether it fits.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""click's, or that of the copy of click that newer releases of typer carry."""

Model = Annotated[str, typer.Argument(help="Hugging Face id, short name, or path to a config.json.")]
Method = Annotated[str, typer.Option(help=f"One of: {', '.join(METHODS)}.")]
MethodFilter = Annotated[
    list[str] | None, typer.Option("--method", help=f"Only this method; repeatable. One of: {', '.join(METHODS)}.")
]
GpuName = Annotated[str | None, typer.Option("--gpu", help="GPU id as in 'vramcalc gpus'.")]
GpuNames = Annotated[list[str] | None, typer.Option("--gpu", help="GPU id as in 'vramcalc gpus'; repeatable.")]
GpuMemory = Annotated[str | None, typer.Option(help="Memory of the GPU in place of the table's, such as 20GiB.")]
StackName = Annotated[str, typer.Option("--stack", help=f"Recipe: {', '.join(PRESETS)}.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        _print(f"vramcalc {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        _print(context.get_help())


@app.command("fit")
@with_options
def _fit(
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
    methods = [_known_method(name) for name in method or METHODS]
    devices, notes = _gpus(gpu, gpu_memory)
    verdicts = fit(model, gpus=devices, methods=methods, stack=stack, **noted_settings_of(options))
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        _print_json([{**_summary(v), **v.to_dict(remedies=False)} for v in verdicts])
    else:
        from vramcalc.render import fit_text

        _print(_painted(fit_text(verdicts)))
    _exit(any(v.status != "does not fit" for v in verdicts))


@app.command("estimate")
@with_options
def _estimate(
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
    device = _named(gpu, gpu_memory)
    found = estimate(model, _known_method(method), gpu=device, stack=stack, **noted_settings_of(options))
    answer = verdict(found) if device else None
    if as_json:
        _print_json({**found.to_dict(), "verdict": answer.to_dict() if answer else None})
    else:
        _print(f"{found}\n\n{_painted(str(answer))}" if answer else str(found))
    _exit(answer is None or answer.status != "does not fit")


@app.command("max")
@with_options
def _max(
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

    Without --gpu, on the first GPU of this machine and the memory that is free on it.
    """
    from vramcalc.largest import max_micro_batch_size, max_seq_len

    search = {"micro-batch-size": max_micro_batch_size, "seq-len": max_seq_len}.get(of.replace("_", "-"))
    if search is None:
        raise InvalidValue("--of", of, "micro-batch-size or seq-len")
    extra = {} if limit is None else {"limit": whole_number("--limit", limit)}
    device = _named(gpu, gpu_memory) or _first_detected()
    found = search(model, _known_method(method), gpu=device, stack=stack, **extra, **noted_settings_of(options))
    if as_json:
        _print_json({**_summary(found.verdict), **found.to_dict()})
    else:
        _print(_painted(str(found)))


@app.command("trace")
@with_options
def _trace(
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
    from vramcalc.agreement import trace_and_estimate

    device, n_layers = _named(gpu, gpu_memory), None if layers is None else whole_number("--layers", layers)
    asked = {"gpu": device, "stack": stack, "layers": n_layers, **settings_of(options)}
    found = trace_and_estimate(model, _known_method(method), **asked)
    if as_json:
        _print_json(found.to_dict())
    else:
        _print(str(found))
    _exit(found.agrees)


@app.command()
def gpus(
    as_json: Json = False, known: Annotated[bool, typer.Option("--known", help="Only the table.")] = False
) -> None:
    """GPUs of this machine, and those that can be named."""
    from vramcalc.listings import detection_dict, gpus_text, known_gpus

    detection = None if known else _detect()
    if as_json:
        _print_json({"detected": detection_dict(detection) if detection else None, "known": known_gpus()})
    else:
        _print(gpus_text(detection))


@app.command()
def models(as_json: Json = False) -> None:
    """Models in the table, and the families any other may be of."""
    from vramcalc.listings import known_models, models_text

    if as_json:
        _print_json(known_models())
    else:
        _print(models_text())


@app.command()
def accuracy(
    file: Annotated[str, typer.Argument(help="Measurements in the schema of tables/measurements.csv.")],
    rows: Annotated[bool, typer.Option("--rows", help="Every row.")] = False,
    as_json: Json = False,
) -> None:
    """Predictions against published measurements of real runs."""
    from vramcalc import accuracy as measured
    from vramcalc.render_accuracy import accuracy_text

    found = measured.accuracy(file)
    if as_json:
        _print_json(found.to_dict(rows=rows))
    else:
        _print(accuracy_text(found, rows=rows))


# -- helpers ---------------------------------------------------------------------------------------------------------


def _known_method(name: str) -> str:
    if name not in METHODS:
        raise InvalidValue("--method", name, f"one of {', '.join(METHODS)}")
    return name


def _named(name: str | None, memory: str | None) -> Gpu | None:
    """A GPU by id, with another capacity when one is given."""
    if name is None:
        if memory is not None:
            raise InvalidValue("--gpu-memory", memory, "a --gpu to go with it", "name one, such as rtx-4090")
        return None
    row = catalog.gpu_row(name)
    if memory is None or row["vendor"] != "NVIDIA":
        return catalog.gpu(name)
    return Gpu(
        gpu_id=row["gpu_id"],
        name=row["name"],
        architecture=row["architecture"],
        compute_capability=row["compute_capability"],
        total_bytes=parse_bytes(memory, name="--gpu-memory"),
        total_basis="given",
    )


def _gpus(names: list[str] | None, memory: str | None) -> tuple[list[Gpu], list[str]]:
    """Named GPUs, or those of this machine, or common ones; and what to say about them."""
    if names or memory:
        return [gpu for name in names or (None,) if (gpu := _named(name, memory))], []
    detection = _detect()
    if not detection.devices:
        why = f"{detection.problem}; showing {', '.join(COMMON_GPUS)} (name others with --gpu)"
        return [catalog.gpu(name) for name in COMMON_GPUS], [*detection.notes, why]
    notes = [*detection.notes, *([detection.problem] if detection.problem else [])]
    notes += [f"{device.gpu.gpu_id} {device.index}: {note}" for device in detection.devices for note in device.notes]
    return [device.gpu for device in detection.devices], notes


def _detect() -> "Detection":
    from vramcalc.detect import detect_gpus

    return detect_gpus()


def _first_detected() -> Gpu:
    """The GPU a CUDA program would use first."""
    detection = _detect()
    if not detection.devices:
        raise InvalidValue("--gpu", None, "a GPU", f"{detection.problem}; name one, such as rtx-4090")
    return detection.devices[0].gpu


def _summary(v: Verdict) -> dict[str, Any]:
    e = v.estimate
    return {
        "model": e.job.model.name,
        "method": e.job.method.kind,
        "micro_batch_size": e.job.training.micro_batch_size,
        "seq_len": e.job.training.seq_len,
        "stack": e.job.stack.name,
        "allocated_bytes": e.allocated_bytes,
        "reserved_bytes": e.reserved_bytes,
        "process_bytes": e.process_bytes,
        "warnings": list(e.warnings),
    }


def _exit(ok: bool) -> None:
    if not ok:
        raise typer.Exit(1)


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"vramcalc: {' '.join(message.split())}", err=True)
    sys.exit(status)


def main() -> None:
    """Entry point: errors become one line on stderr and exit status 2."""
    try:
        status = app(prog_name="vramcalc", standalone_mode=False)
    except DoesNotFit as err:
        _fail(str(err), 1)
    except VramcalcError as err:
        _fail(str(err), 2)
    except _UsageError as err:
        _fail(_with_help(err), 2)
    except typer.Abort:
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _with_help(err: Any) -> str:
    """A usage error, and where the usage is told."""
    message = err.format_message().strip()
    stop = "" if message.endswith((".", "?", "!")) else "."
    command = err.ctx.command_path if err.ctx else "vramcalc"
    return f"{message}{stop} See '{command} --help'."
