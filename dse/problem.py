"""A study file made concrete: the network's shapes, the space, the targets and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from dse.candidate import CALIBRATION, Candidate, float_baseline
from dse.constraints import Constraint, baseline_of
from dse.errors import StudyError, TargetError
from dse.graph.channels import channel_groups, with_encodings
from dse.graph.factor import factorizable
from dse.graph.ir import Graph
from dse.graph.resources import SHARES, Budgets, needs
from dse.knobs import BUDGETS, RATIO, Knob, KnobKind, Value, layer_knobs
from dse.pareto import Box
from dse.samplers import GREY_BOX, check_grid, make_sampler
from dse.space import Space
from dse.space_section import PRECISIONS, Pruning, RampSection, SpaceSection
from dse.study import StudyFile
from dse.targets import Cost, Target, cost, find_backend, find_board, load_boards, targets_for
from dse.trial import COST_METRICS, Metric, MetricName
from dse.units import format_value
from dse.widths import Narrowing

# The reference point lies this far beyond the unpruned int8 network on the costliest target.
REFERENCE_MARGIN = 1.1
UNSUPPORTED = "supported by the backend"
# How far below the corners of the space a mixture over layers may lie (3 % found on LeNet-5).
MIXTURE_SLACK = 0.05
# How far below the narrowest network a wider one may lie, as kernels and memory plans like some
# widths better (14 % of RAM found on ResNet-8).
WIDTH_SLACK = 0.2
Found = TypeVar("Found")


@dataclass(frozen=True)
class Screening:
    """A candidate's exact costs, and every constraint that costs alone decide.

    `violations` by constraint text, <= 0 is met; `reasons` are the sentences of those missed.
    Where the backend cannot run the network at all, no cost is known; of an open candidate, whose
    widths a training finds, the lower ends alone.
    """

    metrics: Mapping[MetricName, Metric]
    violations: Mapping[str, float]
    reasons: tuple[str, ...]

    @property
    def feasible(self) -> bool:
        """Whether nothing decided by cost is missed."""
        return not self.reasons


@dataclass(frozen=True)
class Problem:
    """What a study explores; `left_out` says which targets were dropped, and why."""

    study: StudyFile
    space: Space
    targets: Mapping[str, Target]
    classes: int
    left_out: tuple[str, ...] = ()

    @property
    def objectives(self) -> tuple[MetricName, ...]:
        """Names in the study file's order."""
        return tuple(self.study.objectives)

    @cached_property
    def reference_target(self) -> str:
        """Where the baselines are costed: the first target that the int8 network fits.

        In the study file's order; the one with the most flash when it fits none.
        """
        for name in self.targets:
            found = self.baseline_costs(name)
            limits = self._limits(name)
            if all(limit.violation(found[limit.metric], None) <= 0 for limit in limits):
                return name
        return max(self.targets, key=lambda name: self.targets[name].limits().flash_bytes)

    @cached_property
    def float_target(self) -> str:
        """Where the float32 baseline is costed: like the reference, on a backend that runs it."""
        able = [
            name
            for name, target in self.targets.items()
            if not target.unsupported(self.space.shapes(float_baseline(name)))
        ]
        here = [name for name in able if name.split("/")[0] == self.reference_target.split("/")[0]]
        return next(iter(here or able), self.reference_target)

    @cached_property
    def _baseline_costs(self) -> dict[str, Mapping[MetricName, Metric]]:
        return {}

    def baseline_costs(self, target: str) -> Mapping[MetricName, Metric]:
        """Costs of the unpruned int8 network on a target."""
        if target not in self._baseline_costs:
            found = self.cost(self.space.int8_baseline(target))
            self._baseline_costs[target] = found.metrics
        return self._baseline_costs[target]

    def cost(self, candidate: Candidate) -> Cost:
        """Exact costs from shapes alone."""
        return cost(self.space.shapes(candidate), self.targets[candidate.target])

    def screen(self, candidate: Candidate) -> Screening:
        """Costs and cost constraints of a candidate; nothing is trained.

        Those of an open candidate are bounded from below: what misses a limit then, always does.
        """
        if candidate.open:
            return self._bounded(candidate)
        try:
            metrics = self.cost(candidate).metrics
        except TargetError as error:  # the backend cannot run it
            unknown = dict.fromkeys(COST_METRICS, Metric.unavailable(str(error)))
            return Screening(unknown, {UNSUPPORTED: 1.0}, (str(error),))
        return self.decide(metrics, candidate.target)

    def expect(self, candidate: Candidate) -> Screening:
        """As `screen`, but of predicted widths where training finds them; for samplers only."""
        return self.screen(self.space.expected(candidate))

    def _bounded(self, candidate: Candidate) -> Screening:
        """What the narrowest network costs, less what a wider one may save by suiting kernels."""
        costs = self.screen(self.space.narrowest(candidate))
        if UNSUPPORTED in costs.violations and costs.violations[UNSUPPORTED] > 0:
            return Screening(costs.metrics, {}, ())  # a wider one may run
        least = {name: _lowered(metric) for name, metric in costs.metrics.items()}
        found = self.decide(least, candidate.target)
        reasons = tuple(f"at any width: {reason}" for reason in found.reasons)
        open_ = {name: _at_least(name, metric) for name, metric in least.items()}
        return Screening(open_, found.violations, reasons)

    def decide(self, metrics: Mapping[MetricName, Metric], target: str) -> Screening:
        """What known costs decide on a target."""
        violations: dict[str, float] = {UNSUPPORTED: 0.0}
        reasons: list[str] = []
        for constraint in (*self._limits(target), *self.study.constraints):
            if constraint.needs_accuracy:
                continue
            metric = metrics[constraint.metric]
            baseline = baseline_of(constraint, None, self.baseline_costs(target))
            violations[constraint.text] = constraint.violation(metric, baseline)
            if violations[constraint.text] > 0:
                reasons.append(constraint.miss(metric, baseline, target))
        return Screening(metrics, violations, tuple(reasons))

    @cached_property
    def _lowest_costs(self) -> dict[str, Mapping[MetricName, Metric]]:
        return {}

    def lowest_costs(self, target: str) -> Mapping[MetricName, Metric]:
        """The lowest of each cost on a target, each from the compression that is best for it.

        Within the tightest budgets it is what their predicted widths cost.
        """
        if target not in self._lowest_costs:
            self._lowest_costs[target] = self._lowest(target, self.space.expected)
        return self._lowest_costs[target]

    def _lowest(
        self, target: str, widths: Callable[[Candidate], Candidate]
    ) -> Mapping[MetricName, Metric]:
        """The lowest of each cost over the corners of the space; `widths` closes open ones."""
        able = [
            self.cost(candidate).metrics
            for candidate in map(widths, self.space.corners(target))
            if not self.targets[target].unsupported(self.space.shapes(candidate))
        ] or [self.baseline_costs(target)]
        return {
            name: min((metrics[name] for metrics in able), key=_value_or_infinite)
            for name in COST_METRICS
        }

    def best_case(self, target: str) -> Screening:
        """What no candidate on a target can undercut by more than MIXTURE_SLACK."""
        least = self._lowest(target, self.space.narrowest)
        if self.space.budgeted:
            least = {name: _lowered(metric) for name, metric in least.items()}
        return self.decide(least, target)

    def judge(
        self, accuracy: Metric, baseline: float | None, target: str
    ) -> tuple[Mapping[str, float], tuple[str, ...]]:
        """Violations and sentences of the constraints on accuracy, once it is known."""
        violations: dict[str, float] = {}
        reasons: list[str] = []
        for constraint in self.study.constraints:
            if not constraint.needs_accuracy:
                continue
            violations[constraint.text] = constraint.violation(accuracy, baseline)
            if violations[constraint.text] > 0:
                reasons.append(constraint.miss(accuracy, baseline, target))
        return violations, tuple(reasons)

    def _limits(self, target: str) -> tuple[Constraint, ...]:
        """The board's own flash and RAM, less what is reserved for the rest of the firmware."""
        limits = self.targets[target].limits()
        return (
            Constraint("flash", "absolute", limits.flash_bytes, "flash of the board"),
            Constraint("ram", "absolute", limits.ram_bytes, "ram of the board"),
        )

    @cached_property
    def box(self) -> Box:
        """Where the hypervolume is measured: from the lowest costs to the unpruned int8 network.

        The reference accuracy is that of guessing.
        """
        ideal, reference = [], []
        for metric in self.objectives:
            if metric == "accuracy":
                ideal.append(0.0)
                reference.append(1 - 1 / self.classes)
                continue
            low = min(_value(self.lowest_costs(name), metric, name) for name in self.targets)
            high = max(_value(self.baseline_costs(name), metric, name) for name in self.targets)
            ideal.append(low)
            reference.append(max(high, low) * REFERENCE_MARGIN)
        logarithmic = tuple(metric != "accuracy" for metric in self.objectives)
        return Box(self.objectives, tuple(ideal), tuple(reference), logarithmic)


