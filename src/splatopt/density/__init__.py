"""Density strategies: which Gaussians there are, decided between steps."""
