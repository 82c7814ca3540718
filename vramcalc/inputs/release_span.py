"""A job whose release of transformers is not known: the likeliest release, and the others that it may have used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from vramcalc.errors import Unsupported
from vramcalc.inputs.job import Job
from vramcalc.inputs.release_dates import candidates, unknown_since
from vramcalc.inputs.releases import ROTARY_PRODUCT_UNTIL, minor_release, release_of
from vramcalc.inputs.stack import Stack


def likeliest_job(*, stack: Stack, **parts: Any) -> Job:
    """The job; where its release is not known, of the newest that can run it.

    Args:
        stack: the recipe.
        **parts: the other fields of :class:`vramcalc.inputs.job.Job`.

    Raises:
        Unsupported: settings that do not go together, with the newest release where no release has them.
    """
    when = unknown_since(stack.transformers)
    if when is None:
        return Job(stack=stack, **parts)
    refused: Unsupported | None = None
    for version in candidates(when):
        try:
            return Job(stack=stack.replace(transformers=f"{version}@{when}"), **parts)
        except Unsupported as err:
            refused = refused or err
    assert refused is not None, "a stack has one candidate at least"
    raise refused


def other_jobs(job: Job) -> Iterator[Job]:
    """The job under each other release it may have run with, one of those that do the same; none if it is known."""
    when = unknown_since(job.stack.transformers)
    if when is None:
        return
    seen = {_does(job.stack.transformers)}
    for version in candidates(when):
        if _does(version) in seen:
            continue
        try:
            other = replace(job, stack=job.stack.replace(transformers=version))
        except Unsupported:
            continue
        seen.add(_does(version))
        yield other


def _does(transformers: str) -> tuple[object, bool]:
    """What releases that do the same have in common."""
    minor = minor_release(transformers) or (0, 0)
    return release_of(minor), minor <= ROTARY_PRODUCT_UNTIL