def _lowered(metric: Metric) -> Metric:
    if metric.value is None:
        return metric
    value = metric.value * (1 - WIDTH_SLACK)
    return Metric(value, value, value, metric.provenance, metric.source)


def _at_least(name: MetricName, least: Metric) -> Metric:
    if least.value is None:
        return least
    told = f"widths come out of training: at least {format_value(name, least.value)}"
    return Metric(None, least.value, None, "modelled", told)


def _value(metrics: Mapping[MetricName, Metric], metric: MetricName, target: str) -> float:
    value = metrics[metric].value
    if value is None:
        raise StudyError(f"{metric} is not known on {target}")
    return value


def _value_or_infinite(metric: Metric) -> float:
    return math.inf if metric.value is None else metric.value


def build_problem(
    study: StudyFile, graph: Graph, classes: int, boards_folder: Path | None = None
) -> Problem:
    """Put a study file and the network's shapes together.

    Raises StudyError when a layer, board or backend does not exist, when nothing is left to vary,
    when the sampler cannot work on the space, or when no candidate can meet what costs alone
    decide; TargetError when a board file is wrong.
    """
    targets, left_out = _targets(study, graph, boards_folder)
    alignment = study.space.alignment or max(
        target.backend.channel_alignment for target in targets.values()
    )
    knobs = _knobs(study.space, graph, tuple(targets))
    if math.prod(len(knob.choices) for knob in knobs) < 2:
        raise StudyError(
            "'space' leaves one candidate only; list several ratios, bit widths, boards, backends "
            "or clocks"
        )
    left_whole = _left_whole(study.space.pruning, graph)
    space = Space(graph, knobs, tuple(targets), alignment, left_whole)
    _check_budgets(space)
    _check_sampler(study, space)
    problem = Problem(study, space, targets, classes, left_out)
    _check_possible(problem)
    return problem


