"""Mesh formats: readers that take all of a file or refuse it, and winding numbers of what they return."""
