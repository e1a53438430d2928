"""The page of backends is what their rules say, and limits prune a search before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dse.errors import StudyError
from dse.problem import build_problem
from dse.study import StudyFile, parse_study
from dse.targets import cost, load_backends, load_boards, parse_target, reference_graph
from dse.targets.backend import unsupported
from dse.targets.support import PROBE_BOARD, page, probes, supports
from dse.targets.tflm import greedy
from tests.command_line import study_text
from tests.test_targets_networks import chain

PAGE = Path(__file__).parents[1] / "docs" / "backends.md"
BOARDS, BACKENDS = load_boards(), load_backends()


def test_the_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: python -m dse.targets.support"


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_runs_something_and_refuses_something(name: str) -> None:
    board = BOARDS["corstone300_u55_128" if name == "ethos-u" else PROBE_BOARD]
    answers = [supports(BACKENDS[name], graph, board) for _, graph in probes()]
    assert any(answers)
    assert not all(
        supports(BACKENDS[name], graph, board)
        for dtype in ("int8", "int16", "float32")
        for _, graph in probes(dtype, 32 if dtype == "float32" else 8)
    )


@pytest.mark.parametrize("name", ["tflm", "tflm-reference", "x-cube-ai-9"])
def test_vendor_runtimes_store_few_bits_in_bytes(name: str) -> None:
    """A 4-bit weight takes a byte there: a search over bits gains no flash."""
    target = parse_target(f"nucleo_l4r5zi/{name}")
    narrow, wide = (cost(chain((8, 8, 8), bits), target) for bits in (4, 8))
    assert narrow.flash_parts["weights"] == wide.flash_parts["weights"]
    packed = cost(chain((8, 8, 8), 4), parse_target("nucleo_l4r5zi/cmsis-nn"))
    assert packed.flash_parts["weights"] < wide.flash_parts["weights"]


def test_the_interpreter_places_greedily_at_sixteen_bytes() -> None:
    graph, board = reference_graph("ic"), BOARDS["nucleo_l4r5zi"]
    plan = BACKENDS["tflm"].memory_plan(graph, board)
    assert all(buffer.offset % 16 == buffer.size_bytes % 16 == 0 for buffer in plan.buffers)
    assert plan.arena_bytes >= plan.peak_bytes
    for index, one in enumerate(plan.buffers):
        for other in plan.buffers[index + 1 :]:
            apart = one.offset >= other.offset + other.size_bytes
            apart = apart or other.offset >= one.offset + one.size_bytes
            assert apart or not one.overlaps(other)
    assert greedy(plan) == plan


def test_an_interpreter_takes_more_memory_than_static_calls() -> None:
    for network in ("ad", "ic", "kws", "vww"):
        graph = reference_graph(network)
        static, tflm = (
            cost(graph, parse_target(f"nucleo_l4r5zi/{name}")) for name in ("cmsis-nn", "tflm")
        )
        assert (tflm.value("ram") or 0) > (static.value("ram") or 0) + 3000
        assert (tflm.value("flash") or 0) > (static.value("flash") or 0) + 20_000


@pytest.mark.parametrize("name", ["tflm", "tflm-reference", "x-cube-ai-7.3"])
def test_portable_kernels_are_slower_than_tuned_ones(name: str) -> None:
    graph = reference_graph("kws")
    tuned = cost(graph, parse_target("nucleo_l4r5zi/x-cube-ai-9")).value("latency") or 0
    assert (cost(graph, parse_target(f"nucleo_l4r5zi/{name}")).value("latency") or 0) > tuned


def test_limits_prune_the_search_space() -> None:
    """What a backend cannot run is left out of a study before anything is sampled, with why."""
    asked = {"backends": ["x-cube-ai-9", "tflm"], "boards": ["rpi_pico", "nucleo_f446re"]}
    problem = build_problem(study_of(asked), reference_graph("kws"), 12)
    assert {key.rsplit("/", 1)[0] for key in problem.targets} == {
        "rpi_pico/tflm",
        "nucleo_f446re/x-cube-ai-9",
        "nucleo_f446re/tflm",
    }
    assert any("runs on STM32 only" in reason for reason in problem.left_out)
    lone = study_of({"backends": ["x-cube-ai-9"], "boards": ["rpi_pico"]})
    with pytest.raises(StudyError, match=r"leaves no target: .* runs on STM32 only"):
        build_problem(lone, reference_graph("kws"), 12)


def study_of(asked: dict[str, list[str]]) -> StudyFile:
    changes = {f"space.{key}": value for key, value in asked.items()}
    return parse_study(study_text(changes | {"constraints": []}), "study.yaml")


def test_rules_are_asked_of_every_operator() -> None:
    board = BOARDS[PROBE_BOARD]
    grouped = dict(probes())["convolution, grouped"]
    for name, backend in BACKENDS.items():
        if name != "ethos-u":
            assert "plain (one group) or depthwise" in unsupported(backend, grouped, board)[0]
