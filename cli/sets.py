"""``atomhub list``, ``info``, ``preview`` and ``remove``: the sets on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import complete, options
from .output import accuracy, agreed, print_data, print_json, print_table, say, size, soft

if TYPE_CHECKING:
    from atomhub.hub.find import Claim
    from atomhub.manifest import Manifest


@click.command("list")
@click.option("--remote", is_flag=True, help="Search the Hub instead; what it lists are unverified claims.")
@click.option("--update", is_flag=True, help="First fetch the newest index of names.")
@click.option("--author", metavar="USER", help="User or organisation on the Hub.")
@click.option("--source", metavar="NAME", help="Real dataset of the sets on the Hub, such as cifar10.")
@click.option("--ipc", type=click.IntRange(min=1), metavar="N", help="Images per class of the sets on the Hub.")
@click.option("--sort", type=click.Choice(["accuracy", "downloads", "recent"]),
              help="Order of the sets on the Hub.  [default: downloads]")  # fmt: skip
@click.option("--protocol", metavar="NAME", shell_complete=complete.protocols,
              help="Protocol of the accuracies.  [default: all; on the Hub dm]")  # fmt: skip
@options.as_json
def list_sets(
    remote: bool,
    update: bool,
    author: str | None,
    source: str | None,
    ipc: int | None,
    sort: Any,
    protocol: str | None,
    as_json: bool,
) -> None:
    """List the sets on this machine, or search the Hub.

    On this machine are the sets in the local store, those that come with atomhub, and those that were pulled;
    distillations that were interrupted are named below. Last come the names of the index: sets on the Hub that
    everybody may call so, each pinned to a commit and a digest.

    \b
    Examples:
      atomhub list
      atomhub list --update
      atomhub list --remote --source cifar10 --ipc 10 --sort accuracy
    """
    if remote and update:
        raise click.UsageError("--update is about names, which --remote does not need.")
    from atomhub.training.protocols import columns, find_protocol

    if protocol:
        find_protocol(protocol)
    if remote:
        _list_remote(author, source, ipc, sort or "downloads", protocol or "dm", as_json)
        return
    if author or source or ipc or sort:
        raise click.UsageError("--author, --source, --ipc and --sort search the Hub: add --remote.")
    from atomhub.hub import index, names
    from atomhub.hub.pull import pulled
    from atomhub.job.cleaning import unfinished
    from atomhub.storage import formats, store

    changes = index.refresh() if update else {}
    # where bare names mean one's own, the index has no say
    named = {} if os.environ.get("ATOMHUB_NAMESPACE") else names.known().sets
    good, bad = store.manifests()
    starters = {name: formats.read_manifest(store.STARTER / name) for name in store.starters()}
    if as_json:
        print_json({"sets": [{"name": folder.name, **_summary(m), "path": str(folder)} for folder, m in good.items()],
                    "starter": [{"name": name, **_summary(m)} for name, m in starters.items()],
                    "pulled": [{"name": p.repo, "commit": p.commit, **_summary(p.manifest)}
                               for p in pulled()],
                    "names": {name: entry.model_dump() for name, entry in named.items()}, "changes": changes,
                    "unfinished": [{"name": r.name, "iteration": r.iteration, "iterations": r.iterations,
                                    "path": str(r.path)} for r in unfinished()]})  # fmt: skip
    else:
        own = {folder.name: m for folder, m in good.items()}  # they hide starter sets of the same name
        entries = [*(own | starters | own).items(), *((f"{p.repo}@{p.commit[:8]}", p.manifest) for p in pulled())]
        measured = [columns([r for r in m.results.measured if protocol in (None, r.protocol)]) for _, m in entries]
        shown_columns = sorted({name for found in measured for name in found})
        rows = []
        for (name, m), found in zip(entries, measured, strict=True):
            shown = [accuracy(found[c].score if c in found else None) for c in shown_columns]
            made = (m.provenance.created or "-")[:10]
            stored = [str(m.format.ipc), str(m.format.bytes_per_class)]
            rows.append([name, m.provenance.source_id, *stored, m.provenance.method, *shown, made])
        figures = [f"% ({c})" for c in shown_columns]
        print_table(["name", "source", "ipc", "bytes per class", "recipe", *figures, "made"], rows)
        if named:
            listed = [
                (name, e.source, e.ipc, [c for c in e.claims if protocol in (None, c.protocol)], [e.repo])
                for name, e in named.items()
            ]
            _print_claims(listed, ["repository"], "On the Hub, by name:")
        for name, change in changes.items():
            say(f"{name}: {change}")
        if update:
            say(f"The index has {len(named)} names, {len(changes)} of them changed.")
        for run in unfinished():
            say(f"Unfinished: {run.name}, {run.iteration} of {run.iterations} iterations; distill --resume goes on.")
    for error in bad:
        say(f"Skipped: {error.message}")


def _summary(m: Manifest) -> dict[str, Any]:
    results = [r.model_dump(mode="json") for r in m.results.measured]
    return {"source": m.provenance.source_id, "ipc": m.format.ipc, "bytes_per_class": m.format.bytes_per_class,
            "recipe": m.provenance.method, "results": results}  # fmt: skip


def _list_remote(
    author: str | None, source: str | None, ipc: int | None, sort: Any, protocol: str, as_json: bool
) -> None:
    from dataclasses import asdict

    from atomhub.hub.find import search

    found = search(author, source, ipc, sort, protocol)
    if as_json:
        sets = [asdict(item) | {"claims": [c.model_dump() for c in item.claims]} for item in found]
        print_json({"sets": sets})
        return
    if not found:
        say("There are no such sets on the Hub.")
    rows = [
        (item.name, item.source, item.ipc, [c for c in item.claims if c.protocol == protocol],
         [item.recipe, size(item.size), str(item.downloads)])
        for item in found
    ]  # fmt: skip
    _print_claims(rows, ["recipe", "size", "downloads"])


def _print_claims(
    rows: Sequence[tuple[str, str, int, Sequence[Claim], list[str]]], others: list[str], title: str | None = None
) -> None:
    """Print a table of sets on the Hub: name, source, ipc, other columns, and what is claimed, never mixed."""
    from atomhub.results import shown

    claims = [{c.column: shown(c.mean, c.std, c.runs) for c in row[3] if c.column} for row in rows]
    columns = sorted({column for own in claims for column in own})
    cells = [
        [name, source, str(ipc), *more, *(own.get(c, "-") for c in columns)]
        for (name, source, ipc, _, more), own in zip(rows, claims, strict=True)
    ]
    print_table(["name", "source", "ipc", *others, *(f"claimed % ({c})" for c in columns)], cells, title)


@click.command()
@click.argument("name", shell_complete=complete.sets)
@options.as_json
def info(name: str, as_json: bool) -> None:
    """Show what is known about the set NAME, and check its files.

    \b
    Example:
      atomhub info digits-ipc10
    """
    import atomhub
    from atomhub.provenance import recipe_name
    from atomhub.recipe import Recipe

    distilled = atomhub.load(name)
    m, f, p = distilled.manifest, distilled.manifest.format, distilled.manifest.provenance
    if as_json:
        print_json(m.model_dump(mode="json") | {"path": str(distilled.path)})
        return
    shape = "x".join(map(str, f.shape[1:]))
    views = f", {f.formation}x{f.formation} views each" * (f.formation > 1)
    rows = [["name", m.name],
            ["images", f"{len(distilled)} of {shape} {f.pixels}: {len(f.class_names)} classes x ipc {f.ipc}{views}"],
            ["size", f"{f.bytes} bytes, {f.bytes_per_class} per class"],
            ["classes", ", ".join(f.class_names)],
            ["normalisation", f"mean {list(f.mean)}, std {list(f.std)}"]]  # fmt: skip
    if s := p.source:
        rows.append(["source", f"{s.id} ({s.train_images} training, {s.test_images} test images)"])
    if p.imported:
        rows.append(["imported from", p.imported.file])
    elif p.recipe:
        r = p.recipe
        said = f"{r.describe()}: {r.iterations} iterations" if isinstance(r, Recipe) else recipe_name(r)
        rows.append(["recipe", f"{said}, seed {p.seed}"])
    rows += [["taken from", part.name] for part in p.parts]
    if p.stored:
        there = "" if distilled.stored else ", not here"
        rows.append(["stored labels", f"{p.stored.epochs} epochs by {p.stored.teacher}, {size(p.stored.size)}{there}"])
    if p.created:
        where = f" in {p.seconds:.0f} s on {p.device}" if p.device and p.seconds is not None else ""
        rows.append(["made", p.created + where])
    if p.command:
        rows.append(["command", p.command])
    for result in m.results.measured:
        random = result.baseline.get("random")
        beside = f", random real images {accuracy(random)}" if random else ""
        how = f"{result.network}, {result.protocol}{soft(result)}, networks: {result.score.runs}"
        rows.append(["accuracy in %", f"{accuracy(result.score)}; {how}{beside}"])
    rows += [["path", str(distilled.path)], ["files", "all digests verified"]]
    print_table([], rows)


@click.command()
@click.argument("name", shell_complete=complete.stored)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.png",
              help="File to write.  [default: NAME.png]")  # fmt: skip
@click.option("--ipc", type=click.IntRange(min=1), default=10, show_default=True, metavar="N",
              help="Most images per class to show.")  # fmt: skip
@options.as_json
def preview(name: str, output: Path | None, ipc: int, as_json: bool) -> None:
    """Write a picture of the set NAME, class by class.

    \b
    Example:
      atomhub preview digits-ipc10 --output digits.png
    """
    import io

    import atomhub
    from atomhub.errors import UsageError
    from atomhub.files import replace_file

    distilled = atomhub.load(name)
    target = output or Path(f"{distilled.name}.png")
    if target.is_file() and not target.read_bytes().startswith(b"\x89PNG"):
        raise UsageError(f"{target} is there already, and is no PNG.", "Choose another file.")
    buffer = io.BytesIO()
    picture = distilled.preview(ipc)
    picture.save(buffer, "PNG")
    replace_file(target, buffer.getvalue())
    if as_json:
        print_json({"name": distilled.name, "path": str(target), "width": picture.width, "height": picture.height})
    else:
        print_data(target)


@click.command()
@click.argument("name", shell_complete=complete.stored)
@options.yes
def remove(name: str, yes: bool) -> None:
    """Delete the set NAME from the local store.

    \b
    Example:
      atomhub remove digits-ipc1 --yes
    """
    from atomhub.storage import store

    folder = store.check_stored(name)
    if not agreed(f"Delete {folder}?", yes, "whether to delete it"):
        say("Kept.")
        return
    store.remove(name)
    say(f"Deleted {folder}.")


@click.command()
@click.option("--only", multiple=True, type=click.Choice(["decoded", "networks", "runs", "evaluations", "leftovers"]),
              help="Delete these alone. Repeatable.  [default: all]")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="List them, and delete nothing.")
@options.yes
@options.as_json
def clean(only: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete what can be made again.

    That is decoded images, trained networks, checkpoints of runs, what there is of unfinished evaluations, and
    leftovers of processes that were killed. Sets stay, and so do runs that go on.

    \b
    Examples:
      atomhub clean --dry-run
      atomhub clean --only decoded --only leftovers --yes
    """
    from atomhub.job import cleaning

    things = [thing for thing in cleaning.removable() if not only or thing.kind in only]
    total = sum(thing.size for thing in things)
    if not as_json:
        print_table(["what", "of", "size"], [[t.kind, t.name, size(t.size)] for t in things])
        say(f"{len(things)} things of {size(total)} in all.")
    failed = []
    if things and not dry_run:
        if not agreed("Delete them?", yes, "whether to delete them"):
            say("Kept.")
            return
        failed = cleaning.clean(things)
        for error in failed:
            say(f"Kept: {error.message}")
        if not as_json:
            say("Deleted.")
    if as_json:
        listed = [{"kind": t.kind, "name": t.name, "path": str(t.path), "size": t.size} for t in things]
        print_json({"deleted": not dry_run, "size": total, "things": listed, "kept": [e.message for e in failed]})
