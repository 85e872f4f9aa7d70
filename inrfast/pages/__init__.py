"""Pages for readers: one self-contained HTML file of text, tables and pictures, that asks for nothing else."""

from inrfast.pages.page import Entries, Items, Folded, Page, Picture, Pictures, Raw, Section, Table, Text
from inrfast.pages.pictures import figure_picture, image_picture

__all__ = [
    "Entries",
    "Items",
    "Folded",
    "Page",
    "Picture",
    "Pictures",
    "Raw",
    "Section",
    "Table",
    "Text",
    "figure_picture",
    "image_picture",
]
