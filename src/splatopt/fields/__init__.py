"""Neural fields: networks of coordinates, and the tasks that they are fitted to, as objectives."""

from __future__ import annotations

from splatopt.fields.image import ImageTask
from splatopt.fields.networks import Architecture, Field
from splatopt.fields.occupancy import OccupancyTask
from splatopt.fields.radiance import RadianceField, RadianceTask
from splatopt.fields.registry import field_names, find_field, make_field, register_field
from splatopt.fields.task import Task

__all__ = [
    "Architecture",
    "Field",
    "ImageTask",
    "OccupancyTask",
    "RadianceField",
    "RadianceTask",
    "Task",
    "field_names",
    "find_field",
    "make_field",
    "register_field",
]
