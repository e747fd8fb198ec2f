"""What a policy achieves when asked: targets, rollouts, metrics."""
