"""What tracing accepts beyond the random networks, and the sentence for what it does not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dse.errors import GraphError
from dse.graph import execute
from dse.graph.channels import channel_groups, narrow
from dse.graph.ir import Conv2D, Graph, Lookup
from dse.graph.quantize import quantize
from dse.graph.trace import trace
from dse.workloads import WORKLOADS
from tests import reference


class Function(nn.Module):
    """A convolution, then whatever a function does with it."""

    def __init__(self, then: object, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.layer = layer or nn.Identity()
        self.then = then
        self.fc = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.then(self.layer(self.conv(x)))  # type: ignore[operator]
        return self.fc(torch.flatten(x, 1))  # type: ignore[no-any-return]


def same(x: Tensor) -> Tensor:
    return x


def branch(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "fragments"),
    [
        (Function(same, nn.GroupNorm(2, 4)), ["'layer'", "GroupNorm", "supported:"]),
        (Function(same, nn.ConvTranspose2d(4, 4, 3, padding=1)), ["'layer'", "ConvTranspose2d"]),
        (Function(same, nn.PReLU()), ["'layer'", "PReLU"]),
        (Function(torch.exp), ["exp", "not supported"]),
        (Function(lambda x: x + 1), ["add", "constant (1)"]),
        (Function(branch), ["cannot be traced", "must not branch"]),
        (Function(lambda x: F.pad(x, (1, 1, 1, 1), value=2.0)[:, :, 1:-1, 1:-1]), ["zeros"]),
        (Function(same, nn.MaxPool2d(5, 1, 2, dilation=1, ceil_mode=True)), []),
        (Function(lambda x: torch.cat([x, x], 2)[:, :, :6]), ["axis 2", "channels (1)"]),
        (Function(lambda x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1)), ["averages over"]),
        (Function(lambda x: x.transpose(1, 2)), ["transpose", "not supported"]),
        (Function(same, nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), ["'reflect'"]),
        (Function(same, nn.AvgPool2d(3, 1, 1)), ["count_include_pad=False"]),
        (Function(same, nn.BatchNorm2d(4, track_running_stats=False)), ["running statistics"]),
        (nn.Sequential(nn.Conv2d(2, 3, 3)), ["(N, 3, 4, 4)", "(N, classes)"]),
        (nn.Sequential(nn.Linear(6, 3), nn.Flatten()), ["Linear", "flatten it"]),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten()), ["fails on an input of shape (N, 2"]),
    ],
)
def test_what_the_graph_cannot_hold_is_one_sentence(
    model: nn.Module, fragments: Sequence[str]
) -> None:
    if not fragments:  # a ceil_mode that changes nothing is fine
        trace(model, (2, 6, 6))
        return
    with pytest.raises(GraphError) as caught:
        trace(model, (2, 6, 6))
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_a_layer_called_twice_is_refused_and_a_pooling_called_twice_is_not() -> None:
    class Twice(nn.Module):
        def __init__(self, shared: nn.Module) -> None:
            super().__init__()
            self.shared, self.fc = shared, nn.Linear(2 * 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.flatten(self.shared(self.shared(x)), 1))  # type: ignore[no-any-return]

    with pytest.raises(GraphError, match="'shared' is called more than once"):
        trace(Twice(nn.Conv2d(2, 2, 3)), (2, 6, 6))
    graph = trace(Twice(nn.MaxPool2d(2)), (2, 8, 8))
    assert [op.name for op in graph.ops[:2]] == ["shared", "shared_1"]


def check(model: nn.Module, shape: tuple[int, ...]) -> Graph:
    """Float and integer execution against torch and the specification."""
    model.eval()
    inputs = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    graph = trace(model, shape)
    with torch.no_grad():
        torch.testing.assert_close(execute.run(graph, inputs), model(inputs), rtol=1e-4, atol=1e-5)
    integer = quantize(graph, execute.observe(graph, inputs))
    first = inputs[0].numpy()
    image = (
        first
        if first.ndim == 1
        else first.reshape(
            graph.tensors["input"].shape[::-1][:1] + graph.tensors["input"].shape[:2]
        ).transpose(1, 2, 0)
    )
    expected = reference.interpret(integer, image, "double")
    assert execute.run(integer, inputs[:1])[0].tolist() == expected.tolist()
    return graph


def test_one_dimensional_networks() -> None:
    graph = check(
        nn.Sequential(
            nn.Conv1d(3, 6, 5, padding=2, stride=2),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
        ),
        (3, 32),
    )
    assert graph.tensors[graph.ops[0].output].shape == (1, 16, 6)


def test_perceptrons() -> None:
    graph = check(
        nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)), (9,)
    )
    assert [group.name for group in channel_groups(graph)] == ["0"]


def test_a_batch_norm_that_follows_no_layer_becomes_a_depthwise_convolution() -> None:
    norm = nn.BatchNorm2d(2)
    assert norm.running_mean is not None
    norm.running_mean.fill_(0.5)
    graph = check(
        nn.Sequential(norm, nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 3)), (2, 6, 6)
    )
    first = graph.ops[0]
    assert isinstance(first, Conv2D)
    assert first.depthwise


def test_a_closing_log_softmax_is_dropped() -> None:
    class Closing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.log_softmax(self.fc(x), dim=1)

    model = Closing().eval()
    inputs = torch.randn(20, 6)
    graph = trace(model, (6,))
    assert len(graph.ops) == 1
    assert execute.run(graph, inputs).argmax(1).tolist() == model(inputs).argmax(1).tolist()


def test_an_activation_that_cannot_be_fused_stays_an_operator() -> None:
    graph = check(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.ReLU6(), nn.Flatten(), nn.Linear(32, 2)),
        (1, 6, 6),
    )
    assert [op.function for op in graph.ops if isinstance(op, Lookup)] == ["sigmoid", "relu6"]


@pytest.mark.parametrize(
    ("workload", "shape", "parameters", "macs"),
    [("lenet5-mnist", (1, 28, 28), 431_080, 2_293_000)],
)
def test_reference_networks_have_their_published_sizes(
    workload: str, shape: tuple[int, ...], parameters: int, macs: int
) -> None:
    """LeNet-5 of the pruning literature: 431 k parameters (Han et al., arXiv 1510.00149)."""
    graph = trace(WORKLOADS[workload].network(0), shape)
    assert (graph.parameters, graph.macs) == (parameters, macs)


def test_residual_sums_tie_their_channels_and_the_last_layer_is_never_offered() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.fc = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = self.deep(x + self.block(x))
            return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]

    graph = trace(Residual(), (1, 5, 5))
    (group,) = channel_groups(graph)
    assert group.name == "stem"
    assert group.producers == ("stem", "block", "deep")
    assert group.stage == (5, 5)
    assert narrow(graph, {"stem": 3}).op("fc").weight.shape == (3, 3)  # type: ignore[attr-defined]
