"""What files of strangers may say: every bound in one place, each checked before anything is allocated by it."""

import json
import math
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

MANIFEST = 2**22
"""Most bytes of a manifest, and of the config of a network."""
CARD = 2**20
"""Most bytes of a card."""
FRONT = 2**16
"""Most characters of a card's YAML block."""
BRACKETS = 500
"""Brackets in the YAML block of a card: PyYAML takes a time that grows with the square of those that are open."""
DEPTH = 32
"""Most objects and lists within each other in JSON."""
CLASSES = 50_000
"""Most classes of a set."""
CONFUSION = 200
"""Most classes of which a confusion matrix is kept."""
IPC = 100_000
"""Most images of a class."""
SIDE = 8192
"""Longest side of an image in pixels."""
IMAGES = 2**34
"""Most bytes of the images of a set."""
WEIGHTS = 2**32
"""Most bytes of the weights of a network."""
PARAMETERS = 10**9
"""Most numbers of a network."""
PICTURE = 2**28
"""Most bytes of a file of a picture."""
LABELS = 2**31
"""Most bytes of stored labels."""
EPOCHS = 10**6
"""Most epochs of stored labels."""
RESULTS = 1000
"""Most results of a set."""
RUNS = 100_000
"""Most networks behind a result."""
POINTS = 20_000
"""Most points of a curve."""
PARTS = 1000
"""Most sets that a set was put together from."""


def _text(value: str) -> str:
    value.encode()  # raises a ValueError for lone surrogates
    return value


Word = Annotated[str, StringConstraints(max_length=500), AfterValidator(_text)]
"""A name, an identifier, a date."""
Text = Annotated[str, StringConstraints(max_length=20_000), AfterValidator(_text)]
"""A sentence, a command."""
Count = Annotated[int, Field(ge=0, le=10**15)]
"""Images, bytes, iterations."""
Seed = Annotated[int, Field(ge=-(2**63), le=2**64)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Mean = Annotated[float, Field(ge=-1e3, le=1e3)]
"""Of a channel, in units of pixels in 0..1."""
Std = Annotated[float, Field(ge=1e-5, le=1e3)]
"""Of a channel, in units of pixels in 0..1."""


def parse_json(content: bytes) -> Any:
    """Return what JSON of a stranger says.

    Raises:
        ValueError: it is not JSON in UTF-8, has numbers that JSON has not, text that is not Unicode, or is too deep.
    """
    try:
        data = json.loads(content.decode(), parse_constant=_no_constant, parse_float=_finite)
        json.dumps(data, ensure_ascii=False).encode()  # lone surrogates
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level, depth = [data], 0
    while level := [v for x in level if isinstance(x, dict | list) for v in (x.values() if isinstance(x, dict) else x)]:
        depth += 1
        if depth > DEPTH:
            raise ValueError("it is nested too deeply")
    return data


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is too large a number")
    return number


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
