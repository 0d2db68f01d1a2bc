"""Asking the Hub: with timeouts, again what may pass a little later, and a sentence for what does not."""

import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any, TypeVar

from huggingface_hub import HfApi, errors as hub_errors, get_token, set_client_factory
from huggingface_hub.utils import _http as clients

from atomhub.errors import AtomhubError, AtomhubWarning, NotFoundError, UsageError, first_line
from atomhub.version import __version__

_TRIES = 4
_TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
_PATIENCE = 30.0
"""Most seconds waited between two tries."""
_LONG = 100.0
"""Seconds after which nothing is tried again: huggingface_hub tries some calls several times itself."""
T = TypeVar("T")
WHO: dict[str, Any] = {"library_name": "atomhub", "library_version": __version__}
"""What every request says of who asks."""
TIMEOUT = 30.0
"""Most seconds to connect, and between two parts of an answer: huggingface_hub has no limit for most of its calls."""
_most: ContextVar[int | None] = ContextVar("most", default=None)


def _client() -> Any:
    """Return huggingface_hub's client, which does not wait for ever, nor take any length of answer."""
    client: Any = _before()
    hooks = client.event_hooks
    client.event_hooks = {"request": [*hooks["request"], _impatient], "response": [*hooks["response"], _bounded]}
    return client


def _impatient(request: Any) -> None:
    given = request.extensions.get("timeout") or {}
    limits = {what: given.get(what) or TIMEOUT for what in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limits}


def _bounded(response: Any) -> None:
    """Let a download end in an error when it is longer than it may be, before and after decompression."""
    if (most := _most.get()) is None or response.status_code not in (200, 206):
        return
    allowed = most
    coding = response.headers.get("content-encoding", "identity")
    if coding not in ("identity", "gzip"):
        raise TooLong(f"it is sent as {coding}, which was not asked for")
    stream, inflate = response.stream, zlib.decompressobj(31) if coding == "gzip" else None

    class Counted(import_module(type(response).__module__.split(".")[0]).SyncByteStream):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            left = allowed
            for part in stream:
                found = part if inflate is None else inflate.decompress(part, left + 1)
                if (left := left - len(found)) < 0:
                    raise TooLong(f"more than its {allowed} bytes are sent")
                yield found

        def close(self) -> None:
            stream.close()

    if inflate is not None:
        del response.headers["content-encoding"]
        response.headers.pop("content-length", None)
    response.stream = Counted()


_before = getattr(clients, "_GLOBAL_CLIENT_FACTORY", clients.default_client_factory)  # perhaps one with a proxy
set_client_factory(_client)


