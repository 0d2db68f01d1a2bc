"""Text from strangers: what of it a terminal, a card, JSON or an error may show."""

import json
import re
from typing import Any

_MOST = 4000
"""Characters of a sentence: a longer one is cut."""


def plain(text: object, most: int = _MOST) -> str:
    """Return text that cannot steer what shows it: one line of printable characters, cut where it is too long.

    Control characters, C1 and escapes among them, those that change the direction of writing, and lone surrogates
    become U+FFFD; line ends and tabs become spaces.
    """
    cut = str(text)[: most + 1]
    line = "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in cut)
    return line if len(line) <= most else line[:most] + "..."


def plain_lines(text: str) -> str:
    """Return text of several lines, each as :func:`plain` gives it."""
    return "\n".join(plain(line) for line in text.split("\n"))


def as_json(data: Any) -> str:
    """Return data as JSON that means exactly the data and steers no terminal: what is not printable is escaped."""

    def escaped(found: re.Match[str]) -> str:
        return json.dumps(found[0])[1:-1] if not found[0].isprintable() else found[0]

    text = json.dumps(data, indent=1, ensure_ascii=False)
    return re.sub(r"[^\n -~]", escaped, text)
