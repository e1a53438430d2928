"""The C kernels of this package: templates in `kernels/`, each naming what it needs.

A first line `/* needs: a b */` lists the files that must stand before it; `$name` is a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Template

_NEEDS = re.compile(r"/\* needs: ([\w ${}]+) \*/\n")
# Functions that are called out of line; helpers are `static inline` or return a value.
_OUT_OF_LINE = re.compile(r"^static (?:NO_INLINE )?void (?=\w+\()", re.MULTILINE)


@dataclass(frozen=True)
class Kernel:
    """A file of `kernels/` without its `.c`, and the values of its parameters."""

    file: str
    parameters: tuple[tuple[str, str], ...] = ()


def kernel(file: str, **parameters: str) -> Kernel:
    """The kernel of that file with these parameters."""
    return Kernel(file, tuple(sorted(parameters.items())))


def assemble(kernels: Iterable[Kernel], aliases: Mapping[str, str]) -> str:
    """C text of the kernels and of all they need, each once, in an order that compiles.

    Each is declared KERNEL: compilers make one function of it that does not depend on its callers,
    so that its bytes and cycles are the same in every network.

    `aliases` maps a needed name to the file that provides it: which `requantize`, for one.
    """
    done: dict[str, None] = {}
    for item in kernels:
        for text in _with_needs(item, aliases):
            done.setdefault(_OUT_OF_LINE.sub("KERNEL void ", text))
    return "\n".join(done)


def _with_needs(item: Kernel, aliases: Mapping[str, str]) -> Iterator[str]:
    text = Template(_text(item.file)).substitute(dict(item.parameters))
    found = _NEEDS.match(text)
    for name in found[1].split() if found else ():
        yield from _with_needs(Kernel(aliases.get(name, name), item.parameters), aliases)
    yield text[found.end() :] if found else text


@cache
def _text(file: str) -> str:
    return (resources.files("dse.firmware") / "kernels" / f"{file}.c").read_text("utf-8")
