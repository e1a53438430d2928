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
