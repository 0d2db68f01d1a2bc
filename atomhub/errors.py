"""The errors atomhub raises on purpose: one clear sentence and, where there is one, the way out."""

import difflib
import re
from collections.abc import Iterable
from importlib.util import find_spec
from numbers import Integral

from atomhub.text import plain


def spelt(text: str, flags: bool = False) -> str:
    """Return a sentence with its `` `arguments=1` `` as Python spells them, or the command line: ``--arguments 1``."""

    def argument(found: re.Match[str]) -> str:
        return f"{found[1]}={found[2] or '...'}"

    def option(found: re.Match[str]) -> str:
        name, value = found[1].replace("_", "-"), found[2]
        if value in ("True", "False"):
            return f"--{'no-' * (value == 'False')}{name}"
        return f"--{name}" + (f" {value.strip(chr(34))}" if value else "")

    return re.sub(r"`([a-z_]+)(?:=([^`]*))?`", option if flags else argument, text)


class AtomhubError(Exception):
    """Something the user can mend. Arguments in backquotes are shown as :func:`spelt` says.

    Args:
        message: One sentence that names the bad value.
        hint: What to do about it; empty when the message already says so.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = plain(message)
        self.hint = plain(hint)

    def __str__(self) -> str:
        return spelt(f"{self.message}\n{self.hint}" if self.hint else self.message)


class UsageError(AtomhubError, ValueError):
    """A value given by the caller is not possible; the command line exits with 2."""

    exit_code = 2


class NotFoundError(AtomhubError, LookupError):
    """A source or a distilled set of that name does not exist."""


class SourceError(AtomhubError):
    """Real data that cannot be used as they are."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch's says that memory ran out."""
    words = "out of memory|allocate|enough memory|ALLOC_FAILED"
    return isinstance(error, MemoryError) or re.search(words, str(error)) is not None


class IntegrityError(AtomhubError):
    """A distilled set on disk is not what its manifest says; nothing of it is used."""


class AtomhubWarning(UserWarning):
    """Something worth knowing that does not stop the work; the command line prints it as a note."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = plain(message)

    def __str__(self) -> str:
        return spelt(self.message)


class MissingPackageError(UsageError):
    """What was asked for needs a package that is not installed."""


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        return find_spec(package) is not None
    except ValueError:  # it is there, but does not say where from
        return True


def check_installed(what: str, extra: str, *packages: str) -> None:
    """Raise a MissingPackageError if some packages are missing that ``what`` needs and an extra of atomhub brings."""
    if missing := [package for package in packages if not installed(package)]:
        raise MissingPackageError(
            f"{what} needs {' and '.join(missing)}.", f"Install what is missing: pip install 'atomhub[{extra}]'"
        )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text without its full stop, or its type where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def check_whole(what: str, value: object, low: int, high: int = 2**63 - 1) -> int:
    """Return a whole number within bounds as it is; UsageError that names the value otherwise."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        bounds = f"{low} to {high}" if high < 2**63 - 1 else f"{low} or more"
        raise UsageError(f"{what} cannot be {value!r}: use a whole number, {bounds}.")
    return int(value)


def closest(name: str, known: Iterable[str]) -> str:
    """Return the sentence that helps with a misspelt name: the closest match, or all there is."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean {match[0]!r}?" if match else f"Known: {', '.join(known)}."
