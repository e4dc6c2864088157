"""Synthetic scenes, for meta-training: random objects, rooms and terrains, photographed by ray casting."""

from splatopt.data.synthetic.folder import synthetic_options_of, write_scene, write_scenes
from splatopt.data.synthetic.scene import (
    SceneOptions,
    SyntheticScene,
    build_scene,
    make_scene,
    scene_seed,
    scene_stream,
)

__all__ = [
    "SceneOptions",
    "SyntheticScene",
    "build_scene",
    "make_scene",
    "scene_seed",
    "scene_stream",
    "synthetic_options_of",
    "write_scene",
    "write_scenes",
]
