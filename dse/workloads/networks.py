"""Reference networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DigitsNet(nn.Module):
    """A small convolutional network for 8x8 grey images: (N, 1, 8, 8) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(128, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 10)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.pool(F.relu(self.bn2(self.conv2(x))))
        x = self.pool(F.relu(self.bn3(self.conv3(x))))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        scores: Tensor = self.fc2(x)
        return scores


class LeNet5(nn.Module):
    """LeNet-5 as the pruning literature uses it (431,080 parameters): (N, 1, 28, 28) -> (N, 10).

    The network is that of LeCun et al., "Gradient-based learning applied to document recognition",
    1998, in the form shipped with Caffe (20 and 50 filters of 5x5, max pooling, 500 hidden units)
    that Han et al., "Deep Compression", arXiv 1510.00149, and most pruning papers since compress.
    Caffe puts no activation behind its convolutions; we put a ReLU there, which costs nothing once
    fused and lets a pruned channel be exactly zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 10)."""
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        scores: Tensor = self.fc2(x)
        return scores


class ResNet8(nn.Module):
    """The residual network of MLPerf Tiny (about 78,000 parameters): (N, 3, 32, 32) -> (N, 10).

    Banbury et al., "MLPerf Tiny Benchmark", arXiv 2106.07597: a stem and three residual stacks of
    16, 32 and 64 channels, the last two halving the image, with 1x1 convolutions as their
    shortcuts, average pooling and one linear layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.stack1 = ResidualStack(16, 16, 1)
        self.stack2 = ResidualStack(16, 32, 2)
        self.stack3 = ResidualStack(32, 64, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 10)."""
        x = F.relu(self.bn(self.stem(x)))
        x = self.stack3(self.stack2(self.stack1(x)))
        scores: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return scores


class ResidualStack(nn.Module):
    """Two 3x3 convolutions and the sum with what entered: (N, I, H, W) -> (N, O, H/s, W/s)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = None if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The sum, behind a ReLU."""
        within = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(within + (x if self.shortcut is None else self.shortcut(x)))


class MotionNet(nn.Module):
    """A one-dimensional network for windows of nine motion signals: (N, 9, 128) -> (N, 6).

    Three convolutions over time and two linear layers (about 165,000 parameters), the shape of
    network that Ronao & Cho, Expert Systems with Applications 59, 2016, found best on these data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(9, 64, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm1d(64)
        self.conv2 = nn.Conv1d(64, 64, 5, padding=2, bias=False)
        self.bn2 = nn.BatchNorm1d(64)
        self.conv3 = nn.Conv1d(64, 64, 5, padding=2, bias=False)
        self.bn3 = nn.BatchNorm1d(64)
        self.pool = nn.MaxPool1d(2)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(1024, 120)
        self.fc2 = nn.Linear(120, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 6)."""
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.pool(F.relu(self.bn2(self.conv2(x))))
        x = self.pool(F.relu(self.bn3(self.conv3(x))))
        x = F.relu(self.fc1(self.dropout(torch.flatten(x, 1))))
        scores: Tensor = self.fc2(x)
        return scores
