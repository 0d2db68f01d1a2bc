"""``atomhub search``: architecture search with a distilled set as the proxy."""

from pathlib import Path
from typing import Any

import click

from . import complete, options
from .hub import fetched
from .output import Steps, print_json, print_table, say


@click.command()
@click.argument("name", shell_complete=complete.sets)
@click.option("--space", default="convnet-720", show_default=True, metavar="NAME|FILE.toml",
              help="Networks to rank: all combinations of some options.")  # fmt: skip
@click.option("--budget", type=click.IntRange(min=1), metavar="N",
              help="Number of networks to try, drawn at random.  [default: all]")  # fmt: skip
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, metavar="K",
              help="Number of networks to show.")  # fmt: skip
@click.option("--check", type=click.IntRange(min=0), default=0, show_default=True, metavar="M",
              help="Number of networks to train on the whole real set as well, spread over the ranking.")  # fmt: skip
@click.option("--check-epochs", type=click.IntRange(min=1), default=20, show_default=True, metavar="N",
              help="Epochs of the training on the whole real set.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Folder for the results; an unfinished search there continues.  [default: NAME-search]")  # fmt: skip
@options.protocol(default="quick")
@options.training
def search(
    name: str, space: str, budget: int | None, top: int, output: Path | None, source: str | None, yes: bool,
    as_json: bool, **how: Any,
) -> None:  # fmt: skip
    """Rank network architectures by what they learn from the set NAME.

    Networks are ranked on real training images; the test images choose nothing. With --check, some are also trained on
    the whole real set and measured on the test images, which shows how good the ranking is. Every result is kept as it
    comes (results.jsonl), so an interrupted search continues where it was.

    \b
    Examples:
      atomhub search digits-ipc10 --budget 24 --check 12
      atomhub search cifar10-ipc10 --space mine.toml --top 5
    """
    from dataclasses import asdict

    import atomhub
    from atomhub.errors import check_installed
    from atomhub.job.search import plot

    if how["check"]:
        check_installed("The picture of the checks", "distill", "matplotlib")
    distilled = atomhub.load(name)
    source = fetched(distilled, source, yes)
    folder = output or Path(f"{distilled.name}-search")
    with Steps(f"Searching with {distilled.name}", quiet=as_json, unit="networks") as steps:
        log = folder / "results.jsonl"
        found = atomhub.search(distilled, space, budget, log=log, progress=steps.networks, source=source, **how)
    checks = [c for c in found.checks if not c.failed]
    checked = {c.network: c for c in checks}
    saved = None
    if checks:
        plot(found, folder / "check.png")
        proxy = {c.network: c.seconds for c in found.candidates}
        saved = {"proxy_seconds": round(sum(proxy[c.network] for c in checks), 2),
                 "real_seconds": round(sum(c.seconds for c in checks), 2)}  # fmt: skip
    if as_json:
        print_json({"name": found.name, "tried": len(found.candidates), "correlation": found.correlation,
                    "regret": found.regret, "images": found.images, "time": saved,
                    "top": [asdict(c) for c in found.candidates[:top]],
                    "checks": [asdict(c) for c in found.checks], "path": str(folder)})  # fmt: skip
        return
    rows = []
    for place, c in enumerate(found.candidates[:top], 1):
        real = f"{checked[c.network].accuracy:.1f}" if c.network in checked else "-"
        rows.append([str(place), c.network, f"{c.parameters:,}", f"{c.accuracy:.1f}", real])
    rules = f"protocol {how['protocol']}, seed {how['seed']}"
    title = f"{found.name}: the best of {len(found.candidates)} networks, in % ({rules})"
    print_table(["", "network", "parameters", "real training images", "test, trained on the whole set"], rows, title)
    if failed := [(c.network, c.failed) for some in (found.candidates, found.checks) for c in some if c.failed]:
        say(f"{len(failed)} could not be trained, such as {failed[0][0]}: {failed[0][1]}")
    if saved:
        regret = "?" if found.regret is None else f"{found.regret:.1f}"
        rank = found.agreement or "they are too few for a rank correlation"
        say(
            f"{len(checks)} networks were also trained on all {found.images[1]} real images: {rank}, and "
            f"the chosen network is {regret} points below the best. On the {found.images[0]} distilled images these "
            f"networks took {saved['proxy_seconds']:.0f} s in place of {saved['real_seconds']:.0f} s."
        )
        say(f"See {folder / 'check.png'}.")
