"""Options of the page, and whether there can be one."""

from __future__ import annotations

from dataclasses import dataclass

from splatopt.core.checks import InputError
from splatopt.core.devices import is_installed
from splatopt.viewer.gate import Door, open_door


@dataclass(frozen=True)
class ServingOptions:
    """Where the page is served."""

    view_port: int = 8080
    """Port of the page; 0 for any that is free. Unit: port number."""

    host: str = "localhost"
    """Address of this machine that the page is served at. Any but this machine's own loopback asks for the token that
    stands in the printed link."""

    def open(self) -> Door:
        """Take the port.

        Raises:
            InputError: viser is not installed, or the port cannot be had.
        """
        if not is_installed("viser"):
            raise InputError("the page in the browser needs viser, which is not installed: `pip install splatopt[viewer]`")
        return open_door(self.host, self.view_port)
