"""Reads logged data of other formats into trajectories."""
