"""What a policy is trained on: imitation, offline objectives with a critic, and RL gradients online."""
