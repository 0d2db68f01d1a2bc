"""The command that is recorded with a set: what to type in a shell to make it again."""

import shlex
from collections.abc import Mapping
from itertools import groupby
from typing import Any


def command(verb: str, *arguments: Any, settings: Mapping[str, str] | None = None, **options: Any) -> str:
    """Return a line of the shell that calls atomhub.

    Args:
        verb: A command of atomhub, such as ``distill``.
        arguments: Its arguments.
        settings: For ``--set KEY=VALUE``.
        options: Option name to value. None is left out; True gives the flag alone, False the flag with ``no-``.
    """
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    for key, text in (settings or {}).items():
        words += ["--set", f"{key}={text}"]
    given = [str(argument) for argument in arguments]
    dashed = any(argument.startswith("-") for argument in given)
    return shlex.join(["atomhub", verb, *words, "--", *given] if dashed else ["atomhub", verb, *given, *words])


def python_command(expression: str, *before: str) -> str:
    """Return a line of the shell that saves what a Python expression of atomhub gives.

    Args:
        expression: Such as ``atomhub.load('digits-ipc10').subset(ipc=1)``.
        before: Commands that make what the expression loads; each is there once.
    """
    return chain(*before, shlex.join(["python", "-c", f"import atomhub; {expression}.save()"]))


def chain(*lines: str) -> str:
    """Return several lines of the shell as one, each command once."""
    return " && ".join(dict.fromkeys(part for line in lines for part in commands(line)))


def commands(line: str) -> list[str]:
    """Return the commands of a line that :func:`chain` made."""
    words = groupby(shlex.split(line), lambda word: word == "&&")
    return [shlex.join(part) for between, part in words if not between]


def expression(line: str | None, otherwise: str) -> tuple[str, list[str]]:
    """Return the Python expression that gives the set of a recorded command, and the commands that go before it.

    A set that was saved, for which ``line`` is None, is given by the expression ``otherwise``.
    """
    *before, last = commands(line or "") or [""]
    start, end = "import atomhub; ", ".save()"
    words = shlex.split(last)
    if words[:2] == ["python", "-c"] and words[2].startswith(start) and words[2].endswith(end):
        return words[2].removeprefix(start).removesuffix(end), before
    return otherwise, [*before, last] if last else before
