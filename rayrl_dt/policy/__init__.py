"""Acting: context windows, vectorised actors, collectors, and the single-environment policy."""
