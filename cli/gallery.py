"""``atomhub gallery``."""

from pathlib import Path

import click

from .output import Steps, print_data, print_json, say


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("gallery"), show_default=True, metavar="DIR",
              help="Folder to write the pages to.")  # fmt: skip
@click.option("--remote", is_flag=True, help="Show the sets on the Hub in place of those on this machine.")
@click.option("--author", metavar="NAME", help="With --remote: only those of this user or organisation.")
@click.option("--overwrite", is_flag=True, help="Replace a gallery.")
@click.option("--push", is_flag=False, flag_value="", metavar="[SPACE]",
              help="Publish the pages as a static Space, SPACE or atomhub-gallery under your own account.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def gallery(
    output: Path, remote: bool, author: str | None, overwrite: bool, push: str | None, as_json: bool
) -> None:  # fmt: skip
    """Write pages about distilled sets: a gallery and a leaderboard.

    They show the sets of the local store and those that come with atomhub, or with --remote those on the Hub, of which
    the manifests and pictures alone are fetched. The pages need no server and ask nobody for anything: open index.html.

    \b
    Examples:
      atomhub gallery
      atomhub gallery --remote --author alice --output alice --push
    """
    from atomhub.gallery.gather import local_sets, remote_sets
    from atomhub.gallery.pages import publish_gallery, write_gallery

    if author and not remote:
        raise click.UsageError("--author is about the Hub: add --remote.")
    if push is not None:
        from atomhub.hub.push import check_account

        check_account(push or None)  # before the work
    with Steps("Fetching manifests and pictures", quiet=as_json or not remote, unit="sets") as steps:
        entries, broken = remote_sets(author, progress=steps) if remote else local_sets()
    index = write_gallery(entries, broken, output, overwrite)
    url = publish_gallery(index.parent, push or None) if push is not None else None
    if as_json:
        print_json(
            {"path": str(index), "sets": [e.name for e in entries], "broken": [b.name for b in broken], "url": url}
        )
        return
    print_data(index)
    for one in broken:
        say(f"Not shown: {one.name}: {one.reason}")
    say(f"{len(entries)} sets. " + (f"Published: {url}" if url else f"Open it in a browser: {index.as_uri()}"))
