"""Places, locks and atomic writes: a reader never meets half a file or half a folder, or anything but a file."""

import errno
import glob
import hashlib
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from atomhub.errors import AtomhubError, UsageError, first_line


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
    if target.is_symlink():  # where its owner wants it to lie
        target = target.resolve()
    try:
        temporary = temporary_folder(target)
        yield temporary
        temporary.chmod(0o755)
        with locked(target):
            if target.exists() and (overwrite or not any(target.iterdir())):  # an empty folder is no folder to lose
                old = temporary_folder(target)
                try:
                    target.rename(old / _OLD)
                    temporary.rename(target)
                finally:  # whatever came in between, Ctrl-C as well
                    if (old / _OLD).exists() and not target.exists():
                        (old / _OLD).rename(target)
                    shutil.rmtree(old, ignore_errors=True)
            else:
                temporary.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def carry_over(old: Path, new: Path, ours: Container[str]) -> None:
    """Copy the files of a folder to the one that takes its place, but for ours and those that are there; or do nothing.

    Args:
        old: The folder, if there is one.
        new: That of :func:`new_folder`.
        ours: Names, relative to the folder, of what goes.
    """
    for path in old.rglob("*") if old.is_dir() else ():
        name = path.relative_to(old)
        if path.is_file() and name.as_posix() not in ours and not (new / name).exists():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, new / name, follow_symlinks=False)


_OLD = "old"


def _where() -> str:
    """Return what tells a machine, its start and a container apart: process numbers mean something there alone."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:8]


_HOST = _where()
_DAY = 24 * 3600
_TEMPORARY = re.compile(r"\.(?P<target>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)\.[^.]+")


def _prefix(target: Path) -> str:
    """Return how temporary names for a target begin: whose they are is seen, so that those of the dead are swept."""
    return f".{target.name}.{_HOST}-{os.getpid()}."


def temporary_folder(target: Path) -> Path:
    """Return a new empty folder beside a target, whose parents are made; leftovers of dead processes there go."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    return Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files and folders of dead processes in a folder; those of elsewhere after a day."""
    with suppress(OSError):
        found = [(p, _TEMPORARY.fullmatch(p.name)) for p in folder.iterdir()]
        return [p for p, match in found if match and not _alive(match["host"], int(match["pid"]), p)]
    return []


def put_back(target: Path) -> None:
    """Put back what a process was about to replace when it was killed; the lock tells that none is at it."""
    pattern = f".{glob.escape(target.name)}.*/{_OLD}"
    if not target.exists() and any(target.parent.glob(pattern)):
        with locked(target):
            for old in target.parent.glob(pattern):
                with suppress(OSError):
                    old.rename(target)  # refused where there is one by now


def sweep(folder: Path) -> None:
    """Delete the leftovers of dead processes in a folder; what one was about to replace is put back."""
    for path in leftovers(folder):
        match = _TEMPORARY.fullmatch(path.name)
        with suppress(OSError):
            if match and (path / _OLD).exists():
                (path / _OLD).rename(folder / match["target"])  # refused where there is a new one
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _alive(host: str, pid: int, path: Path) -> bool:
    """Whether a process may still be at work on a temporary path."""
    if host != _HOST or os.name == "nt":  # where signal 0 is no question
        with suppress(OSError):
            return time.time() - path.stat().st_mtime < _DAY
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # somebody else's
    return True


@contextmanager
def locked(target: Path, wait: float = 60.0, doing: str = "writing to") -> Iterator[None]:
    """Keep other processes that lock the same target out for the block; it need not exist.

    The lock is a file of its own in ``ATOMHUB_HOME``, free as soon as its process ends, whichever way.

    Args:
        target: What is read, changed and written.
        wait: Most seconds to wait for another process.
        doing: What the other one is at, for the error.

    Raises:
        AtomhubError: another process holds it.
    """
    key = f"{doing} {target.resolve()}"
    name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', target.name)[:80]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.lock"
    places = (home() / "locks", Path(tempfile.gettempdir()) / f"atomhub-locks-{getattr(os, 'getuid', int)()}")
    for last, place in enumerate(places):
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = FileLock(place / name, timeout=wait)
            lock.acquire()
            break
        except Timeout:
            raise AtomhubError(
                f"Another process is {doing} {target}.", "Wait for it, or choose another name."
            ) from None
        except OSError:  # a home that may only be read
            if last:
                raise
    try:
        yield
    finally:
        lock.release()


