"""Results that are kept until there are too many of them."""

from __future__ import annotations

from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Bounded(dict[K, V]):
    """A dictionary that forgets everything before it would hold more than `most` items.

    For results that can be made again: what a search asks for anew it asks for soon, and to forget
    all is cheaper than to remember what was used last. A copy, also one for another process, is
    empty.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, key: K, value: V) -> None:
        if len(self) >= self.most:
            self.clear()
        super().__setitem__(key, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return Bounded, (self.most,)
