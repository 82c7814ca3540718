"""Commands that run real jobs: ``profile`` and ``campaign``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vramcalc.cli.common import Json, Method, Model, StackName, exit_with, known_method
from vramcalc.cli.options import number, settings_of, whole_number, with_options
from vramcalc.cli.terminal import print_json, print_text
from vramcalc.errors import InvalidValue
from vramcalc.show.progress import Bar

if TYPE_CHECKING:
    from vramcalc.profiling.run_campaign import Progress

Device = Annotated[str, typer.Option(help="cuda, or cpu: speed alone.")]
Output = Annotated[Path | None, typer.Option(help="File of rows; without it, one in the user's data folder.")]


@with_options
def profile(
    model: Model,
    layers: Annotated[str | None, typer.Option(help="Decoder layers to build.", metavar="<int>")] = None,
    method: Method = "lora",
    device: Device = "cuda",
    smallest: Annotated[bool, typer.Option("--smallest", help="Also find the smallest memory that suffices.")] = False,
    blocks: Annotated[str, typer.Option(help="Record so many of the largest live blocks.", metavar="<int>")] = "0",
    output: Output = None,
    stack: StackName = "transformers-trainer",
    as_json: Json = False,
    **options: Any,
) -> None:
    """Run one job on this machine's GPU and measure it (extra 'profile').

    Random weights, nothing is downloaded. The row is added to a file; see 'campaign' for many.
    """
    from vramcalc.profiling.campaign import planned_job
    from vramcalc.profiling.in_a_process import Worker, place
    from vramcalc.profiling.run_campaign import Rows, default_output

    where = place(device)
    asked = {
        **settings_of(options),
        "model": model,
        "method": known_method(method),
        "stack": stack,
        "layers": None if layers is None else whole_number("--layers", layers),
        "device": device,
        "find_smallest": smallest,
        "live_blocks": whole_number("--blocks", blocks),
    }
    planned = planned_job(asked, where)
    rows = Rows(output or default_output("profiles"), retry_failed=True)
    with Worker(planned.recipe, where) as worker:
        row = worker.row()
    rows.add_always(row)
    if as_json:
        print_json(row.model_dump(mode="json", by_alias=True))
    else:
        from vramcalc.show.text.profiles import profile_text

        print_text(profile_text(row, rows.path))
    exit_with(row.outcome == "measured")


def campaign(
    file: Annotated[str, typer.Argument(help="YAML file, or the name of one that comes with vramcalc.")],
    device: Device = "cuda",
    output: Output = None,
    minutes: Annotated[str | None, typer.Option(help="Start nothing that would end later.", metavar="<float>")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Measure failed jobs again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the jobs.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a list of jobs, from where it was left off (extra 'profile').

    Every row is on the disk the moment it is measured; start it again after it was stopped. Exit status 1 where a
    job failed or contradicts itself; running out of memory is a result.
    """
    from vramcalc.profiling.campaign import find, read_campaign
    from vramcalc.profiling.run_campaign import Rows, default_output, run
    from vramcalc.show.text.profiles import jobs_text, summary_dict, summary_text

    path, limit = find(file), None if minutes is None else _minutes(minutes)
    if dry_run:
        planned = read_campaign(path, device=device)
        print_json([_job_dict(p) for p in planned.jobs]) if as_json else print_text(jobs_text(planned))
        return
    from vramcalc.profiling.in_a_process import place

    where = place(device)
    planned = read_campaign(path, device=device, where=where)
    rows = Rows(output or default_output(planned.name), retry_failed=retry_failed)
    with Bar() as bar:
        found = run(planned, rows, where, minutes=limit, told=lambda p: bar.update(p.done, p.total, p.left_s, _last(p)))
    print_json(summary_dict(found, rows.path)) if as_json else print_text(summary_text(found, rows.path))
    exit_with(not found.problems and not found.outcomes["failed"])


def _job_dict(planned: Any) -> dict[str, Any]:
    return {"job_id": planned.recipe.job_id, "expected_s": planned.expected_s, "where": planned.where}


def _last(progress: "Progress") -> str:
    from vramcalc.show.text.profiles import row_line

    return row_line(progress.row) if progress.row else ""


def _minutes(text: str) -> float:
    found = number("--minutes", text)
    if not 0 < found < 1e6:
        raise InvalidValue("--minutes", text, "a number of minutes, more than 0")
    return found
