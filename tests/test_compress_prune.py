"""Channel pruning: the pruned network is the network with the removed channels silenced."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dse.compress import Importance, prune_channels
from dse.compress.activity import active_shares
from dse.errors import CompressionError
from dse.workloads import Split

EXAMPLE = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))
BLOCKS = ("plain", "residual", "depthwise", "concat", "pool", "twice")


class Block(nn.Module):
    """One of the shapes that networks for microcontrollers are made of."""

    def __init__(self, kind: str, inputs: int, channels: int, norm: bool) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.outputs = channels
        if kind == "residual":
            self.second = nn.Conv2d(channels, channels, 3, padding=1)
            self.second_norm = nn.BatchNorm2d(channels)
        elif kind == "depthwise":
            self.second = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            self.second_norm = nn.BatchNorm2d(channels)
        elif kind == "concat":
            self.second = nn.Conv2d(inputs, channels + 1, 1)
            self.outputs = 2 * channels + 1
        elif kind == "twice":
            self.outputs = 2 * channels

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = F.relu(self.norm(self.conv(x)))
        if self.kind == "residual":
            return F.relu(first + self.second_norm(self.second(first)))
        if self.kind == "depthwise":
            return F.relu(self.second_norm(self.second(first)))
        if self.kind == "concat":
            return torch.cat([F.relu(self.second(x)), first], dim=1)
        if self.kind == "twice":
            return torch.cat([first, F.relu6(first)], dim=1)
        return F.max_pool2d(first, 2) if self.kind == "pool" else first

    @property
    def knobs(self) -> dict[str, int]:
        """First producers of the block's groups and their channels."""
        widths = {"conv": self.conv.out_channels}
        if self.kind == "concat":
            widths["second"] = self.conv.out_channels + 1
        return widths


