"""What a mutant changes: one number, comparison, boolean, dtype or ``del`` of a module."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators import boolean_replacer, number_replacer, unary_operator_replacement
from cosmic_ray.operators.binary_operator_replacement import operators as binary
from cosmic_ray.operators.comparison_operator_replacement import operators as comparisons
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.operators.zero_iteration_for_loop import ZeroIterationForLoop

_DTYPES = {
    "float32": "bfloat16", "bfloat16": "float32", "float16": "float32", "int64": "int32", "int32": "int64",
    "uint8": "int32", "bool": "uint8",
}  # fmt: skip
_COMPARISONS = {"Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Is_IsNot", "IsNot_Is"}
_BINARY = {"Add_Sub", "Sub_Add", "Mul_FloorDiv", "FloorDiv_Mul", "Mod_Mul"}


def _unquoted(node: Any) -> str:
    return str(node.value.strip("\"'"))


class NumberReplacer(number_replacer.NumberReplacer):  # type: ignore[misc]
    """A number becomes the next one, or the one before; the last of a module's single argument is its first."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        """Numbers, each as often as it becomes another."""
        found = list(super().mutation_positions(node))
        function = parso.tree.search_ancestor(node, "funcdef") if found else None
        if function is not None and any(p.star_count == 1 for p in function.get_params()):
            subscript = node.search_ancestor("atom_expr", "power")
            return iter(found[:1] if subscript is not None and subscript.get_code(False) == "args[0]" else found)
        return iter(found)


class ReplaceDtype(Operator):  # type: ignore[misc]
    """A dtype becomes another of a different size."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        """Strings that are dtypes."""
        if node.type == "string" and _unquoted(node) in _DTYPES:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """The other one."""
        assert index == 0
        return parso.python.tree.String(f'"{_DTYPES[_unquoted(node)]}"', node.start_pos, node.prefix)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """What it does."""
        return (Example('x = "float32"', 'x = "bfloat16"'),)


class KeepAlive(Operator):  # type: ignore[misc]
    """A name that is deleted stays; where its function ends right there, that would change nothing."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        """Statements that delete."""
        if node.type == "del_stmt" and not _ends_function(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Nothing happens."""
        assert index == 0
        return parso.python.tree.Keyword("pass", node.start_pos, node.get_first_leaf().prefix)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """What it does."""
        return (Example("del x", "pass"),)


def _ends_function(statement: Any) -> bool:
    """Whether nothing runs between a statement and the end of its function: what is returned has been made before."""
    line = statement.parent
    following = line.get_next_sibling()
    if following is None:
        return line.parent.type == "suite" and line.parent.parent.type == "funcdef"
    returned = following.children[0] if following.type == "simple_stmt" else following
    return returned.type == "return_stmt" and not _calls(returned)


def _calls(node: Any) -> bool:
    return node.type in ("trailer", "comp_for") or any(map(_calls, getattr(node, "children", ())))


def _chosen(every: Iterator[Any], names: set[str]) -> list[Any]:
    return [cls for cls in every if cls.__name__.partition("_")[2] in names]


OPERATORS: dict[str, Operator] = {
    cls.__name__: cls()
    for cls in (
        NumberReplacer,
        boolean_replacer.ReplaceTrueWithFalse, boolean_replacer.ReplaceFalseWithTrue, boolean_replacer.ReplaceAndWithOr,
        boolean_replacer.ReplaceOrWithAnd, boolean_replacer.AddNot,
        *_chosen(unary_operator_replacement.operators(), {"Delete_Not"}),
        *_chosen(comparisons(), _COMPARISONS),
        *_chosen(binary(), _BINARY),
        ZeroIterationForLoop, ReplaceDtype, KeepAlive,
    )
}  # fmt: skip


@cache
def mutations(source: str) -> list[tuple[str, int, int]]:
    """Every mutation of a module's text: operator, which of its occurrences, and the line."""
    nodes, found = list(ast_nodes(get_ast(source))), []
    for name, operator in OPERATORS.items():
        positions = [at for node in nodes for at in operator.mutation_positions(node)]
        found += [(name, occurrence, line) for occurrence, ((line, _), _) in enumerate(positions)]
    return found


def mutated(source: str, operator: str, occurrence: int) -> str | None:
    """A module's text with one mutation, None where that changes nothing."""
    text = mutate_code(source, OPERATORS[operator], occurrence)
    return None if text is None or text == source else text
