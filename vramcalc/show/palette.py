"""Colours that mean the same in every picture and on every page.

References:
    Okabe and Ito, "Color Universal Design (CUD): How to make figures and presentations that are friendly to colorblind
    people", 2002 (revised 2008), https://jfly.uni-koeln.de/color/: eight colours told apart with protanopia,
    deuteranopia and tritanopia. Its black is left out, as a page may be dark; grey stands for what is no tensor.
"""

from __future__ import annotations

BLUE, SKY_BLUE, GREEN, YELLOW = "#0072B2", "#56B4E9", "#009E73", "#F0E442"
ORANGE, VERMILION, PURPLE, GREY = "#E69F00", "#D55E00", "#CC79A7", "#666666"

GROUPS = {
    "parameters": BLUE,
    "gradients": SKY_BLUE,
    "optimizer": GREEN,
    "activations": ORANGE,
    "temporaries": VERMILION,
    "workspace": PURPLE,
    "context": GREY,
}
"""By group of the ledger, in the order of the stack."""

CACHED = "#D8D8D8"
"""What the allocator holds and no tensor uses."""

METHODS = {
    "full": VERMILION,
    "dora": PURPLE,
    "adalora": ORANGE,
    "lora": BLUE,
    "qlora": GREEN,
    "prompt_tuning": GREY,
    "p_tuning": SKY_BLUE,
    "prefix_tuning": YELLOW,
}
"""By method, in the order of what they take."""

VERDICTS = {"fits": GREEN, "tight": ORANGE, "does not fit": VERMILION}
