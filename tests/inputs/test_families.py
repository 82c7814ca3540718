"""What holds for every family, and that nothing outside the families' own files knows one by its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from configs import CONFIGS

import vramcalc
from vramcalc import estimate
from vramcalc.errors import Unsupported
from vramcalc.inputs.families import FAMILIES
from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.releases import RELEASES
from vramcalc.inputs.stack import ModelSpec
from vramcalc.memory.estimate import make_job
from vramcalc.shadow import families as shadows
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.training.loop import Loop, Sizes

ROOT = Path(vramcalc.__file__).parent
OWN = (ROOT / "inputs" / "families", ROOT / "shadow" / "families")
LAYOUTS = {"vramcalc/timing/matrices.py"}
"""Names of layouts in ``tables/matrices.csv``, some of which are those of families."""


def spec(name: str) -> ModelSpec:
    return to_spec(CONFIGS[name], name)


# -- who knows families by name ----------------------------------------------------------------------------------------


def sources() -> Iterator[tuple[str, ast.AST]]:
    """Modules outside the families' own files."""
    for path in sorted(ROOT.rglob("*.py")):
        if not any(folder in path.parents for folder in OWN):
            yield str(path.relative_to(ROOT.parent)), ast.parse(path.read_text("utf-8"))


def named(node: ast.AST) -> bool:
    """Whether an expression is a ``model_type``."""
    match node:
        case ast.Attribute(attr="model_type") | ast.Name(id="model_type"):
            return True
        case ast.Subscript(slice=ast.Constant(value="model_type")):
            return True
        case _:
            return False


def compared(tree: ast.AST) -> Iterator[int]:
    """Lines at which a ``model_type`` is compared with anything but the list of all."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                every = ast.unparse(others[0]) in ("FAMILIES", "SUPPORTED", "catalog.SUPPORTED")
                missing = isinstance(others[0], ast.Constant) and others[0].value is None
                if any(map(named, (left, *others))) and not every and not missing:
                    yield node.lineno
            case ast.Match(subject=subject) if named(subject):
                yield node.lineno


def written(tree: ast.AST) -> Iterator[int]:
    """Lines at which the name of a family stands by itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in FAMILIES:
            yield node.lineno


def test_nothing_outside_the_families_asks_which_one_a_model_is() -> None:
    assert [f"{name}:{line}" for name, tree in sources() for line in compared(tree)] == []


def test_nothing_outside_the_families_names_one() -> None:
    assert [f"{name}:{line}" for name, tree in sources() if name not in LAYOUTS for line in written(tree)] == []


@pytest.mark.parametrize(
    "text",
    [
        'job.model.model_type == "granite"',
        'model.model_type in ("llama", "qwen3")',
        'row["model_type"] != other',
        "model_type in release.traits",
        "match model_type:\n    case _: ...",
    ],
)
def test_a_question_for_the_family_is_noticed(text: str) -> None:
    assert list(compared(ast.parse(text))) == [1]


# -- laws --------------------------------------------------------------------------------------------------------------


def test_each_has_its_modules_and_a_small_configuration() -> None:
    assert list(FAMILIES) == sorted(FAMILIES) == list(shadows.FAMILIES) == list(CONFIGS)
    assert all(name == family.model_type for name, family in FAMILIES.items())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"attention_bias": True}, {"tie_word_embeddings": True}], ids=str)
def test_parameters_are_the_sum_over_the_modules(name: str, changes: dict[str, Any]) -> None:
    model = spec(name)
    if "attention_bias" in changes and "attention_bias" not in FAMILIES[name].biases:
        changes = {}
    job, _ = make_job(model.replace(**changes), "full", seq_len=8)
    loop = Loop(job, Sizes.of(job), model.num_hidden_layers)
    assert loop.trainable_params == job.model.params_total


@pytest.mark.parametrize("name", FAMILIES)
def test_leaves_of_a_layer_are_those_that_are_said(name: str) -> None:
    """By these names the layers that targets make different are found."""
    job, _ = make_job(spec(name), "full", seq_len=8)
    layer = Loop(job, Sizes.of(job), 1).net.layers[0]
    leaves = {m.name.removeprefix("model.layers.0.") for _, _, m in layer.modules() if _holds(m)}
    norms = {leaf for leaf in leaves if leaf.endswith("norm") and "." not in leaf}
    assert norms == set(FAMILIES[name].norms)


def _holds(module: object) -> bool:
    return any(isinstance(value, Parameter) for value in vars(module).values())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_attention_of_a_family_is_the_first_that_it_has(name: str) -> None:
    assert estimate(spec(name), "full", seq_len=8).job.stack.attn_implementation == FAMILIES[name].attention[0]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kernel", ["sdpa", "eager", "flash_attention_2"])
def test_attention_that_a_family_does_not_have_is_refused_by_name(name: str, kernel: str) -> None:
    settings: dict[str, Any] = {"seq_len": 8, "attn_implementation": kernel}
    if kernel in FAMILIES[name].attention:
        assert estimate(spec(name), "full", **settings).allocated_bytes > 0
        return
    with pytest.raises(Unsupported, match=f"attn_implementation='{kernel}' for {name}; use"):
        estimate(spec(name), "full", **settings)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_release_before_a_family_is_refused(name: str) -> None:
    since = FAMILIES[name].since
    for release in RELEASES:
        if release.since >= since:
            continue
        with pytest.raises(Unsupported, match=f"use {since[0]}.{since[1]} or later"):
            make_job(spec(name), "full", seq_len=8, transformers="{}.{}".format(*release.since))


@pytest.mark.parametrize("name", FAMILIES)
def test_traits_begin_and_end_with_whole_releases(name: str) -> None:
    """A release is asked by its first minor one, so that those of one entry must be alike."""
    family = FAMILIES[name]
    for trait, (first, last) in family.traits.items():
        assert first in {release.since for release in RELEASES}, trait
        assert last in {release.checked for release in RELEASES}, trait
        assert max(first, family.since) <= last


@pytest.mark.parametrize("name", FAMILIES)
def test_a_configuration_written_for_transformers_is_read_as_the_same_model(name: str) -> None:
    from vramcalc.profiling.real.libraries import hf_config

    model = spec(name)
    written_out = {key: value for key, value in hf_config(model).to_dict().items() if key != "dtype"}
    assert to_spec(written_out, name) == model
