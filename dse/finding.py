"""One thing that is wrong with a database, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dse.storage import Storage


@dataclass(frozen=True)
class Finding:
    """What is wrong, in which study ('' for the whole database), and what a repair does.

    `repair` is empty where nothing mends it here. A 'note' is harmless. `mend` does it, and says
    what it did.
    """

    study: str
    found: str
    repair: str = ""
    kind: Literal["broken", "note"] = "broken"
    mend: Callable[[Storage], str] | None = field(default=None, compare=False, repr=False)


def listed(numbers: Sequence[int], most: int = 8) -> str:
    """Numbers of trials in a sentence, the first few of many."""
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return (", ".join(map(str, numbers[:most])) or "none") + more
