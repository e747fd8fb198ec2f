"""Small experiments of the papers in which the model also predicts returns; each runs in about a minute on one core."""
