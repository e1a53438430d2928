"""Train every network of a tabulated problem and store its test errors, epoch by epoch.

    python benchmarks/search/train_table.py digits
    python benchmarks/search/train_table.py har       # reads DSE_DATA/har.npz

Every network is the float parent with its weakest channels removed (L2 norm), trained on for a few
epochs with its weights quantized in the forward pass (straight-through gradients). Networks of the
same widths differ only in their bit widths, so they are trained together as one batch of matrix
products. Activations stay in float. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from trained_tables import (
    DATA_FOLDER,
    MISSING,
    TABLES,
    Layer,
    TableTask,
    load_samples,
    store,
)

BATCH = 32
TOGETHER = 27
PARENT_EPOCHS = 30
# Steps of the uniform quantizer with least error for normal weights, in standard deviations
# (Max, IRE Trans. Inf. Theory 1960, table II); wider ones use the whole range.
NORMAL_STEP = {2: 1.22, 3: 0.66, 4: 0.34}

Arrays = dict[str, Tensor]


def quantized(weight: Tensor, bits: Tensor) -> Tensor:
    """(B, I, O) weights on their grids of (B,) bits; the gradient passes straight through."""
    top = 2.0 ** (bits.float() - 1)[:, None, None] - 1
    deviation = weight.detach().square().mean(1, keepdim=True).sqrt()
    normal = torch.tensor([NORMAL_STEP.get(int(b), torch.inf) for b in bits])[:, None, None]
    whole = weight.detach().abs().amax(1, keepdim=True) / top
    step = torch.minimum(whole, normal * deviation).clamp_min(1e-8)
    grid = (weight.detach() / step).round().clamp(-top, top) * step
    return weight + (grid - weight.detach())


def patches(x: Tensor, layer: Layer) -> Tensor:
    """(B, N, H, W, C) -> (B, N, H', W', kernel * C), zero padding 'same' before the stride."""
    (kh, kw), (sh, sw) = layer.kernel, layer.stride
    x = F.pad(x, (0, 0, kw // 2, (kw - 1) // 2, kh // 2, (kh - 1) // 2))
    rows, columns = x.shape[2] - kh + 1, x.shape[3] - kw + 1
    shifts = [
        x[:, :, i : i + rows : sh, j : j + columns : sw]
        for i, j in itertools.product(range(kh), range(kw))
    ]
    return torch.cat(shifts, dim=-1)


def pooled(x: Tensor, layer: Layer) -> Tensor:
    """The largest of every pool's values."""
    for axis, size in zip((2, 3), layer.pool, strict=True):
        if size > 1:
            x = torch.unflatten(x, axis, (-1, size)).amax(axis + 1)
    return x


def forward(task: TableTask, params: Arrays, bits: Tensor | None, x: Tensor) -> Tensor:
    """Scores (B, N, classes) of B networks for (N, H, W, C) samples; `bits` is (B, layers)."""
    hidden = x[None]
    for index, layer in enumerate(task.layers):
        weight, bias = params[f"{layer.name}.weight"], params[f"{layer.name}.bias"]
        if bits is not None:
            weight = quantized(weight, bits[:, index])
        inputs = patches(hidden, layer) if layer.kernel else hidden.flatten(2)
        shape = (*inputs.shape[1:-1], weight.shape[-1])
        flat = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
        hidden = torch.unflatten(torch.matmul(flat, weight) + bias, 1, shape[:-1])
        if index + 1 < len(task.layers):
            hidden = pooled(F.relu(hidden), layer) if layer.kernel else F.relu(hidden)
    return hidden


def train(
    task: TableTask,
    params: Arrays,
    bits: Tensor | None,
    samples: tuple[Tensor, Tensor],
    epochs: int,
    rate: float,
    seed: int,
) -> list[Arrays]:
    """Adam with a falling rate; the weights after every epoch."""
    torch.manual_seed(seed)
    params = {name: value.clone().requires_grad_() for name, value in params.items()}
    optimizer = torch.optim.Adam(params.values(), lr=rate)
    x, y = samples
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    kept = []
    for _ in range(epochs):
        order = torch.randperm(len(x))[: len(x) // BATCH * BATCH]
        for rows in torch.split(order, BATCH):
            scores = forward(task, params, bits, x[rows])
            target = y[rows].expand(scores.shape[0], -1)
            loss = F.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="sum") / BATCH
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        kept.append({name: value.detach().clone() for name, value in params.items()})
    return kept


