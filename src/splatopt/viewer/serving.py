"""Options of the page, and whether there can be one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from splatopt.core.checks import InputError
from splatopt.core.devices import is_installed
from splatopt.train.events import Callback
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
            raise InputError(
                "the page in the browser needs viser, which is not installed: `pip install 'splatopt[viewer]'`"
            )
        return open_door(self.host, self.view_port)


@dataclass(frozen=True)
class LiveOptions(ServingOptions):
    """Of a page that is open while a scene is trained."""

    view: bool = False
    """Show the scene in a browser while it is trained, with photographs, curves, and buttons to pause and to stop."""


@contextmanager
def watching(options: LiveOptions, say: Callable[[str], None], world_size: int) -> Iterator[list[Callback]]:
    """Serve the page of a run in the block, if that was asked for; gives the callbacks of the run.

    Args:
        options: Whether, and where.
        say: Tells whoever sits at the terminal.
        world_size: How many processes share the run.

    Raises:
        InputError: There can be no page.
    """
    if not options.view:
        yield []
        return
    if world_size > 1:
        raise InputError("--view shows the run of one process, as a pause would keep the others; leave it out")
    door = options.open()
    from splatopt.viewer.live import LivePage

    page = LivePage(door, say)
    try:
        say(f"the scene in the browser: {page.link}")
        yield [page]
    finally:
        page.close()
