"""YAML as a person means it: a name given twice is an error, and ``no``, ``on`` and ``off`` are words."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.constructor import ConstructorError

_BOOLEAN, _MERGE = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:merge"
MOST_VALUES = 500_000
"""That a file may stand for: fifty to each of the jobs that a campaign may have."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, stricter."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def load(text: str) -> Any:
    """Plain values of a YAML text.

    Merge keys (``<<``) take over what is not given beside them.

    Raises:
        yaml.YAMLError: no YAML, a tag that is not plain data, a name given twice, aliases inside themselves, or aliases
            of aliases that stand for more values than a file can mean.
        ValueError: a number of too many digits, or a date that does not exist.
        RecursionError: too deep.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _spelled_out(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _spelled_out(node: yaml.Node, sizes: dict[yaml.Node, int]) -> int:
    """Values that a node stands for once its aliases are spelled out; names are checked on the way."""
    if node in sizes:
        if not sizes[node]:
            raise ConstructorError(None, None, "an alias inside what it stands for", node.start_mark)
        return sizes[node]
    sizes[node] = 0
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated(node)
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    sizes[node] = total = 1 + sum(_spelled_out(part, sizes) for part in parts)
    if total > MOST_VALUES:
        raise ConstructorError(None, None, f"more than {MOST_VALUES:,} values, aliases spelled out", node.start_mark)
    return total


def _refuse_repeated(node: yaml.MappingNode) -> None:
    """All names of a mapping are different."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            if key.value in seen:
                raise ConstructorError(None, None, f"{key.value[:80]!r} is given twice", key.start_mark)
            seen.add(key.value)
