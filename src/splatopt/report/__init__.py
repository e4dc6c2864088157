"""Pages, pictures and charts of a run."""
