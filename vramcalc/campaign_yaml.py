"""YAML as a person means it: a name given twice is an error, and ``no``, ``on`` and ``off`` are words."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.constructor import ConstructorError

_BOOLEAN = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, stricter."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose names are all different."""
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if isinstance(name, str) and name in seen and name != "<<":
                raise ConstructorError(None, None, f"{name!r} is given twice", key.start_mark)
            if isinstance(name, str):
                seen.add(name)
        return super().construct_mapping(node, deep)


def load(text: str) -> Any:
    """Plain values of a YAML text.

    Raises:
        yaml.YAMLError: no YAML, a tag that is not plain data, or a name given twice.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
