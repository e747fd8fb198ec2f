"""Plans for acting: a policy's outputs at the newest step of windows that slide, with what stays the same kept."""
