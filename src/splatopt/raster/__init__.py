"""Renderers: the float64 reference, the native CPU renderer, and the seam they share."""
