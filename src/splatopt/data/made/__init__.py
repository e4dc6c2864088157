"""Scenes made from nothing, for meta-training: random objects, rooms and terrains, photographed by ray casting."""

from splatopt.data.made.folder import made_from, write_scene, write_scenes
from splatopt.data.made.scene import MadeScene, SceneOptions, build_scene, make_scene, scene_seed, scene_stream

__all__ = [
    "MadeScene",
    "SceneOptions",
    "build_scene",
    "made_from",
    "make_scene",
    "scene_seed",
    "scene_stream",
    "write_scene",
    "write_scenes",
]
