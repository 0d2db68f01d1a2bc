"""The command group, and how errors become sentences and exit codes."""

import logging
import os
import signal
import sys
import traceback
import warnings
from functools import partial
from typing import Any

import click

from atomhub.errors import AtomhubError, AtomhubWarning, spelt
from atomhub.files import home, sweep
from atomhub.text import plain

from . import distill, evaluate, exchange, gallery, hub, recipes, search, sets, train
from .output import say

EPILOG = (
    "Environment: ATOMHUB_HOME (store and cache), ATOMHUB_DATA (local datasets, NAME/train*.parquet and "
    "NAME/test*.parquet), ATOMHUB_DEBUG=1 (tracebacks)."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "ATOMHUB"}, epilog=EPILOG)
@click.version_option(package_name="atomhub", prog_name="atomhub")
@click.option("--debug", is_flag=True, expose_value=False, allow_from_autoenv=False,  # main reads it: anything is on
              help="Show a traceback when something fails.")  # fmt: skip
def cli() -> None:
    """Distil image datasets into a few images per class, and train on them.

    Start with: atomhub demo
    """


for command in (
    distill.distill, evaluate.evaluate, evaluate.demo, sets.list_sets, sets.info, sets.preview, sets.remove, sets.clean,
    hub.push, hub.pull, hub.verify, hub.index, train.train, search.search, train.soften, train.label,
    exchange.export_set, exchange.import_set, recipes.recipes, gallery.gallery,
):  # fmt: skip
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 for failures, 2 for bad usage, 130 when interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given or os.environ.get("ATOMHUB_DEBUG", "0") not in ("", "0")
    warnings.showwarning = partial(_note, set())
    warnings.filterwarnings("default", category=AtomhubWarning)
    logging.getLogger("atomhub").handlers = [_Lines()]
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA is no news
    signal.signal(signal.SIGTERM, _terminated)
    for room in ("sets", "real", "banks", "runs", "evaluations"):
        sweep(home() / room)  # what killed processes left
    try:
        # --debug is understood after the command as well
        code = cli.main([a for a in given if a != "--debug"], prog_name="atomhub", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            why = "This run was stopped, or another of its processes has ended"
            say(f"{why}: --resume continues from the last checkpoint.", error=True)
        else:
            say("Interrupted.")
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except Exception as error:
        if debug:
            traceback.print_exc()
        sys.exit(_explain(error))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nobody is left to catch what it would raise
    if code:  # what click makes of ctx.exit() and Exit
        sys.exit(code)


class _Lines(logging.Handler):
    """Shows what atomhub logs as lines."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def _terminated(*_: Any) -> None:
    raise KeyboardInterrupt


def _explain(error: Exception) -> int:
    """Print an error as a sentence with its hint; return the exit code."""
    if isinstance(error, AtomhubError):
        message, hint, code = error.message, error.hint, error.exit_code
    elif isinstance(error, OSError):
        message, hint, code = f"{error.filename or 'A file'}: {error.strerror or error}.", "", 1
    else:
        message, hint, code = (
            f"{type(error).__name__}: {error}",
            "This is a bug: run again with --debug and report it.",
            1,
        )
    # bad usage is the same in all processes of a run, and the first tells
    say(f"Error: {spelt(plain(message), flags=True)}", error=code != 2)
    if hint:
        say(f"Hint: {spelt(hint, flags=True)}", error=code != 2)
    return code


def _note(told: set[str], message: Warning | str, *_: Any, **__: Any) -> None:
    """Show atomhub's own warnings as a line, each once; those of libraries are for developers."""
    if isinstance(message, AtomhubWarning) and message.message not in told:
        told.add(message.message)
        say(f"Note: {spelt(message.message, flags=True)}")
