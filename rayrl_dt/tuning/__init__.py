"""Sweeps over configs with Ray Tune: what a file asks for, its trials, how they run and what came of them."""
