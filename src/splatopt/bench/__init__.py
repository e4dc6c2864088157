"""Comparisons: any optimizers on any scenes, run under one protocol and summed up on one page."""
