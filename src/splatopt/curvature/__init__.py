"""Curvature: products with the Jacobian and the Hessian, diagonals and blocks."""
