"""Acting: context windows, vectorized actors, collectors, and the single-environment policy."""
