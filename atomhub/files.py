"""Places and atomic writes: a reader never meets half a file or half a folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atomhub.errors import AtomhubError


def home() -> Path:
    """Return the folder of atomhub's store and cache: ``ATOMHUB_HOME``, else the user's cache directory."""
    if given := os.environ.get("ATOMHUB_HOME"):
        return Path(given).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("atomhub")


@contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty temporary folder beside ``target`` that takes its place when the block ends well.

    Args:
        target: Where the folder will be.
        overwrite: Replace what is there.

    Raises:
        AtomhubError: ``target`` exists and may not be replaced, or the disk is full or not writable; nothing is left.
    """
    temporary: Path | None = None
    try:
        check_free(target, overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield temporary
        temporary.chmod(0o755)
        if target.exists() and overwrite:
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            target.rename(old / "old")
            temporary.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def check_free(target: Path, overwrite: bool) -> None:
    """Refuse a target that exists, unless it is an empty folder; raises AtomhubError."""
    if target.exists() and not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise AtomhubError(f"{target.name!r} already exists in {target.parent}.", "Choose another name or --overwrite.")


def replace_file(target: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it; raises AtomhubError and leaves the old file otherwise."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(target, error) from error


def cannot_write(target: Path, error: OSError) -> AtomhubError:
    """Return the error that says why a path cannot be written."""
    blocked = isinstance(error, FileExistsError | NotADirectoryError)
    reason = "part of the path is a file" if blocked else error.strerror or str(error)
    return AtomhubError(f"Cannot write {target}: {reason}.", "Free some space or name another folder (ATOMHUB_HOME).")


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep the progress bars and log lines of ``datasets`` off for local work that takes no time."""
    import datasets

    shown, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()
