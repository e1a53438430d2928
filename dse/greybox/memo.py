"""Functions of designs that are asked once for each of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dse.greybox.knobs import Floats

# Numbers kept by one function before it forgets them all.
MOST_KEPT = 8_000_000


class RowMemo:
    """A function of rows (n, knobs) -> (n, ...), asked only for rows that it was not asked for."""

    def __init__(self, ask: Callable[[Floats], npt.NDArray[np.generic]]) -> None:
        self._ask = ask
        self._kept: dict[bytes, npt.NDArray[np.generic]] = {}

    def __call__(self, rows: Floats) -> npt.NDArray[np.generic]:
        """What the function gives for `rows`, of which there is at least one."""
        keys = [row.tobytes() for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._kept}
        if missing:
            found = self._ask(np.array(list(missing.values())))
            if (len(self._kept) + len(found)) * found[0].size > MOST_KEPT:
                self._kept.clear()
                if len(missing) < len(set(keys)):
                    return self(rows)
            self._kept.update(zip(missing, found, strict=True))
        return np.stack([self._kept[key] for key in keys])
