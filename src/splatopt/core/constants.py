"""Numbers that Python, C++ and Triton share, beside the rendering rule's, which renderers are handed.

No import stands here.
"""

from __future__ import annotations

SH_C0 = 0.28209479177387814
"""Y of degree 0: 1 / (2·√π)."""

SH_C1 = 0.4886025119029199
"""Factor of degree 1: √3 / (2·√π); the basis is -C1·y, C1·z, -C1·x."""

SH_C2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
"""Factors of degree 2, on xy, yz, 2z²-x²-y², xz, x²-y²."""

SH_C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)
"""Factors of degree 3, on y(3x²-y²), xyz, y(4z²-x²-y²), z(2z²-3x²-3y²), x(4z²-x²-y²), z(x²-y²), x(x²-3y²)."""
