"""The command that is recorded with a set: what to type in a shell to make it again."""

import shlex
from collections.abc import Mapping
from typing import Any


def command(verb: str, *arguments: Any, settings: Mapping[str, str] | None = None, **options: Any) -> str:
    """Return a line of the shell that calls atomhub.

    Args:
        verb: A command of atomhub, such as ``distill``.
        arguments: Its arguments.
        settings: For ``--set KEY=VALUE``.
        options: Option name to value. None is left out; True gives the flag alone, False the flag with ``no-``.
    """
    words = ["atomhub", verb, *map(str, arguments)]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    for key, text in (settings or {}).items():
        words += ["--set", f"{key}={text}"]
    return shlex.join(words)


def python_command(expression: str, *before: str | None) -> str:
    """Return a line of the shell that saves what a Python expression of atomhub gives.

    Args:
        expression: Such as ``atomhub.load('digits-ipc10').subset(ipc=1)``.
        before: Commands that make what the expression loads.
    """
    made = shlex.join(["python", "-c", f"import atomhub; {expression}.save()"])
    return " && ".join([*dict.fromkeys(filter(None, before)), made])
