"""One training run: its folder, its loop, its checkpoints, its records."""