class Net(nn.Module):
    def __init__(self, blocks: list[Block], hidden: int, flatten: bool, seed: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.flatten = flatten
        with torch.no_grad():
            features = self.features(EXAMPLE).shape[1]
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, 3)
        self.randomize(seed)

    def features(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return torch.flatten(x if self.flatten else F.adaptive_avg_pool2d(x, 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc2(F.relu(self.fc1(self.features(x))))
        return scores

    @torch.no_grad()
    def randomize(self, seed: int) -> None:
        """Values that differ everywhere, so that a channel is known by its bias or mean."""
        generator = torch.Generator().manual_seed(seed)
        for name, value in (*self.named_parameters(), *self.named_buffers()):
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator)
                value.copy_(0.5 + drawn.abs() if name.endswith("running_var") else 0.4 * drawn)
        self.eval()

    @property
    def knobs(self) -> dict[str, int]:
        found = {"fc1": self.fc1.out_features}
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            found |= {f"blocks.{index}.{name}": width for name, width in block.knobs.items()}
        return found


@dataclass
class Case:
    net: Net
    widths: dict[str, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    blocks: list[Block] = []
    for kind in draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=3)):
        inputs = blocks[-1].outputs if blocks else 2
        blocks.append(Block(kind, inputs, draw(st.integers(2, 6)), draw(st.booleans())))
    net = Net(blocks, draw(st.integers(2, 6)), draw(st.booleans()), draw(st.integers(0, 999)))
    names = draw(st.sets(st.sampled_from(sorted(net.knobs)), min_size=1))
    return Case(net, {name: draw(st.integers(1, net.knobs[name])) for name in sorted(names)})


def tags(module: nn.Module) -> Tensor | None:
    """One number a channel that pruning must carry along."""
    if isinstance(module, nn.BatchNorm2d):
        return module.running_mean
    return module.bias if isinstance(module, nn.Conv2d | nn.Linear) else None


@torch.no_grad()
def silenced(original: nn.Module, pruned: nn.Module) -> nn.Module:
    """The original with everything that makes a removed channel set to zero."""
    masked = copy.deepcopy(original)
    for name, module in masked.named_modules():
        before, after = tags(module), tags(pruned.get_submodule(name))
        if before is None or after is None:
            continue
        gone = ~torch.isin(before, after)
        assert int((~gone).sum()) == len(after)
        module.get_parameter("weight")[gone] = 0
        module.get_parameter("bias")[gone] = 0
    return masked


@settings(deadline=None, max_examples=60)
@given(case=cases(), criterion=st.sampled_from(["l1", "l2", "taylor", "apoz", "random"]))
def test_pruned_equals_masked(case: Case, criterion: str) -> None:
    samples = Split(torch.randn(9, 2, 8, 8), torch.arange(9) % 3)
    pruned = prune_channels(case.net, EXAMPLE, case.widths, Importance(criterion, 3, samples))
    for name, width in case.widths.items():
        assert len(pruned.get_submodule(name).get_parameter("bias")) == width
    last = pruned.get_submodule("fc2")
    assert torch.equal(last.get_parameter("bias"), case.net.fc2.bias)
    inputs = torch.randn(5, 2, 8, 8)
    with torch.no_grad():
        expected = silenced(case.net, pruned)(inputs)
        scale = max(1.0, float(expected.abs().max()))
        assert float((pruned(inputs) - expected).abs().max()) <= 1e-4 * scale


@settings(deadline=None, max_examples=20)
@given(case=cases())
def test_input_is_untouched_and_full_width_is_the_identity(case: Case) -> None:
    before = copy.deepcopy(case.net.state_dict())
    prune_channels(case.net, EXAMPLE, case.widths, Importance("l1"))
    same = prune_channels(case.net, EXAMPLE, case.net.knobs, Importance("l1"))
    for found in (case.net.state_dict(), same.state_dict()):
        assert all(torch.equal(before[key], found[key]) for key in before)
    assert all(p.grad is None for p in case.net.parameters())


@settings(deadline=None, max_examples=20)
@given(case=cases())
def test_order_of_the_request_does_not_matter(case: Case) -> None:
    turned = dict(reversed(case.widths.items()))
    one = prune_channels(case.net, EXAMPLE, case.widths, Importance("l2")).state_dict()
    two = prune_channels(case.net, EXAMPLE, turned, Importance("l2")).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def chain(kind: str = "plain", channels: int = 5, norm: bool = True) -> Net:
    return Net([Block(kind, 2, channels, norm), Block("plain", 5, 4, norm)], 4, True, seed=0)


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn", "taylor"])
@pytest.mark.parametrize("dull", range(5))
def test_a_channel_that_does_nothing_goes_first(criterion: str, dull: int) -> None:
    net = chain()
    with torch.no_grad():
        net.blocks.get_submodule("0.conv").get_parameter("weight")[dull] = 0
        net.blocks.get_submodule("0.norm").get_parameter("weight")[dull] = 0
        net.blocks.get_submodule("1.conv").get_parameter("weight")[:, dull] = 0
    samples = Split(torch.randn(20, 2, 8, 8), torch.arange(20) % 3)
    pruned = prune_channels(
        net, EXAMPLE, {"blocks.0.conv": 4}, Importance(criterion, samples=samples)
    )
    kept = pruned.get_submodule("blocks.0.conv").get_parameter("bias")
    bias = net.get_submodule("blocks.0.conv").get_parameter("bias")
    assert torch.equal(kept, bias[[c for c in range(5) if c != dull]])


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor"])
@pytest.mark.parametrize("dull", range(3))
def test_a_channel_that_is_used_twice_is_scored_by_both(criterion: str, dull: int) -> None:
    net = Net([Block("twice", 2, 3, False), Block("plain", 6, 4, False)], 4, True, seed=0)
    with torch.no_grad():
        consumer = net.get_submodule("blocks.1.conv").get_parameter("weight")
        consumer[:, [dull, dull + 3]] = 0
        net.get_submodule("blocks.0.conv").get_parameter("weight")[dull] *= 1e-3
    samples = Split(torch.randn(20, 2, 8, 8), torch.arange(20) % 3)
    pruned = prune_channels(
        net, EXAMPLE, {"blocks.0.conv": 2}, Importance(criterion, samples=samples)
    )
    kept = pruned.get_submodule("blocks.0.conv").get_parameter("bias")
    bias = net.get_submodule("blocks.0.conv").get_parameter("bias")
    assert torch.equal(kept, bias[[c for c in range(3) if c != dull]])


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("silent", range(5))
def test_a_channel_that_is_never_active_goes_first(kind: str, silent: int) -> None:
    net = chain(kind)
    with torch.no_grad():
        for name in ("0.norm", "0.second_norm") if kind == "residual" else ("0.norm",):
            net.blocks.get_submodule(name).get_parameter("bias")[silent] = -50
    samples = Split(torch.randn(20, 2, 8, 8), torch.arange(20) % 3)
    pruned = prune_channels(net, EXAMPLE, {"blocks.0.conv": 4}, Importance("apoz", 0, samples))
    kept = pruned.get_submodule("blocks.0.conv").get_parameter("bias")
    bias = net.get_submodule("blocks.0.conv").get_parameter("bias")
    assert torch.equal(kept, bias[[c for c in range(5) if c != silent]])


def test_activity_is_the_share_that_is_not_zero() -> None:
    first = nn.Linear(1, 2)
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(2, 2), nn.Sigmoid())
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-2.0]]))
        first.bias.copy_(torch.tensor([0.0, 5.0]))
    found = active_shares(net, torch.tensor([[-1.0], [1.0], [2.0], [3.0]]))
    assert {name: shares.tolist() for name, shares in found.items()} == {"0": [0.75, 0.75]}


