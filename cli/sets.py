"""``atomhub list``, ``info``, ``preview`` and ``remove``: the sets on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .output import accuracy, is_terminal, json_option, print_json, print_table, say, size, soft


@click.command("list")
@click.option("--remote", is_flag=True, help="Search the Hub instead; what it lists are claims.")
@click.option("--author", metavar="USER", help="Of sets on the Hub.")
@click.option("--source", metavar="NAME", help="Of sets on the Hub, such as cifar10.")
@click.option("--ipc", type=click.IntRange(min=1), metavar="N", help="Of sets on the Hub.")
@click.option("--sort", type=click.Choice(["accuracy", "downloads", "recent"]), default="downloads", show_default=True,
              help="Of sets on the Hub.")  # fmt: skip
@json_option
def list_sets(remote: bool, author: str | None, source: str | None, ipc: int | None, sort: Any, as_json: bool) -> None:
    """List the sets in the store, those that come with atomhub and those that were pulled, or search the Hub.

    \b
    Examples:
      atomhub list
      atomhub list --remote --source cifar10 --ipc 10 --sort accuracy
    """
    if remote:
        _list_remote(author, source, ipc, sort, as_json)
        return
    if author or source or ipc:
        raise click.UsageError("--author, --source and --ipc search the Hub: add --remote.")
    from atomhub.hub import layout, store
    from atomhub.hub import remote as hub

    good, bad = store.manifests()
    starter = {name: layout.read_manifest(store.STARTER / name) for name in store.starters()}
    pulled = hub.pulled()
    if as_json:
        print_json({"sets": [{"name": folder.name, "source": m.source.id, "ipc": m.ipc, "recipe": m.recipe.name,
                              "results": [r.model_dump(mode="json") for r in m.results],
                              "path": str(folder)} for folder, m in good.items()],
                    "starter": [{"name": name, "source": m.source.id, "ipc": m.ipc} for name, m in starter.items()],
                    "pulled": [{"name": p.repo, "commit": p.commit, "source": p.manifest.source.id,
                                "ipc": p.manifest.ipc} for p in pulled]})  # fmt: skip
    else:
        rows = []
        entries = [(folder.name, m) for folder, m in good.items()]
        mine = [name for name, _ in entries]  # they go first
        entries += [(name, m) for name, m in starter.items() if name not in mine]
        entries += [(f"{p.repo}@{p.commit[:8]}", p.manifest) for p in pulled]
        for name, m in entries:
            last = next((r for r in reversed(m.results) if r.labels == "hard"), None)
            measured = f"{accuracy(last.score)} ({last.protocol}{soft(last)})" if last else "not measured"
            rows.append([name, m.source.id, str(m.ipc), m.recipe.name, measured, m.created[:10]])
        print_table(["name", "source", "ipc", "recipe", "accuracy %", "made"], rows)
    for error in bad:
        say(f"Skipped: {error.message}")


def _list_remote(author: str | None, source: str | None, ipc: int | None, sort: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from atomhub.hub import remote

    found = remote.search(author, source, ipc, sort)
    if as_json:
        print_json({"sets": [asdict(item) for item in found]})
        return
    if not found:
        say("No such sets on the Hub.")
    rows = []
    for item in found:
        claim = f"{item.claim['mean']:.1f} ± {item.claim['std']:.1f} ({item.claim['protocol']})" if item.claim else "-"
        rows.append([item.name, item.source, str(item.ipc), item.recipe, claim, size(item.size), str(item.downloads)])
    print_table(["name", "source", "ipc", "recipe", "claimed accuracy %", "size", "downloads"], rows)


@click.command()
@click.argument("name")
@json_option
def info(name: str, as_json: bool) -> None:
    """Show what is known about the set NAME, and verify its files.

    \b
    Example:
      atomhub info digits-ipc10
    """
    import atomhub

    distilled = atomhub.load(name)
    m, source = distilled.manifest, distilled.manifest.source
    if as_json:
        print_json(m.model_dump(mode="json") | {"path": str(distilled.path)})
        return
    shape = "x".join(map(str, distilled.images.shape[1:]))
    rows = [
        ["name", m.name],
        [
            "images",
            f"{len(distilled)} of {shape} {m.recipe.pixels}: {len(m.class_names)} classes x ipc {m.ipc}"
            + f", {m.formation}x{m.formation} views each" * (m.formation > 1),
        ],
        ["classes", ", ".join(m.class_names)],
        ["source", f"{source.id} ({source.train_images} training, {source.test_images} test images)"],
        ["normalisation", f"mean {list(m.mean)}, std {list(m.std)}"],
        [
            "recipe",
            f"imported from {m.imported.file}"
            if m.imported
            else f"{m.recipe.describe()}: {m.recipe.iterations} iterations, seed {m.seed}",
        ],
        ["made", f"{m.created} in {m.seconds:.0f} s on {m.device}"],
        ["command", m.command],
    ]
    for r in m.results:
        random = f", random real images {accuracy(r.baseline['random'])}" if "random" in r.baseline else ""
        how = f"{r.network}, {r.protocol}{soft(r)}, {r.score.runs} networks"
        rows.append(["accuracy", f"{accuracy(r.score)} % ({how}){random}"])
    rows += [["path", str(distilled.path)], ["files", "all digests verified"]]
    print_table([], rows)


@click.command()
@click.argument("name")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.png",
              help="Where to write the picture.  [default: NAME.png]")  # fmt: skip
@click.option(
    "--ipc", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Images of a class."
)
def preview(name: str, output: Path | None, ipc: int) -> None:
    """Write a picture of the set NAME, class by class.

    \b
    Example:
      atomhub preview digits-ipc10 --output digits.png
    """
    import io

    import atomhub
    from atomhub.files import replace_file

    distilled = atomhub.load(name)
    target = output or Path(f"{distilled.name}.png")
    buffer = io.BytesIO()
    distilled.preview(ipc).save(buffer, "PNG")
    replace_file(target, buffer.getvalue())
    click.echo(target)


@click.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def remove(name: str, yes: bool) -> None:
    """Delete the set NAME from the store.

    \b
    Example:
      atomhub remove digits-ipc1 --yes
    """
    from atomhub.hub import store

    folder = store.check_stored(name)
    if not yes:
        try:
            agreed = click.confirm(f"Delete {folder}?", err=True)
        except click.Abort:
            if is_terminal(sys.stdin):
                raise
            raise click.UsageError("There is nobody to ask whether to delete it: say --yes.") from None
        if not agreed:
            say("Kept.")
            return
    store.remove(name)
    say(f"Deleted {folder}.")
