"""Prints how many stacked frames a training step of the convolutions takes a second: ours, and the plain form.

    OMP_NUM_THREADS=1 python tests/benchmarks/encoder.py [--frames 256] [--seconds 10]

Forward and backward of the networks of the papers on (4, 84, 84) bytes, in turns, the median of each. The plain form is
`float() / 255` and three convolutions in NCHW and fp32; ours runs in bf16 where the CPU has it, and once more in fp32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rayrl_dt.models.images import ImageNetwork
from rayrl_dt.precision import autocast, resolve


def plain_network() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in ((4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):
        layers += [nn.Conv2d(inputs, outputs, kernel, stride), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def plain(network: nn.Module, frames: Tensor) -> None:
    network(frames.float() / 255).square().mean().backward()


def ours(network: nn.Module, frames: Tensor, precision: str) -> None:
    with autocast(torch.device("cpu"), precision):
        features = network(frames)
    features.float().square().mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    frames = torch.randint(0, 256, (options.frames, 4, 84, 84), dtype=torch.uint8)
    best = resolve("auto", torch.device("cpu"))
    ways: dict[str, Callable[[], None]] = {"plain, fp32": partial(plain, plain_network(), frames)}
    for precision in dict.fromkeys(("fp32", best)):
        ways[f"ours, {precision}"] = partial(ours, ImageNetwork(4, 84, 84), frames, precision)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + options.seconds * len(ways)
    while time.perf_counter() < end or len(taken["plain, fp32"]) < 3:
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - begin)
    print(f"{options.frames} frames, {torch.get_num_threads()} threads, {len(taken['plain, fp32'])} turns")
    slowest = statistics.median(taken["plain, fp32"])
    for name, times in taken.items():
        median = statistics.median(times)
        print(
            f"{name:12s} {options.frames / median:8,.0f} frames/s   {slowest / median:.2f} times the plain form"
        )


if __name__ == "__main__":
    main()