def test_random_criterion_depends_on_its_seed_alone() -> None:
    net = chain(channels=5)
    kept = []
    for seed, noise in ((1, 1), (1, 2), (2, 1)):
        torch.manual_seed(noise)
        pruned = prune_channels(net, EXAMPLE, {"blocks.0.conv": 2}, Importance("random", seed))
        kept.append(pruned.get_submodule("blocks.0.conv").get_parameter("bias").tolist())
    assert kept[0] == kept[1]
    assert kept[0] != kept[2]


class FixedSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.fc = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.conv(x).view(-1, 256))
        return scores


class Grouped(FixedSize):
    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.grouped(self.conv(x)).flatten(1))
        return scores


@pytest.mark.parametrize(
    ("net", "widths", "criterion", "said"),
    [
        (chain(), {"fc2": 2}, "l1", "makes the network's output"),
        (chain(), {"blocks.0.cnov": 2}, "l1", "did you mean 'blocks.0.conv'"),
        (chain(), {"blocks.0.norm": 2}, "l1", "no convolution or linear layer"),
        (chain(), {"blocks.0.conv": 0}, "l1", "cannot keep 0 channels; allowed: 1 to 5"),
        (chain(), {"blocks.0.conv": 6}, "l1", "cannot keep 6 channels"),
        (chain(), {"blocks.0.conv": 2.5}, "l1", "cannot keep 2.5 channels"),
        (chain(), {"fc1": 2}, "bn", "layer 'fc1' cannot be ranked by criterion 'bn'"),
        (chain(norm=False), {"blocks.0.conv": 2}, "bn", "no BatchNorm scales its channels"),
        (
            chain("residual"),
            {"blocks.0.conv": 2, "blocks.0.second": 3},
            "l1",
            "tied to a layer that was asked for 2",
        ),
        (FixedSize(), {"conv": 2}, "l1", "does not run with channels removed from conv"),
        (Grouped(), {"conv": 2}, "l1", "tied to 'grouped', a grouped convolution"),
        (nn.Sequential(nn.Conv2d(2, 3, 8), nn.Flatten()), {"0": 2}, "l1", "the network's output"),
    ],
)
def test_what_cannot_be_pruned_is_explained(
    net: nn.Module, widths: dict[str, int], criterion: str, said: str
) -> None:
    with pytest.raises(CompressionError, match=said) as caught:
        prune_channels(net, EXAMPLE, widths, Importance(criterion))
    assert "\n" not in str(caught.value)


def test_bad_importance() -> None:
    with pytest.raises(CompressionError, match="did you mean 'taylor'"):
        Importance("tailor")
    with pytest.raises(CompressionError, match="needs training samples"):
        Importance("taylor")
    with pytest.raises(CompressionError, match="'apoz' needs training samples"):
        Importance("apoz")
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.Sigmoid(), nn.Linear(4, 3))
    samples = Split(torch.randn(9, 2, 8, 8), torch.arange(9) % 3)
    with pytest.raises(CompressionError, match=r"layer '1' .* 'apoz': no ReLU follows its"):
        prune_channels(net, EXAMPLE, {"1": 2}, Importance("apoz", 0, samples))
