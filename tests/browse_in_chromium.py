"""What tests of the page ask of the browser."""

from __future__ import annotations

from typing import Any


def opened(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("#table tbody tr")
    wait_points(page, "d => d.data.length > 0")
    # The front comes with the page, all else a moment later.
    page.wait_for_function("() => document.querySelector('#shown').textContent !== ''")


def wait_points(page: Any, test: str) -> None:
    """Wait until the scatter passes a test in script."""
    page.wait_for_function(
        f"() => {{const p = document.querySelector('#scatter .js-plotly-plot');"
        f"return p && p.data && ({test})(p)}}"
    )


def wait_rows(page: Any, count: int) -> None:
    """Wait until the table has this many trials on its pages."""
    page.wait_for_function(
        f"() => document.querySelector('#table .pager')?.textContent.includes('· {count:,} trials')"
    )


def shown(page: Any) -> str:
    return str(page.text_content("#shown"))


def first_of_front(page: Any) -> tuple[float, float, int]:
    """Where the first design of the front is drawn now, and its uid."""
    x, y, uid = page.evaluate(
        """() => {
          const plot = document.querySelector('#scatter .js-plotly-plot');
          const front = plot.data.findIndex(t => t.name.startsWith('Pareto front'));
          const shown = plot.data.slice(0, front).filter(t => t.type === 'scatter').length;
          const trace = plot.querySelectorAll('.scatterlayer .trace')[shown];
          const box = trace.querySelector('.point').getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2, plot.data[front].customdata[0]];
        }"""
    )
    return x, y, uid


def settled(page: Any) -> None:
    """Wait until what comes after the front is there: every design, and what lies below."""
    wait_points(page, "p => p.data.some(t => t.name.startsWith('dominated'))")
    page.wait_for_selector("#importance .heatmaplayer")
    page.wait_for_selector("#timeline .barlayer")