def _targets(
    study: StudyFile, graph: Graph, boards_folder: Path | None
) -> tuple[dict[str, Target], tuple[str, ...]]:
    boards = load_boards(boards_folder)
    chosen = _found("boards", study.space.boards, lambda name: find_board(name, boards))
    backends = _found("backends", study.space.backends, find_backend)
    legal, illegal = targets_for(chosen, backends, "all")
    left_out = [f"{pair.key}: {pair.reason}" for pair in illegal]
    # Each precision is wider than those before it; a backend that runs the narrowest stays.
    asked = study.space.quantization.precision
    narrowest = next(kind for kind in PRECISIONS if kind in asked)
    shapes = with_encodings(graph, {}, {}, narrowest)
    targets: dict[str, Target] = {}
    for target in _with_clocks(legal, study.space.clocks):
        problems = target.unsupported(shapes)
        costs = cost(shapes, target).metrics if not problems else {}
        unknown = [
            f"{target.key}: {metric} is not known ({costs[metric].source})"
            for metric in study.objectives
            if metric in costs and costs[metric].value is None
        ]
        if problems or unknown:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            left_out += [f"{target.key}: {problem}{more}" for problem in problems[:1]] + unknown
        else:
            targets[target.key] = target
    if not targets:
        raise StudyError(f"'space' leaves no target: {'; '.join(left_out)}")
    return targets, tuple(left_out)


