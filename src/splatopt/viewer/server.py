"""viser's server, started behind the gate of its port and without a word of its own."""

from __future__ import annotations

import contextlib
import io

import viser

from splatopt.viewer.gate import Door, served_through

_LABEL = "splatopt"
_BRAND = (42, 111, 151)


class Server(viser.ViserServer):
    """viser's server, which hands nothing on."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        """Give none: a page asks for it, and viser would open a tunnel to a server of its own for all the world."""
        return None

    def stop(self) -> None:
        """Stop without telling that it was."""
        with contextlib.redirect_stdout(io.StringIO()):
            super().stop()


def start_server(door: Door) -> Server:
    """Serve at a door."""
    with served_through(door), contextlib.redirect_stdout(io.StringIO()):
        server = Server(host="127.0.0.1", port=0, label=_LABEL, verbose=False)
    server.gui.configure_theme(
        control_width="medium", show_logo=False, show_share_button=False, brand_color=_BRAND, dark_mode=False
    )
    return server
