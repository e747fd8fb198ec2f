"""What people write by mistake, and what files become when something else writes to them."""

from __future__ import annotations

import copy
import string
from collections.abc import Iterator
from typing import Any

import numpy as np

Rng = np.random.Generator

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "nope",
    "no",
    0,
    -1,
    1,
    -3,
    1.5,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    2**70,
    "3e-4",
    "1_000",
    "1e400",
    "[/]",
    "[bold]",
    "%s {x} {}",
    "a\nb",
    "\x00",
    "ü",
    "x" * 300,
    "dataset:7",
    "dataset:0",
    "os:system",
    "/",
    ".",
    "../..",
    [],
    [1],
    [None],
    [[1, 2], 3],
    ["a", 1],
    {},
    {"a": 1},
    {"grid": [1]},
    {1: 2},
)
"""Values that some key somewhere cannot have."""


def pick(rng: Rng, options: Any) -> Any:
    """Return one of some options."""
    options = list(options)
    return options[int(rng.integers(len(options)))]


def odd(rng: Rng) -> Any:
    """Return an odd value."""
    return copy.deepcopy(pick(rng, ODD))


def word(rng: Rng) -> str:
    """Return a few random characters."""
    return "".join(pick(rng, string.printable) for _ in range(int(rng.integers(12))))


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container of a JSON tree with a key or index of it."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)) and tree[key]:
            yield from places(tree[key])


def changed_tree(rng: Rng, tree: Any) -> Any:
    """Return a copy of a JSON tree with one or two values replaced, removed, moved or named otherwise."""
    tree = copy.deepcopy(tree)
    for _ in range(int(rng.integers(1, 3))):
        holder, key = pick(rng, places(tree))
        what = rng.integers(5)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[pick(rng, (str(key)[:-1], f"{key}s", word(rng)))] = holder.pop(key)
        elif what == 2:
            holder[key] = [holder[key]]
        else:
            holder[key] = odd(rng)
        if not tree:
            break
    return tree


def changed_bytes(rng: Rng, data: bytes) -> bytes:
    """Return bytes that are cut, flipped, overwritten or longer."""
    place = int(rng.integers(max(len(data), 1)))
    what = rng.integers(5)
    if what == 0:
        return data[:place]
    if what == 1:
        return data + bytes(rng.integers(256, size=20).tolist())
    if what == 2:
        return data[:place] + b"\0" * min(64, len(data) - place) + data[place + 64 :]
    if what == 3:
        return bytes(rng.integers(256, size=int(rng.integers(200))).tolist())
    flipped = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if flipped:
            flipped[int(rng.integers(len(flipped)))] ^= 1 << int(rng.integers(8))
    return bytes(flipped)


def changed_array(rng: Rng, array: Any) -> Any:
    """Return an array of another type, shape or content."""
    array = np.array(array)
    if array.ndim == 0 or array.dtype.kind == "S":
        return array  # it was changed before
    what = rng.integers(8)
    if what == 0:
        return array[: len(array) // 2]
    if what == 1:
        return array[..., None]
    if what == 2:
        return array.reshape(-1)
    if what == 3:
        return array.astype(pick(rng, ("float64", "int8", "uint8", "bool", "S4", "complex64")))
    if what == 4:
        return np.float32(odd_number(rng))
    if what == 5:
        return array[:0]
    array = array.astype(np.float64)
    flat = array.reshape(-1)
    if flat.size:
        flat[int(rng.integers(flat.size))] = odd_number(rng)
    return array


def odd_number(rng: Rng) -> float:
    """Return a number that is none, or far away."""
    return float(pick(rng, (np.nan, np.inf, -np.inf, 1e38, -1e38, 1e300, 0.0, -1.0)))
