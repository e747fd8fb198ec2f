"""Data sets that can be made on this machine, without a network: scripted behaviors and a trained one."""

from __future__ import annotations

from rayrl_dt.data.recipes.registry import Recipe, dataset_id, ensure, get, make, names, not_its_own

__all__ = ["Recipe", "dataset_id", "ensure", "get", "make", "names", "not_its_own"]
