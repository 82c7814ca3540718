"""Which function shows which result, by the name of its class and the form; loaded when something is shown."""

from __future__ import annotations

from vramcalc.display import Form

RENDERINGS: dict[tuple[str, Form], str] = {
    ("Estimate", "text"): "vramcalc.show.text.estimates:estimate_text",
    ("Estimate", "html"): "vramcalc.show.html:estimate_html",
    ("Estimate", "figure"): "vramcalc.show.figures:timeline",
    ("Verdict", "text"): "vramcalc.show.text.estimates:verdict_text",
    ("Verdict", "html"): "vramcalc.show.html:verdict_html",
    ("Largest", "text"): "vramcalc.show.text.estimates:largest_text",
    ("Grid", "html"): "vramcalc.show.html:grid_html",
    ("Grid", "figure"): "vramcalc.show.figures:grid",
    ("Accuracy", "html"): "vramcalc.show.html:accuracy_html",
    ("Accuracy", "figure"): "vramcalc.show.figures:accuracy",
    ("Agreement", "text"): "vramcalc.show.text.traces:agreement_text",
    ("FirstStep", "text"): "vramcalc.show.text.profiles:first_step_text",
    ("Plan", "text"): "vramcalc.show.text.plans:plan_text",
}
