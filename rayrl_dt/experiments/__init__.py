"""Small experiments of the papers; each runs in about a minute on one core."""