def _found(key: str, names: Sequence[str], find: Callable[[str], Found]) -> list[Found]:
    try:
        return [find(name) for name in names]
    except TargetError as error:
        raise StudyError(f"'space.{key}': {error}") from error


def _with_clocks(legal: Sequence[Target], clocks: Sequence[Any]) -> list[Target]:
    """The targets at the clocks asked for: 'max', 'all', or frequencies in hertz."""
    offered = {target.clock_hz for target in legal}
    for clock in clocks:
        if legal and clock not in ("max", "all") and clock not in offered:
            raise StudyError(
                f"'space.clocks' holds {clock / 1e6:g} MHz, at which no target runs; allowed: max, "
                f"all, {', '.join(f'{hertz / 1e6:g} MHz' for hertz in sorted(offered))}"
            )
    return [
        target
        for target in legal
        if "all" in clocks
        or target.clock_hz in clocks
        or ("max" in clocks and target.clock_hz == target.board.max_clock_hz)
    ]


def _knobs(section: SpaceSection, graph: Graph, targets: tuple[str, ...]) -> tuple[Knob, ...]:
    weighted = {op.name: _stage(graph, op.output) for op in graph.weighted}
    groups = {group.name: group.stage for group in channel_groups(graph)}
    knobs: list[Knob] = []
    if section.pruning is not None:
        pruning = section.pruning
        if not groups:
            raise StudyError("'space.pruning': the network has no channels that could be removed")
        if pruning.method != [RATIO]:
            knobs += _choice("pruning", pruning.method)
        if RATIO in pruning.method:
            knobs += _ratio_knobs(pruning, groups)
        if pruning.budget is not None:
            shares = {kind: getattr(pruning.budget, kind) for kind in BUDGETS}
            knobs += [
                Knob(f"budget.{kind}", kind, tuple(found))
                for kind, found in shares.items()
                if found != [1.0]
            ]
    if section.low_rank is not None:
        rank = section.low_rank
        layers = {op.name: weighted[op.name] for op in graph.weighted if factorizable(op)}
        knobs += layer_knobs("low_rank", rank.granularity, rank.ratio, layers, rank.skip)
        if rank.factors != ["channel"]:
            knobs += _choice("factors", rank.factors)
    if section.sparsity is not None:
        sparsity = section.sparsity
        knobs += layer_knobs(
            "sparsity", sparsity.granularity, sparsity.ratio, weighted, sparsity.skip
        )
        if sparsity.pattern != ["element"]:
            knobs += _choice("pattern", sparsity.pattern)
    if section.code_books is not None:
        books = section.code_books
        knobs += layer_knobs("code_book", books.granularity, books.entries, weighted, books.skip)
        if books.vector != [1]:
            knobs += _choice("vector", books.vector)
    bits = section.quantization
    if bits.weight_bits != [8]:
        knobs += layer_knobs("bits", bits.granularity, bits.weight_bits, weighted, bits.skip)
    knobs += _choice("precision", bits.precision)
    # What is left out is no knob, so that stored spaces stay what they were.
    if bits.method != ["ptq"]:
        knobs += _choice("method", bits.method)
    if bits.ranges != ["minmax"]:
        knobs += _choice("ranges", bits.ranges)
    for kind, usual in CALIBRATION.items():
        if getattr(bits, kind) != [usual]:
            knobs += _choice(cast(KnobKind, kind), getattr(bits, kind))
    if section.distillation is not None:
        knobs += _choice("distillation", section.distillation.weight)
        knobs += _choice("temperature", section.distillation.temperature)
    return (*knobs, Knob("target", "target", targets))


