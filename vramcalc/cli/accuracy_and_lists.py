"""Commands about what is known: ``gpus``, ``models``, ``accuracy``."""

from typing import Annotated

import typer

from vramcalc.cli.common import Json, detection_here, exit_with
from vramcalc.cli.options import whole_number
from vramcalc.cli.terminal import print_json, print_text
from vramcalc.errors import InvalidValue


def gpus(
    as_json: Json = False, known: Annotated[bool, typer.Option("--known", help="Only the table.")] = False
) -> None:
    """GPUs of this machine, and those that can be named."""
    from vramcalc.show.text.listings import detection_dict, gpus_text, known_gpus

    detection = None if known else detection_here()
    if as_json:
        print_json({"detected": detection_dict(detection) if detection else None, "known": known_gpus()})
    else:
        print_text(gpus_text(detection))


def models(as_json: Json = False) -> None:
    """Models in the table, and the families any other may be of."""
    from vramcalc.show.text.listings import known_models, models_text

    if as_json:
        print_json(known_models())
    else:
        print_text(models_text())


def accuracy(
    file: Annotated[
        str,
        typer.Argument(help="Measurements in the schema of tables/measurements.csv; or 'traces', the grid of traces."),
    ],
    rows: Annotated[bool, typer.Option("--rows", help="Every row.")] = False,
    time: Annotated[bool, typer.Option("--time", help="Step times: speeds as in tables/throughput.csv.")] = False,
    stored: Annotated[bool, typer.Option("--stored", help="traces: the numbers of the table; none is taken.")] = False,
    limit_s: Annotated[
        str | None, typer.Option(help="traces: as many, of every kind, as take so many seconds.", metavar="<seconds>")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predictions against published measurements, or against traces of the real libraries (extra 'profile')."""
    if file == "traces":
        _traces(limit_s, stored=stored, rows=rows, as_json=as_json)
        return
    if stored or limit_s is not None:
        raise InvalidValue("FILE", file, "'traces' beside --stored or --limit-s")
    if time:
        _time_accuracy(file, rows, as_json)
        return
    from vramcalc.accuracy.memory import accuracy as measured
    from vramcalc.show.text.accuracy import accuracy_text

    found = measured.accuracy(file)
    if as_json:
        print_json(found.to_dict(rows=rows))
    else:
        print_text(accuracy_text(found, rows=rows))


def _time_accuracy(file: str, rows: bool, as_json: bool) -> None:
    from vramcalc.accuracy.time.accuracy import time_accuracy
    from vramcalc.show.text.time_accuracy import time_accuracy_text

    found = time_accuracy(file)
    if as_json:
        print_json(found.to_dict(rows=rows))
    else:
        print_text(time_accuracy_text(found, rows=rows))


def _traces(limit: str | None, *, stored: bool, rows: bool, as_json: bool) -> None:
    from vramcalc.accuracy.traces.accuracy import trace_accuracy
    from vramcalc.show.text.traces import traces_text

    limit_s = None if limit is None else whole_number("--limit-s", limit)
    found = trace_accuracy(live=not stored, limit_s=limit_s)
    if as_json:
        print_json(found.to_dict(rows=rows))
    else:
        print_text(traces_text(found, rows=rows))
    exit_with(found.ok)
