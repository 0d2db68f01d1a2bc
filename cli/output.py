"""Standard output is data, standard error is talk: tables, JSON and progress."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress

    from atomhub.results import Measurement, Score

RANK = int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0
"""Number of this process under torchrun; the first alone prints."""


def say(text: str, error: bool = False) -> None:
    """Print a line of talk on standard error; of other processes than the first, errors alone."""
    from atomhub.text import plain_lines

    if RANK == 0:
        click.echo(plain_lines(text), err=True)
    elif error:
        click.echo(plain_lines(f"[process {RANK}] {text}"), err=True)


def print_data(line: Any) -> None:
    """Print lines of data on standard output."""
    from atomhub.text import plain_lines

    if RANK == 0:
        click.echo(plain_lines(str(line)))


def is_terminal(stream: Any) -> bool:
    """Whether a standard stream is there and is a terminal."""
    return stream is not None and stream.isatty()


def watched(as_json: bool) -> bool:
    """Whether somebody watches the progress."""
    return RANK == 0 and not as_json and is_terminal(sys.stderr)


def print_json(data: Any) -> None:
    """Print one JSON object on standard output."""
    from atomhub.text import as_json

    if RANK == 0:
        click.echo(as_json(data))


def agreed(question: str, yes: bool, what: str) -> bool:
    """Ask, unless ``yes``; UsageError that says so where nobody can be asked ``what``."""
    if yes:
        return True
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        if is_terminal(sys.stdin):
            raise
        click.echo(err=True)  # the question stands alone
        raise click.UsageError(f"Nobody can be asked here {what}: say --yes.") from None


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print a table on standard output, in the width of the terminal if it is one; no columns: no header."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from atomhub.text import plain

    console = Console() if is_terminal(sys.stdout) else Console(width=200, color_system=None)
    table = Table(box=box.SIMPLE_HEAD, show_header=bool(columns))
    for i, column in enumerate(columns):
        # a name that is cut in two cannot be copied
        table.add_column(Text(plain(column)), overflow="fold", no_wrap=i == 0 and console.width >= 100)
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    if title:
        click.echo(plain(title))
    console.print(table)


def size(count: int | None) -> str:
    """Return bytes in words, or a dash."""
    from rich.filesize import decimal

    return "-" if count is None else decimal(count)


def duration(seconds: float) -> str:
    """Return a time in words: seconds, minutes or hours."""
    for unit, each in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * each:
            return f"{seconds / each:.0f} {unit}"
    return f"{seconds:.0f} s"


def accuracy(score: Score | None) -> str:
    """Return an accuracy in percent, or a dash."""
    return score.text if score else "-"


def soft(result: Measurement) -> str:
    """Return what marks a result of soft labels, which cannot be compared with the others; nothing for hard ones."""
    return f", {result.taught}" if result.taught else ""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show rich progress with rate and time left, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[note]}", markup=False), TimeRemainingColumn(),
        TextColumn("left"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield bar


MINUTE = 60.0
"""Seconds without a line after which a log is thought dead."""


class Steps:
    """Progress of a run of many steps: a bar on a terminal, else a plain line every tenth of the way and every minute.

    Args:
        what: What is going on.
        quiet: Show nothing.
        unit: What a step is, for the rate.
    """

    def __init__(self, what: str, quiet: bool = False, unit: str = "it") -> None:
        self.what, self.quiet, self.unit = what, quiet, unit
        self.origin = (0.0, 0.0)  # when and where the rate is counted from
        self.said = float("-inf")  # when the last line was: the first report is one
        self.shown = self.before = 0.0
        self.total = 0
        self.bar: Progress | None = None
        self._context: Any = None

    def __enter__(self) -> Steps:
        if not self.quiet and is_terminal(sys.stderr):
            self._context = progress_bar()
            self.bar = self._context.__enter__()
            self.task = self.bar.add_task(self.what, total=None, rate="", note="")
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._context is not None:
            self._context.__exit__(*exception)

    def __call__(self, done: float, total: int, note: str) -> None:
        """Show that ``done`` of ``total`` steps are over, perhaps a part of one as well."""
        if self.quiet:
            return
        if done < self.before or total != self.total:  # another count begins
            self.shown, self.before, self.total = 0, 0, total
        now, (start, first) = time.perf_counter(), self.origin
        rate = left = ""
        if self.before and done > first:  # what came before the first report, such as kept networks, has no rate
            each = max(now - start, 1e-9) / (done - first)
            rate = f"{1 / each:.1f} {self.unit}/s" if each < 5 else f"{each:.0f} s/{self.unit.removesuffix('s')}"
            left = f"{each * (total - done):.0f} s left"
        else:
            self.origin = (now, done)
        self.before = done
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total, rate=rate, note=note)
        elif done * 10 // total > self.shown or now - self.said >= MINUTE:
            self.shown, self.said = done * 10 // total, now
            whole = f"{int(10 * done + 1e-6) / 10:.1f}".removesuffix(".0")  # never more than there is
            say("  ".join(filter(None, (f"{self.what}: {whole}/{total}", note, rate, left))))

    def losses(self, kind: str, done: float, total: int, loss: float | None) -> None:
        """Show the progress of a distillation."""
        begun = done == int(done) < total and (done, total) != (self.before, self.total)
        if kind == "networks" and begun and not self.quiet and self.bar is None:
            say(f"Training network {int(done) + 1} of {total} on the real images; other runs will use it as well.")
        if kind == "images" and self.bar is None:
            return  # reading is soon over; plain lines are for the work
        notes = {"images": "real images read", "networks": "networks trained on the real images"}
        self(done, total, notes[kind] if loss is None else f"loss {loss:.4g}")

    def networks(self, kind: str, done: float, total: int) -> None:
        """Show the progress of a measurement."""
        self(done, total, kind)
