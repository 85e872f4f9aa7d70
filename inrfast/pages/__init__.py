"""Pages for readers: one self-contained HTML file of text, tables and pictures, that asks for nothing else."""

from inrfast.pages.page import Block, Entries, Folded, Items, Page, Picture, Pictures, Raw, Section, Table, Text
from inrfast.pages.pictures import drawn, figure_picture, image_picture

__all__ = [
    "Block",
    "Entries",
    "Folded",
    "Items",
    "Page",
    "Picture",
    "Pictures",
    "Raw",
    "Section",
    "Table",
    "Text",
    "drawn",
    "figure_picture",
    "image_picture",
]
