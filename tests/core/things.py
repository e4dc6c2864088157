"""A registry for tests of the door, which plug-ins that are made up there register with."""

from __future__ import annotations

from splatopt.core.plugins import Registry, calling_place

THINGS: Registry[int] = Registry("thing", "splatopt.test_things", ())


def add(name: str, value: int) -> None:
    THINGS.add(name, value, calling_place())