def _ratio_knobs(pruning: Pruning, groups: Mapping[str, tuple[int, int]]) -> list[Knob]:
    knobs = layer_knobs("prune", pruning.granularity, pruning.ratio, groups, pruning.skip)
    knobs += _choice("criterion", pruning.criterion)
    knobs += _choice("schedule", pruning.schedule)
    if pruning.ramp != RampSection():
        knobs += _choice("start", pruning.ramp.start)
        knobs += _choice("end", pruning.ramp.end)
        knobs += _choice("updates", pruning.ramp.updates)
    return knobs


def _left_whole(pruning: Pruning | None, graph: Graph) -> tuple[str, ...]:
    """Groups of layers that budgets leave as they are."""
    if pruning is None or pruning.budget is None:
        return ()
    groups = {group.name: group.stage for group in channel_groups(graph)}
    (all_,) = layer_knobs("prune", "global", (0.0,), groups, pruning.skip)
    return tuple(name for name in groups if name not in all_.layers)


def _choice(kind: KnobKind, values: Sequence[Value]) -> list[Knob]:
    # A knob with one value still decides, so that the candidate says what was used.
    return [Knob(kind, kind, tuple(values))]


def _stage(graph: Graph, tensor: str) -> tuple[int, int]:
    shape = graph.tensors[tensor].shape
    return (shape[0], shape[1]) if len(shape) == 3 else (1, 1)


def _check_possible(problem: Problem) -> None:
    """Refuse a study in which no candidate can meet what costs alone decide."""
    best = min(
        (problem.best_case(target) for target in problem.targets),
        key=lambda screening: max(screening.violations.values()),
    )
    if max(best.violations.values()) > MIXTURE_SLACK:
        raise StudyError(
            f"no candidate can meet the constraints: at best, {'; '.join(best.reasons)}; "
            "raise the limit, allow more compression or add a target"
        )


def _check_budgets(space: Space) -> None:
    """Refuse a budget that the narrowest network exceeds."""
    narrowing = Narrowing(space.graph, space.alignment, space.left_whole)
    whole, least = needs(space.graph), narrowing.needs(narrowing.narrowest)
    for knob in space.knobs:
        if knob.kind not in BUDGETS:
            continue
        share = min(float(choice) for choice in knob.choices)
        limits = Budgets.of(space.graph, {knob.kind: share})
        if not limits.met(least):
            name = SHARES[knob.kind]
            part = getattr(least, name) / getattr(whole, name)
            raise StudyError(
                f"'space.pruning.budget.{knob.kind}' holds {share:g}, and the narrowest network "
                f"needs {part:.3g} of what the whole one needs; allowed: {_up(part):g} to 1"
            )


def _up(share: float) -> float:
    """Three decimals, not less."""
    return math.ceil(1000 * share) / 1000


def _check_sampler(study: StudyFile, space: Space) -> None:
    """Make the sampler once, so that what it refuses is told before anything is trained."""
    if study.sampler.name in GREY_BOX:
        return  # their settings were checked with the file, and they take any space
    try:
        if study.sampler.name == "grid" and space.conditional:
            check_grid(space.size)
            return  # walked without Optuna's sampler, which knows no conditions
        make_sampler(study.sampler.name, study.sampler.settings, study.seed, 0, space.choices)
    except StudyError as error:
        raise StudyError(f"'sampler': {error}") from error
    except ValueError as error:
        given = f"{study.sampler.name} with {study.sampler.settings}"
        raise StudyError(f"'sampler' is {given}, which cannot work ({error})") from error


def describe(problem: Problem) -> str:
    """One line on what the study explores."""
    space = problem.space
    smallest = min(problem.lowest_costs(name)["flash"].value or 0 for name in space.targets)
    return (
        f"{len(space.knobs)} knobs, {space.size:.3g} settings, {len(space.targets)} targets, "
        f"channels rounded to {space.alignment}, smallest flash {format_value('flash', smallest)}"
    )