@torch.no_grad()
def wrong(
    task: TableTask, params: Arrays, bits: Tensor | None, samples: tuple[Tensor, Tensor]
) -> npt.NDArray[np.int64]:
    """Samples that each of the B networks gets wrong, (B,)."""
    total = 0
    for x, y in zip(*(torch.split(part, 128) for part in samples), strict=True):
        total = total + (forward(task, params, bits, x).argmax(-1) != y).sum(1)
    return np.asarray(total)


def parent(task: TableTask, samples: tuple[Tensor, Tensor]) -> Arrays:
    """The float network that all others are cut from, a batch of one."""
    torch.manual_seed(task.seed)
    params: Arrays = {}
    inputs = task.shape[-1]
    for layer, flattened in zip(task.layers, task.flattened, strict=True):
        fan = inputs * flattened if not layer.kernel else inputs * layer.kernel[0] * layer.kernel[1]
        params[f"{layer.name}.weight"] = torch.randn(1, fan, layer.channels) * (2 / fan) ** 0.5
        params[f"{layer.name}.bias"] = torch.zeros(1, 1, layer.channels)
        inputs = layer.channels
    return train(task, params, None, samples, PARENT_EPOCHS, 4e-3, task.seed)[-1]


def cut(task: TableTask, params: Arrays, widths: tuple[int, ...]) -> Arrays:
    """The parent with the channels of largest L2 norm left in every prunable layer."""
    found, before = {}, torch.arange(task.shape[-1])
    channels = task.shape[-1]
    for layer, flattened, width in zip(task.layers, task.flattened, widths, strict=True):
        weight, bias = params[f"{layer.name}.weight"], params[f"{layer.name}.bias"]
        spots = torch.unflatten(weight, 1, (-1, channels))[:, :, before].flatten(1, 2)
        assert layer.kernel or spots.shape[1] == flattened * len(before)
        strongest = weight.square().sum((0, 1)).argsort(descending=True)[:width]
        before, channels = strongest.sort().values, layer.channels
        found[f"{layer.name}.weight"] = spots[..., before]
        found[f"{layer.name}.bias"] = bias[..., before]
    return found


def train_widths(
    task: TableTask, whole: Arrays, widths: tuple[int, ...], data: list[tuple[Tensor, Tensor]]
) -> npt.NDArray[np.int64]:
    """Wrong test samples (bit widths, epochs) of every bit setting at these widths."""
    rows = []
    for chunk in torch.split(torch.tensor(task.bit_settings), TOGETHER):
        start = cut(task, whole, widths)
        start = {n: v.expand(len(chunk), -1, -1) for n, v in start.items()}
        history = train(task, start, chunk, data[0], task.epochs, 3e-3, task.seed)
        rows.append(np.stack([wrong(task, params, chunk, data[1]) for params in history], axis=1))
    return np.concatenate(rows)


def main() -> None:
    """Train what the stored table lacks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--output", type=Path, default=DATA_FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = TABLES[options.table]
    data = [(torch.tensor(x), torch.tensor(y)) for x, y in load_samples(task)]
    whole = parent(task, data[0])
    print(f"parent: {wrong(task, whole, None, data[1])[0] / len(data[1][1]):.3f} wrong", flush=True)
    table = store(task, None, options.output)
    began = time.perf_counter()
    for index, widths in enumerate(task.width_settings):
        if (table[index] == MISSING).any():
            table[index] = train_widths(task, whole, widths, data)
            store(task, table, options.output)
            last = table[index, :, -1] / len(data[1][1])
            spent = time.perf_counter() - began
            print(
                f"{widths}: {last.min():.3f} to {last.max():.3f} wrong, {spent:.0f} s", flush=True
            )


if __name__ == "__main__":
    main()
