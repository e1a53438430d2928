"""YAML as study files use it, numbers as everybody writes them; and what two searches differ in."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from dse.errors import StudyError


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses keys given twice, and keys that are no text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; what is wrong with a key is told with its line."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise StudyError(f"line {line}: key {key!r} is not a text; put it in quotes")
            if key in seen:
                raise StudyError(f"line {line}: key '{key}' is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-3 for a text, because it has no point; YAML 1.2 and everybody else do not.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping of a study file's text; StudyError with the line of what is wrong."""
    try:
        content = yaml.load(text, Loader=_Loader)
    except StudyError as error:
        raise StudyError(f"{source}: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise StudyError(f"{source}: line {line} is not YAML ({error.problem})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise StudyError(f"{source}: this is not YAML ({told})") from error
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds {short(content)}"
        raise StudyError(f"{source}: {found}; write a mapping of keys, as 'dse init' does")
    return content


def short(value: Any) -> str:
    """A value as text that fits a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def difference(stored: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Sentences for what differs between two `searchable()` mappings, by key path."""
    return _differences("", stored, found)


def _differences(path: str, one: Any, other: Any) -> list[str]:
    if one == other:
        return []
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        lines: list[str] = []
        for key in sorted({*one, *other}):
            inner = f"{path}.{key}" if path else str(key)
            lines += _differences(inner, one.get(key), other.get(key))
        return lines
    return [f"{path} was {short(one)} and is now {short(other)}"]


def override_study(text: str, source: str, **changes: Any) -> str:
    """The file's text with what flags replace; unchanged text when there is nothing to replace."""
    given = {key: value for key, value in changes.items() if value is not None}
    if not given:
        return text
    content = parse_yaml(text, source) | given
    return yaml.safe_dump(content, sort_keys=False)
