"""Places and atomic writes: a reader never meets half a file or half a folder."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        AtomhubError: the disk is full or not writable; nothing is left, and what was there stays.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield temporary
        temporary.chmod(0o755)
        if target.exists() and (overwrite or not any(target.iterdir())):  # an empty folder is no folder to lose
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            target.rename(old / "old")
            try:
                temporary.rename(target)
            except OSError:
                (old / "old").rename(target)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def check_target(target: Path, overwrite: bool, marker: str) -> None:
    """Refuse, before any work, a target that could not be written later.

    Args:
        target: Folder to be written; absolute.
        overwrite: Allow a folder that exists and holds the file ``marker``.
        marker: What tells a folder of ours from any other.

    Raises:
        AtomhubError: the target exists (an empty folder is fine), is something else, or lies where nobody may write.
    """
    try:
        if target == Path.cwd():
            raise AtomhubError(f"{target} is the folder you are in.", "Name a new folder, such as ./my-set.")
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            if not overwrite:
                raise AtomhubError(
                    f"{target.name!r} already exists in {target.parent}.", "Choose another name or --overwrite."
                )
            if not (target / marker).exists():
                raise AtomhubError(
                    f"{target} was not written by this command, so it is not replaced.", "Name another folder."
                )
        above = next(p for p in target.parents if p.exists())
        tempfile.TemporaryDirectory(prefix=".atomhub.", dir=above).cleanup()
    except OSError as error:
        raise cannot_write(target, error) from error


def replace_file(target: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it; raises AtomhubError and leaves the old file otherwise."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise cannot_write(target, error) from error


def cannot_write(target: Path, error: OSError) -> AtomhubError:
    """Return the error that says why a path cannot be written."""
    blocked = isinstance(error, FileExistsError | NotADirectoryError)
    reason = "part of the path is a file" if blocked else error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    way_out = "Free some space" if full else "Change its permissions"
    return AtomhubError(f"Cannot write {target}: {reason}.", f"{way_out}, or name another folder (ATOMHUB_HOME).")


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
