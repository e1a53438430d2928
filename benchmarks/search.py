"""How many trainings every sampler needs: `python benchmarks/search.py`, into reports/search.md.

Stored runs (reports/search.json) are kept: a stopped comparison goes on, `--fresh` starts anew,
`--render` only writes the page and the figure again, `--suggestion` measures what one suggestion
takes, `--variants` runs the grey box with other first designs and on other formulas. pymoo and
BoTorch come with `pip install 'dse[bench]'`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "search"))

from comparison import main

if __name__ == "__main__":
    main()
