"""What a policy achieves when asked: rollouts, metrics, plots and reports."""
