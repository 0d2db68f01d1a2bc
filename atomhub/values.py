"""Values of a recipe as text: on the command line, in a recorded command, in a TOML file."""

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from atomhub.errors import UsageError, closest
from atomhub.presets import PRESETS


def read_toml(path: Path) -> dict[str, Any]:
    """Return the fields that a TOML file has; UsageError where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"The recipe file {str(path)!r} does not exist.", closest(path.stem, PRESETS)) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"The recipe file {str(path)!r} cannot be read: {error}.") from None


def text_of(value: Any) -> str:
    """Return a value of a recipe as :func:`parsed` reads it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value)


def parsed(key: str, value: Any) -> Any:
    """Read a command line value: TOML literal where it is one, a comma list for tuples, else plain text."""
    if not isinstance(value, str) or key == "name":
        return value
    if key in ("augmentation", "widths", "depths") and not value.startswith("["):
        parts = [part.strip() for part in value.split(",") if part.strip() not in ("", "none")]
        return tuple(parts if key == "augmentation" else (parsed("", part) for part in parts))
    if value in ("auto", "unset") and key in ("depth", "image_lr", "image_step", "classes_per_iteration", "weights"):
        return None
    try:
        return tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return value


def allowed_values(model: type[BaseModel], key: str) -> str:
    """Return what a field of a recipe accepts, in words."""
    schema = model.model_json_schema()["properties"][key]
    options = [schema, *schema.get("anyOf", [])]
    words = [f"one of {', '.join(map(str, o['enum']))}" for o in options if "enum" in o]
    words += [f"a list of {', '.join(o['items']['enum'])}" for o in options if "enum" in o.get("items", {})]
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    for option in [*options, *(o["items"] for o in options if "items" in o)]:
        limits = " and ".join(f"{sign} {option[bound]:g}" for bound, sign in signs.items() if bound in option)
        if option.get("type") in ("integer", "number"):
            one = option in options
            kind = {"integer": "whole number", "number": "number"}[option["type"]]
            words.append(f"{f'a {kind}' if one else f'a list of {kind}s'} {limits}".strip())
        elif option.get("type") == "boolean":
            words.append("true or false")
        elif option.get("type") == "string" and "enum" not in option:
            words.append("text")
    return ", or ".join(words + ["unset"] * any(o.get("type") == "null" for o in options))
