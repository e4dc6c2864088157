"""Captures: posed photographs from COLMAP, Blender, nerfstudio, instant-ngp, or synthetic ones."""

from splatopt.data.capture import Capture, CaptureOptions, Split, load_capture
from splatopt.data.image_store import ImageStore
from splatopt.data.images import UnreadableImageError
from splatopt.data.procedural import make_capture
from splatopt.data.source import Points
from splatopt.data.summary import CaptureSummary, inspect_capture

__all__ = [
    "Capture",
    "CaptureOptions",
    "CaptureSummary",
    "ImageStore",
    "Points",
    "Split",
    "UnreadableImageError",
    "inspect_capture",
    "load_capture",
    "make_capture",
]
