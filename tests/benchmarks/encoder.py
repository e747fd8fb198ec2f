"""Prints how many stacked frames a training step of the convolutions takes a second: ours, and the plain form.

    OMP_NUM_THREADS=1 python tests/benchmarks/encoder.py [--frames 256] [--seconds 10]

Forward and backward of the networks of the papers on (4, 84, 84) bytes, in turns, the median of each. The plain form is
`float() / 255` and three convolutions in NCHW and fp32. Ours runs as a learner runs it: in bf16 where the CPU has it,
and keeping freed memory, which is a setting of a whole process. So each way has a process of its own, and the plain
form is there with that setting, too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from functools import partial
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

from rayrl_dt.benchmarks.session import take_turns
from rayrl_dt.models.images import ImageNetwork
from rayrl_dt.precision import autocast, keep_freed_memory, resolve

BEST = resolve("auto", torch.device("cpu"))
WAYS = {
    "plain, fp32": ("plain", "fp32", False),
    "plain, fp32, memory kept": ("plain", "fp32", True),
    "ours, fp32": ("ours", "fp32", True),
    f"ours, {BEST}": ("ours", BEST, True),
}
"""Whose network, its precision, and whether the process keeps freed memory."""


def plain_network() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in ((4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):
        layers += [nn.Conv2d(inputs, outputs, kernel, stride), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def step(network: nn.Module, frames: Tensor, precision: str) -> None:
    with autocast(torch.device("cpu"), precision):
        features = network(frames if isinstance(network, ImageNetwork) else frames.float() / 255)
    features.float().square().mean().backward()


def serve(way: str, frames: int, requests: Connection) -> None:
    """Take as many steps as the other end asks for, and say how many frames a second that were."""
    whose, precision, keeps_memory = WAYS[way]
    if keeps_memory:
        keep_freed_memory()
    network = plain_network() if whose == "plain" else ImageNetwork(4, 84, 84)
    images = torch.randint(0, 256, (frames, 4, 84, 84), dtype=torch.uint8)
    while steps := requests.recv():
        begin = time.perf_counter()
        for _ in range(steps):
            step(network, images, precision)
        requests.send(frames * steps / (time.perf_counter() - begin))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10, help="for each way")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    for way in WAYS:
        ends[way], theirs = context.Pipe()
        context.Process(target=serve, args=(way, options.frames, theirs), daemon=True).start()

    def work(way: str, frames: int) -> float:
        ends[way].send(frames // options.frames)
        rate: float = ends[way].recv()
        return rate

    works = {way: partial(work, way) for way in WAYS}
    counts = dict.fromkeys(WAYS, options.frames)
    for way in WAYS:  # the first step holds start and allocation
        works[way](counts[way])
    turns = take_turns(works, counts, options.seconds)
    for end in ends.values():
        end.send(0)
    print(f"{options.frames} frames, {torch.get_num_threads()} threads, {len(turns)} turns")
    medians = {way: statistics.median(turn[way] for turn in turns) for way in WAYS}
    for way, rate in medians.items():
        print(f"{way:26s} {rate:8,.0f} frames/s   {rate / medians['plain, fp32']:.2f} times the plain form")


if __name__ == "__main__":
    main()
