"""Options of an optimizer or a loss that is not known here, as a run's file holds them.

A run whose plug-in is gone can still be rendered, scored and exported; going on with it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from splatopt.core.checks import InputError
from splatopt.core.typed import field_names, read_dataclass, told
from splatopt.runs.renamed import renamed


@dataclass(frozen=True)
class UnreadOptions:
    """What stands in place of options whose class is not known.

    Attributes:
        values: As the file holds them.
        reason: Why the class is not known, a sentence.
    """

    values: Mapping[str, Any]
    reason: str


def read_options(values: Any, find: Callable[[], type], where: str) -> Any:
    """Return the options that a run's file holds, or :class:`UnreadOptions` where their class is not known.

    Args:
        values: What was read.
        find: Returns the class; raises InputError where there is none.
        where: The place in the file, for messages.

    Raises:
        InputError: They are no options of this class.
    """
    try:
        kind = find()
    except InputError as error:
        if not isinstance(values, dict):
            raise InputError(f"{where} must be an object, got {told(values)}") from None
        return UnreadOptions(values, str(error))
    values = renamed(values, field_names(kind)) if isinstance(values, dict) else values
    return read_dataclass(values, kind, "option", where)


def options_to_json(options: Any) -> dict[str, Any]:
    """Return options as JSON values."""
    return dict(options.values) if isinstance(options, UnreadOptions) else asdict(options)


def check_read(options: Iterable[Any], where: str) -> None:
    """Raise InputError where the class of any options is not known."""
    for one in options:
        if isinstance(one, UnreadOptions):
            raise InputError(f"{where}: {one.reason}; give the plug-in that has it with --plugin")
