"""Complete outputs, kept word for word under ``tests/golden``; ``python tests/test_golden.py`` writes them anew.

They guard what is read, not what is true: the numbers in them are held against traces elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from command import run

from vramcalc import estimate, verdict

FOLDER = Path(__file__).parent / "golden"
COMMANDS = {
    "fit.txt": "fit llama-3.1-8b --gpu t4 --gpu rtx-4090 --gpu a100-sxm-80",
    "fit-trl.txt": "fit qwen3-4b --stack trl-sft --gpu l4 --method qlora --method lora --micro-batch-size 4",
    "estimate.txt": "estimate llama-3.1-8b --method lora",
    "verdict.txt": "estimate qwen2.5-7b --method full --gpu a100-sxm-40 --micro-batch-size 4 --padded",
    "tight.txt": "estimate llama-3.1-8b --method qlora --gpu t4 --dtype fp16 --autocast fp16 --gradient-checkpointing "
    "non_reentrant --bnb-4bit-compute-dtype fp16",
    "max-batch.txt": "max llama-3.2-3b --gpu rtx-4090 --method qlora --gradient-checkpointing reentrant --seq-len 1024",
    "max-length.txt": "max qwen2.5-0.5b --of seq-len --gpu h100-sxm --loss fused_linear",
    "estimate.json": "estimate qwen2.5-0.5b --method full --loss fused_linear --gradient-checkpointing reentrant "
    "--gpu l4 --json",
    "fit.json": "fit mistral-7b-v0.1 --gpu l4 --method qlora --json",
    "max.json": "max qwen2.5-0.5b --gpu l4 --limit 2 --json",
}
PAGES = ("estimate.html", "verdict.html")


def output(name: str) -> str:
    """What is printed today."""
    if name in COMMANDS:
        return run(*COMMANDS[name].split()).out
    found = estimate("llama-3.1-8b", "qlora", gpu="rtx-4090")
    shown = found if name == "estimate.html" else verdict(found)
    return shown._repr_html_().replace("><", ">\n<") + "\n"


@pytest.mark.parametrize("name", [*COMMANDS, *PAGES])
def test_an_output_is_word_for_word_the_golden_one(name: str) -> None:
    assert output(name) == (FOLDER / name).read_text(encoding="utf-8")


def test_every_golden_file_is_compared() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*COMMANDS, *PAGES}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file in (*COMMANDS, *PAGES):
        (FOLDER / file).write_text(output(file), encoding="utf-8")
