"""Write what is made by programs: fitted tables, documents, and the marked blocks of READMEs.

``python .ci/generate.py`` writes, ``--check`` only says what is stale. Further words limit it to documents whose path
holds one of them: ``python .ci/generate.py --check README.md tables/planning``.

A block stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; ``BLOCKS`` says who makes it. What has no name
there is a whole file.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import picture
import planning
from commands import help_of, run
from summary import six_numbers, supported

ROOT = Path(__file__).resolve().parent.parent
PART = re.compile(r"(<!-- generated: (?P<name>.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
FITTED = {
    "tables/timing.json": "vramcalc.accuracy.time.generate",
    "tables/calibration.json": "vramcalc.accuracy.intervals.generate",
}
"""Written by modules of the library, before the documents that rest on them."""
CHECKPOINTED = "--gradient-checkpointing non_reentrant"
PRICES = "--price-table tables/prices.csv"
FIT = f"vramcalc fit llama-3.1-8b --gpu rtx-3090 {CHECKPOINTED}"
MAX = f"vramcalc max llama-3.1-8b --method qlora --gpu rtx-3090 --seq-len 1024 {CHECKPOINTED}"
PLAN = (
    "vramcalc plan llama-3.1-8b --method qlora --gpu rtx-4090 --examples 10000 --tokens-per-example 512 "
    f"{CHECKPOINTED} {PRICES}"
)
ESTIMATE = f"vramcalc estimate llama-3.1-8b --method qlora --gpu rtx-4090 {CHECKPOINTED}"
WHOLE_PLAN = (
    "vramcalc plan llama-3.1-8b --method qlora --gpu l40s --examples 10000 --tokens-per-example 512 --epochs 3 "
    f"--micro-batch-size 4 {CHECKPOINTED} {PRICES}"
)
TABLE = f"vramcalc table --models llama-3.2-3b --methods lora,qlora --gpus l4 --format csv {PRICES}"
WIDE = partial(run, width=100)
BLOCKS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("README.md", "fit", partial(run, FIT, "  method ", 4)),
    ("README.md", "max", partial(run, MAX, "micro_batch_size ", 5)),
    ("README.md", "plan", partial(run, PLAN, "Run", 12)),
    ("README.md", "supported", supported),
    ("README.md", "six numbers", six_numbers),
    ("tables/pictures/step.svg", "", picture.step),
    ("tables/accuracy/traces.md", "traces", partial(WIDE, "vramcalc accuracy traces --stored")),
    ("tables/accuracy/memory.md", "memory", partial(WIDE, "vramcalc accuracy tables/measurements.csv")),
    ("tables/accuracy/intervals.md", "left out", partial(WIDE, "vramcalc calibrate --left-out")),
    ("tables/accuracy/intervals.md", "calibration", partial(WIDE, "vramcalc calibrate --show")),
    ("tables/accuracy/time.md", "time", partial(WIDE, "vramcalc accuracy --time tables/throughput.csv")),
    *((f"tables/planning/{name}.md", "", write) for name, write in planning.DOCUMENTS.items()),
    ("vramcalc/cli/README.md", "help", partial(run, "vramcalc --help")),
    ("vramcalc/cli/README.md", "help of commands", help_of),
    ("vramcalc/memory/README.md", "estimate", partial(WIDE, ESTIMATE)),
    ("vramcalc/planning/README.md", "plan", partial(WIDE, WHOLE_PLAN)),
    ("vramcalc/planning/README.md", "table", partial(WIDE, TABLE)),
)
"""Document, block, and what makes it."""
WHOLE_FOLDERS = ("tables/planning", "tables/pictures")
"""Nothing else lies in these."""


def main(words: list[str]) -> int:
    """Generate what is asked for, then write or compare."""
    check = "--check" in words
    asked = [word for word in words if word != "--check"]
    everything = [*FITTED, *(document for document, _, _ in BLOCKS)]
    nowhere = [word for word in asked if not any(word in document for document in everything)]
    if nowhere:
        raise SystemExit(f"no document has {', '.join(nowhere)} in its path")
    for document, module in FITTED.items():
        if _wanted(document, asked):
            command = [sys.executable, "-m", module, *(["--check"] if check else [])]
            done = subprocess.run(command, cwd=ROOT, check=False)  # noqa: S603 - modules of our own
            if done.returncode:
                return done.returncode
    stale = 0
    for document in dict.fromkeys(name for name, _, _ in BLOCKS if _wanted(name, asked)):
        stale += _settled(ROOT / document, made(document), check)
    known = {ROOT / document for document, _, _ in BLOCKS}
    for path in (path for folder in WHOLE_FOLDERS for path in sorted((ROOT / folder).glob("*"))):
        if path not in known and _wanted(str(path.relative_to(ROOT)), asked):
            stale += _settled(path, None, check)
    return int(stale > 0)


def _wanted(document: str, asked: list[str]) -> bool:
    return not asked or any(word in document for word in asked)


def made(document: str) -> str:
    """A document as it should be now.

    Raises:
        SystemExit: a block of the document that nobody makes, or one that the document lacks.
    """
    makers = {block: make for name, block, make in BLOCKS if name == document}
    if "" in makers:
        return makers[""]()
    text = (ROOT / document).read_text()
    marked = [match["name"] for match in PART.finditer(text)]
    if sorted(marked) != sorted(makers):
        raise SystemExit(f"{document} marks {sorted(marked)}; .ci/generate.py makes {sorted(makers)}")
    return PART.sub(lambda match: f"{match[1]}{makers[match['name']]()}{match[3]}", text)


def _settled(path: Path, text: str | None, check: bool) -> bool:
    """Write, or remove where there is no text; whether it was stale, with ``check`` alone."""
    if path.exists() and path.read_text() == text:
        return False
    if check:
        name = path.relative_to(ROOT)
        print(f"{name} is stale: run 'python .ci/generate.py {name}' and commit the result", file=sys.stderr)
    elif text is None:
        path.unlink()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return check


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
