"""Names of what no type can say."""

from __future__ import annotations

from typing import Any, TypeAlias

Group: TypeAlias = dict[str, Any]
"""One of ``torch.optim``'s groups of parameters, with its numbers; and what such an optimizer keeps of a parameter."""
