"""Critics learnt from logged data alone."""
