"""Which function shows which result, by the name of its class and the form; loaded when something is shown."""

from __future__ import annotations

from vramcalc.display import Form

RENDERINGS: dict[tuple[str, Form], str] = {
    ("Estimate", "text"): "vramcalc.render:estimate_text",
    ("Estimate", "html"): "vramcalc.render_html:estimate_html",
    ("Estimate", "figure"): "vramcalc.figures:timeline",
    ("Verdict", "text"): "vramcalc.render:verdict_text",
    ("Verdict", "html"): "vramcalc.render_html:verdict_html",
    ("Largest", "text"): "vramcalc.render:largest_text",
    ("Grid", "html"): "vramcalc.render_html:grid_html",
    ("Grid", "figure"): "vramcalc.figures:grid",
    ("Accuracy", "html"): "vramcalc.render_html:accuracy_html",
    ("Accuracy", "figure"): "vramcalc.figures:accuracy",
    ("Agreement", "text"): "vramcalc.render_traces:agreement_text",
    ("FirstStep", "text"): "vramcalc.render_profile:first_step_text",
    ("Plan", "text"): "vramcalc.render_plan:plan_text",
}
