"""Profile rows: one training job that ran on a real device, what was asked for and what was measured.

A row is one line of JSON; ``tables/profiles/*.jsonl`` are such files. Whoever fits or judges predictions reads a row
through :mod:`vramcalc.profiling.row_figures`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vramcalc import tables
from vramcalc.errors import DataError, VramcalcError, shown
from vramcalc.inputs.stack import Gpu, Method, ModelSpec, Stack, TrainingSpec
from vramcalc.profiling.row_log import read_lines

SCHEMA = "vramcalc-profile"
VERSION = 1
COMPARED = ("torch", "transformers", "peft", "bitsandbytes")
"""Libraries whose release a recipe names, and that make another measurement when they change."""

_LARGEST = 1 << 62
Bytes = Annotated[int, Field(ge=0, le=_LARGEST)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RunSettings(_Record):
    """Everything that says which job is measured, and how."""

    model: ModelSpec
    method: Annotated[Method, Field(discriminator="kind")]
    training: TrainingSpec
    stack: Stack
    device: Literal["cuda", "cpu"] = "cuda"
    find_smallest: bool = False
    """Also look for the smallest memory that suffices."""
    live_blocks: Annotated[int, Field(ge=0, le=1000)] = 0
    """How many of the largest blocks alive at the peak to record."""

    @property
    def job_id(self) -> str:
        """Digest of the whole recipe: the same on every machine and in every process."""
        return _digest(self.model_dump(mode="json"))


def _digest(recipe: dict[str, Any]) -> str:
    """What identifies a recipe: 16 hexadecimal digits."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Machine(_Record):
    """Where it ran; None where nothing tells."""

    gpu: Gpu | None = None
    """As NVML describes it, without what identifies the single card."""
    torch_total_bytes: Bytes | None = None
    """Capacity as ``torch.cuda.mem_get_info`` reports it. [B]"""
    driver: str | None = None
    cuda: str | None = None
    """CUDA release that torch was built for."""
    cudnn: str | None = None
    python: str
    platform: str
    cpu_count: Annotated[int, Field(ge=0, le=_LARGEST)] | None = None


class Peaks(_Record):
    """Highest memory in a phase, by torch's own statistics."""

    allocated_bytes: Bytes
    """``torch.cuda.max_memory_allocated()``. [B]"""
    reserved_bytes: Bytes
    """``torch.cuda.max_memory_reserved()``. [B]"""


class Moment(_Record):
    """Memory of the process at one moment."""

    process_bytes: Bytes | None
    """By NVML, None where it does not tell. [B]"""
    device_used_bytes: Bytes | None
    """By all processes. [B]"""
    reserved_bytes: Bytes
    """By torch's allocator. [B]"""


class Memory(_Record):
    """Memory of a run; phases that were not reached are None."""

    load: Peaks | None = None
    """Building the model, adapters and optimizer; the cache is emptied afterwards."""
    forward: Peaks | None = None
    backward: Peaks | None = None
    optimizer: Peaks | None = None
    """Clipping and the optimizer step."""
    whole: Peaks | None = None
    """All training steps, without loading."""
    before_cuda: Moment | None = None
    context: Moment | None = None
    """Before the first tensor."""
    blas: Moment | None = None
    """After the first matrix product."""
    loaded: Moment | None = None
    """Model, adapters and optimizer are there; what the allocator holds beyond them is fragments of loading."""
    first_step: Moment | None = None
    end: Moment | None = None
    """After the last step that was measured."""
    device_used_peak_bytes: Bytes | None = None
    """Highest of ``samples`` readings of NVML while training. [B]"""
    samples: Annotated[int, Field(ge=0, le=_LARGEST)] = 0

    @property
    def context_bytes(self) -> int | None:
        """What the process takes beside torch's allocator at the end: context, kernels, libraries. [B]

        Where NVML does not tell this process apart, the device's use less what was in use before.
        """
        end, before = self.end, self.before_cuda
        if end is None:
            return None
        if end.process_bytes is not None:
            return end.process_bytes - end.reserved_bytes
        if end.device_used_bytes is None or before is None or before.device_used_bytes is None:
            return None
        return end.device_used_bytes - before.device_used_bytes - end.reserved_bytes


class Timing(_Record):
    """Speed once warm, the device idle before and after every step."""

    step_s: Seconds
    """Median of ``steps_s``. [s]"""
    steps_s: Annotated[list[Seconds], Field(min_length=5)]
    warmup_steps: Annotated[int, Field(ge=1, le=_LARGEST)]
    tokens_per_s: Annotated[float, Field(gt=0, le=1e12)]


class Trial(_Record):
    """One run under a limit."""

    limit_bytes: Bytes
    suffices: bool


class Smallest(_Record):
    """How little memory torch's allocator can be given, by ``torch.cuda.set_per_process_memory_fraction``.

    Loading is part of every trial. The CUDA context is not: it lies outside the allocator.
    """

    suffices_bytes: Bytes
    """Smallest limit that the job ran under. [B]"""
    fails_bytes: Bytes
    """Largest limit that does not do: a trial, or one byte below the allocated peak. [B]"""
    resolution_bytes: Annotated[int, Field(ge=1, le=_LARGEST)]
    """Bisection stops when the two are no further apart. [B]"""
    residue_bytes: Bytes
    """The most that an earlier trial had left in the allocator when the next began. [B]"""
    trials: list[Trial]


