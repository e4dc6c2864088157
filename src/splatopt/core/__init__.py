"""Cameras, objectives, the optimizer protocol, row edits, checks: what every other room speaks of."""
