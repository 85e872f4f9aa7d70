"""Scenes: cameras, posed images, volume rendering, and the fit of radiance fields."""
