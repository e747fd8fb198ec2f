"""Pages, plots and tables of what runs left behind."""
