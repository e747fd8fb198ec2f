"""Compresses the images of a Minari data set that was just written: its own writer keeps them as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from rayrl_dt.envs.observations import are_pixels

__all__ = ["compress_images"]

_CHUNK = 64
"""Images that are compressed together: what neighbors share is kept once."""


def compress_images(file: Path) -> None:
    """Rewrite a file with its images in gzip, without loss; leave it where it holds none. Readers see no difference.

    Raises:
        OSError: the disk is full or not writable.
    """
    aside = file.with_name(f".{file.name}.tmp")
    try:
        with h5py.File(file, "r") as source:
            if not _has_images(source):
                return
            with h5py.File(aside, "w") as target:
                _copy(source, target)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def _is_images(node: Any) -> bool:
    return isinstance(node, h5py.Dataset) and are_pixels(node.shape[1:], node.dtype)


def _has_images(group: Any) -> bool:
    return any(
        _has_images(each) if isinstance(each, h5py.Group) else _is_images(each) for each in group.values()
    )


def _copy(source: Any, target: Any) -> None:
    target.attrs.update(source.attrs)
    for name, node in source.items():
        if isinstance(node, h5py.Group):
            _copy(node, target.create_group(name))
        elif _is_images(node):
            chunks = (min(_CHUNK, len(node)), *node.shape[1:])
            made = target.create_dataset(name, node.shape, node.dtype, chunks=chunks, compression="gzip")
            for begin in range(0, len(node), _CHUNK):
                made[begin : begin + _CHUNK] = node[begin : begin + _CHUNK]
            made.attrs.update(node.attrs)
        else:
            source.copy(node, target, name)
