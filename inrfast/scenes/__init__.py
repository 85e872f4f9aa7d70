"""Scenes: cameras, posed images, volume rendering, and the fit of radiance fields."""

from inrfast.scenes.alignment import FieldKAR
from inrfast.scenes.blender import load_blender, save_blender
from inrfast.scenes.cameras import Camera, look_at, sphere_of_cameras
from inrfast.scenes.caster import Caster, render_mesh
from inrfast.scenes.fields import RadianceField
from inrfast.scenes.fit import SceneResult, fit_scene, score
from inrfast.scenes.renderer import Renderer, render
from inrfast.scenes.views import Views
from inrfast.scenes.volume import Composited, composite

__all__ = [
    "Camera",
    "Caster",
    "Composited",
    "FieldKAR",
    "RadianceField",
    "Renderer",
    "SceneResult",
    "Views",
    "composite",
    "fit_scene",
    "load_blender",
    "look_at",
    "render",
    "render_mesh",
    "save_blender",
    "score",
    "sphere_of_cameras",
]
