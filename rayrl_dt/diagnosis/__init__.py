"""What a policy reads of its window, and what acting with it costs."""
