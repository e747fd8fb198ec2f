"""Critics learned from logged data alone."""