def hub_api(token: str | bool | None = None) -> HfApi:
    """Return huggingface_hub's client of the Hub, which says that atomhub asks."""
    return HfApi(token=token, **WHO)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Cut each download of the block off after ``size`` bytes."""
    token = _most.set(size)
    try:
        yield
    finally:
        _most.reset(token)


class TooLong(AtomhubError):
    """The Hub sends more than it said; nothing of it is kept."""


class Unreachable(AtomhubError):
    """The Hub did not answer, or not in a useful way."""


def call_hub(work: Callable[[], T], what: str, token: str | None, account: str | None = None) -> T:
    """Call the Hub, again if a failure may pass, and turn what remains into a sentence.

    Args:
        work: The call.
        what: The repository, for the sentence.
        token: The token in use, which is kept out of the sentence.
        account: Whose it is, if that is known.

    Raises:
        AtomhubError: the Hub cannot be reached, or does not allow it; NotFoundError and UsageError where they fit.
    """
    start = time.monotonic()
    for attempt in range(_TRIES):
        try:
            return work()
        except Exception as error:
            if isinstance(error, ValueError | TypeError | LookupError | AttributeError) and not _expected(error):
                why = f"The answer for {what} cannot be understood ({type(error).__name__})"
                raise Unreachable(
                    f"{why}: is it the Hub that answers?", "Check the network and HF_ENDPOINT."
                ) from error
            if not _expected(error):
                raise
            over = attempt + 1 == _TRIES or time.monotonic() - start > _LONG
            if over or not _passing(error):
                raise _explained(error, what, token, account) from None
            why = _without_token(first_line(_root(error)), token)
            note = f"{what}: {why}. Trying again ({attempt + 2} of {_TRIES})."
            warnings.warn(note, AtomhubWarning, stacklevel=2)
            _wait(error, attempt)
    raise AssertionError("the loop returns or raises")


def _root(error: BaseException) -> BaseException:
    """Return the error behind a missing cache entry, which is what the clients raise for everything."""
    while isinstance(error, hub_errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _passing(error: BaseException) -> bool:
    """Whether the same call may succeed a little later; 412 is for a commit that another client was faster with."""
    error = _root(error)
    status = _status(error)
    if status is not None:
        return status in (412, 429, 500, 502, 503, 504)
    return isinstance(error, ConnectionError | TimeoutError) or (
        _library(error) in _TRANSPORTS and not isinstance(error, ValueError)
    )


def _expected(error: BaseException) -> bool:
    """Whether an error comes from talking to the Hub, and not from a mistake in this program."""
    return isinstance(error, AtomhubError | OSError) or _library(error) in ("huggingface_hub", *_TRANSPORTS)


def _library(error: BaseException) -> str:
    return type(error).__module__.split(".")[0]


def _wait(error: BaseException, attempt: int) -> None:
    """Wait as long as the Hub asks for, or longer with every attempt."""
    response = getattr(_root(error), "response", None)
    asked = (getattr(response, "headers", None) or {}).get("Retry-After", "")
    time.sleep(min(_PATIENCE, float(asked) if asked.isdecimal() else 0.5 * 2**attempt))


def _explained(error: BaseException, what: str, token: str | None, account: str | None) -> AtomhubError:
    """Return the sentence for an error of the Hub's clients; a token is never part of it."""
    error = _root(error)
    if isinstance(error, AtomhubError):
        return error
    status = _status(error)
    said = _without_token(first_line(error), token)
    login = "Log in with: hf auth login"
    if isinstance(error, hub_errors.HFValidationError):
        return UsageError(f"{what!r} cannot be a repository: {said}.", "Ids look like user/name.")
    if isinstance(error, hub_errors.GatedRepoError):
        return AtomhubError(f"{what} is gated: its owner has to let you in.", f"Ask for access on its page. {login}")
    if status == 401 or isinstance(error, hub_errors.LocalTokenNotFoundError):
        unknown = "The Hub does not know this token: it is wrong or expired."
        return AtomhubError(unknown if token or get_token() else "You are not logged in to the Hub.", login)
    if status == 403:
        who = f"You are {account!r}, and that account" if account else "Your account"
        return AtomhubError(
            f"{who} may not write to {what}: the token is read-only, or it is somebody else's.",
            f"Use a token with write access, or open a pull request (`create_pr=True`). {login}",
        )
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return NotFoundError(f"{what} has no such revision.", "Branches, tags and commits are revisions.")
    if isinstance(error, hub_errors.RepositoryNotFoundError) or status == 404:
        private = f"There is no repository {what!r} on the Hub, or it is private."
        return NotFoundError(private, f"Check the name. {login}")
    if isinstance(error, hub_errors.EntryNotFoundError):
        return NotFoundError(f"{what}: {said}.")
    if status == 412:
        return AtomhubError(f"Somebody else keeps changing {what}.", "Push again.")
    if status is not None and isinstance(error, hub_errors.HfHubHTTPError):
        return Unreachable(f"The Hub answers {status} for {what}: nothing was changed.", "Try again later.")
    return Unreachable(f"The Hub cannot be reached for {what}: {said}.", "Check the network and try again.")


def _without_token(text: str, token: str | None) -> str:
    text = text.replace(token, "***") if token else text
    return re.sub(r"hf_\w+", "***", text)


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Show huggingface_hub's progress bars in the block, or do not."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown:
        yield
        return
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
