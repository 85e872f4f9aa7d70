"""What a package index shows of the README: relative pictures and links lead nowhere there.

Pictures go, and a link to a file or section of the repository becomes its words. ``setup.py`` takes this text;
``python docs/long_description.py`` prints it.
"""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"^!\[[^\]]*\]\((?![a-z]+:)[^)]*\)\n+", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:)[^)]*\)")


def long_description() -> str:
    """Return the README without relative pictures and links; code stays as it is."""
    parts, end = [], 0
    text = README.read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        parts += [_prose(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _prose(text[end:])])


def _prose(text: str) -> str:
    return LINK.sub(r"\1", PICTURE.sub("", text))


if __name__ == "__main__":
    print(long_description(), end="")
