"""Commands in processes of their own, forked from one that has everything imported: quick to start, and to kill."""

import os
import random
import signal
import sys
import time
import traceback
import warnings

from atomhub.errors import AtomhubError


def fork(work):
    """Run a function in a process of its own; return its id. It ends with 0, 3 for an AtomhubError, else 1."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        warnings.simplefilter("ignore")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
        code = 0
    except AtomhubError:
        code = 3
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid):
    """Wait for a process; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def together(*works):
    """Run functions at the same time; return their exit codes."""
    return [ended(pid) for pid in [fork(work) for work in works]]


def killed(work, seconds, seed):
    """Start a function, and kill its process at a random moment of its usual time."""
    pid = fork(work)
    time.sleep(random.Random(seed).uniform(0, seconds))
    os.kill(pid, signal.SIGKILL)
    return ended(pid)