class Block(_Record):
    """Blocks alive at the peak that were asked for at one place."""

    n_bytes: Bytes
    count: Annotated[int, Field(ge=1, le=_LARGEST)]
    where: str


class Failure(_Record):
    """Why there is no complete measurement."""

    kind: str
    """Class of the error, or how the process ended."""
    message: str
    phase: str
    """``start``, ``load``, ``forward``, ``backward``, ``optimizer``..."""
    asked_bytes: Bytes | None = None
    """Size of the request that failed, None where the error does not say. [B]"""


class ProfileRow(_Record):
    """One job that was measured, or that was tried."""

    schema_name: Annotated[Literal["vramcalc-profile"], Field(alias="schema")] = "vramcalc-profile"
    version: Literal[1] = 1
    job_id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    source: Literal["profile", "callback"]
    """The project's own loop, or a user's Trainer."""
    recorded_at: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    recipe: RunSettings
    machine: Machine
    versions: dict[str, str]
    outcome: Literal["measured", "out_of_memory", "failed"]
    failure: Failure | None = None
    memory: Memory | None = None
    """None on a CPU."""
    timing: Timing | None = None
    smallest: Smallest | None = None
    blocks: list[Block] | None = None
    sdpa_backend: str | None = None
    """Kernel that torch chose for the first attention, None where it was not asked."""
    wall_s: Seconds | None = None
    """Of the whole measurement. [s]"""
    notes: list[str] = []

    @property
    def key(self) -> tuple[str, ...]:
        """What makes it another measurement: the recipe, the GPU, the releases of the libraries."""
        return measurement_key(self.job_id, self.machine.gpu, self.versions)

    @property
    def unchecked_versions(self) -> list[str]:
        """Libraries that ran in another release than the recipe models, such as ``"torch 2.11.0"``."""
        modelled = {name: getattr(self.recipe.stack, name) for name in COMPARED}
        ran = {name: self.versions[name] for name in COMPARED if name in self.versions}
        return [f"{name} {v}" for name, v in ran.items() if not f"{v}.".startswith(f"{modelled[name]}.")]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), separators=(",", ":"))


def measurement_key(job_id: str, gpu: Gpu | None, versions: dict[str, str]) -> tuple[str, ...]:
    """See :attr:`ProfileRow.key`."""
    return (job_id, gpu.name if gpu else "cpu", *(versions.get(name, "") for name in COMPARED))


def read_profiles(path: str | Path) -> list[ProfileRow]:
    """Rows of a file; a last line that was torn off while it was written is left out.

    Raises:
        DataError: no such file, or a line that is no row: which line, which field, what to do.
    """
    try:
        lines, _ = read_lines(Path(path))
    except FileNotFoundError as err:
        raise DataError(f"{path}: no such file; 'vramcalc campaign' and 'vramcalc profile' write them") from err
    return [parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def shipped() -> Iterator[ProfileRow]:
    """Rows that come with the package.

    Raises:
        DataError: as :func:`read_profiles`.
    """
    for path in sorted((tables.directory() / "profiles").glob("*.jsonl")):
        yield from read_profiles(path)


def parse(line: str, where: str = "profile row") -> ProfileRow:
    """A row from its line.

    Args:
        line: JSON.
        where: what to call the line in errors.

    Raises:
        DataError: not JSON, not a profile row, of a newer version, or a field is wrong.
    """
    try:
        plain = json.loads(line)
    except (ValueError, RecursionError) as err:
        raise DataError(f"{where}: no JSON ({err}); restore the file, or take the line out") from None
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        given = plain.get("schema") if isinstance(plain, dict) else type(plain).__name__
        raise DataError(f"{where}: schema = {shown(given)}: expected {SCHEMA!r}; this is no profile of vramcalc")
    version = plain.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DataError(
            f"{where}: version = {shown(version)}: expected {VERSION}; restore the file, or take the line out"
        )
    if version > VERSION:
        raise DataError(f"{where}: version = {shown(version)}: this vramcalc reads up to {VERSION}; update vramcalc")
    try:
        row = ProfileRow.model_validate_json(line)
    except ValidationError as err:
        raise DataError(f"{where}: {_first(err)}; restore the file, or take the line out") from None
    # Of the recipe as it is written: a later release may have given it more fields.
    if row.job_id != (own := _digest(plain["recipe"])):
        raise DataError(
            f"{where}: job_id = {row.job_id!r}: expected {own!r}, that of its recipe: one of them was changed; "
            "restore the file, or take the line out"
        )
    return row


def _first(err: ValidationError) -> str:
    """The first thing wrong, with the way to its field."""
    first = err.errors()[0]
    loc = ".".join(str(part) for part in first["loc"])
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, VramcalcError):
        return f"{loc}: {inner}"
    if first["type"] == "missing":
        return f"{loc}: expected a value, and none was given"
    if first["type"] == "extra_forbidden":
        return f"{loc}: no such field"
    return f"{loc} = {str(first['input'])[:80]!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