def user_path(name: str | Path) -> Path:
    """Return what somebody typed as a path; UsageError for what cannot be one."""
    try:
        path = Path(name).expanduser()
        path.exists()
        return path
    except (RuntimeError, ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise UsageError(f"{str(name)!r} cannot be a path or a name: {reason}.") from None


def snapshot_of(folder: Path) -> Path | None:
    """Return a repository's folder in huggingface_hub's cache, if ``folder`` is a snapshot there: those have links."""
    from huggingface_hub import constants

    parents = folder.resolve().parents
    cache = Path(constants.HF_HUB_CACHE).resolve()
    return parents[1] if len(parents) > 2 and parents[0].name == "snapshots" and parents[2] == cache else None


def open_regular(path: Path, inside: Path | None = None) -> BinaryIO:
    """Open a regular file to read it, and nothing else: no FIFO is waited for, no device asked.

    Args:
        path: The file.
        inside: Folder that it must lie in when all links are resolved; None: wherever it lies.

    Raises:
        OSError: it is not there, not a regular file, or leads out of the folder.
    """
    return os.fdopen(_open_regular(path, inside), "rb")


def _open_regular(path: Path, inside: Path | None) -> int:
    real = str(path)
    if "\0" in real:
        raise OSError(errno.EINVAL, "there is no such name", real)
    mode = os.lstat(real).st_mode
    if stat.S_ISLNK(mode):
        real = str(path.resolve(strict=True))
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    file = os.open(real, _FLAGS)
    if not stat.S_ISREG(os.fstat(file).st_mode):  # exchanged in between
        os.close(file)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if inside is not None and not _lies_in(file, real, inside):
        os.close(file)
        raise OSError(errno.EPERM, "it is a link that leads out of its folder", str(path))
    return file


_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))


def _lies_in(file: int, path: str, folder: Path) -> bool:
    """Whether an open file lies in a folder when all links are resolved."""
    try:  # Linux tells the true path of what is open, several times faster than links are resolved
        true = os.readlink(f"/proc/self/fd/{file}")  # noqa: PTH115
    except OSError:
        true = os.path.realpath(path)
    # a true path begins with a folder's name only if that is a true path as well
    return true.startswith(f"{folder}{os.sep}") or Path(true).is_relative_to(folder.resolve())


def read_regular(path: Path, most: int, inside: Path | None = None) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes; OSError as :func:`open_regular`, or if larger."""
    file = _open_regular(path, inside)
    try:
        parts, left = [], most + 1
        while left and (part := os.read(file, min(left, 2**20))):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(file)
    if not left:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return b"".join(parts)


def check_target(target: Path, overwrite: bool, marker: str) -> None:
    """Refuse, before any work, a target that could not be written later.

    Args:
        target: Folder to be written; absolute.
        overwrite: Allow a folder that exists and holds the file ``marker``.
        marker: What tells a folder of ours from any other.

    Raises:
        AtomhubError: the target exists (an empty folder is fine), is something else or holds more (a clone's ``.git``),
            or lies where nobody may write.
    """
    try:
        if target == Path.cwd():
            raise AtomhubError(f"{target} is the folder you are in.", "Name a new folder, such as ./my-set.")
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            if not overwrite:
                raise AtomhubError(
                    f"{target.name!r} already exists in {target.parent}.", "Choose another name or `overwrite=True`."
                )
            if not (target / marker).exists():
                raise AtomhubError(
                    f"{target} was not written by this command, so it is not replaced.", "Name another folder."
                )
            if more := next((p.name for p in sorted(target.iterdir()) if p.name.startswith(".") and p.is_dir()), None):
                raise AtomhubError(f"{target} has {more}, which would be lost.", "Name another folder, or move it.")
        above = next(p for p in target.parents if p.exists())
        tempfile.TemporaryDirectory(prefix=_prefix(target), dir=above).cleanup()
    except OSError as error:
        raise cannot_write(target, error) from error


def replace_file(target: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it; raises AtomhubError and leaves the old file otherwise."""
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        handle, name = tempfile.mkstemp(prefix=_prefix(target), dir=target.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o644)
        temporary.replace(target)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(target, error) from error
        raise


def cannot_write(target: Path, error: OSError) -> AtomhubError:
    """Return the error that says why a path cannot be written."""
    if error.errno == errno.ENOTEMPTY:
        return AtomhubError(f"{target} exists by now.", "Choose another name or `overwrite=True`.")
    blocked = isinstance(error, FileExistsError | NotADirectoryError)
    reason = "part of the path is a file" if blocked else error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    way_out = "Free some space" if full else "Change its permissions"
    return AtomhubError(f"Cannot write {target}: {reason}.", f"{way_out}, or name another folder (ATOMHUB_HOME).")
