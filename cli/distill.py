"""``atomhub distill``."""

import logging
import shlex
from pathlib import Path
from typing import Any

import click

from . import complete, options
from .hub import report_push
from .output import RANK, Steps, duration, print_data, print_json, say, watched


@click.command()
@click.argument("source", shell_complete=complete.sources)
@click.option("--ipc", type=click.IntRange(min=1), required=True, metavar="N", help="Images per class.")
@click.option("--recipe", default="dance", show_default=True, metavar="NAME|FILE.toml", shell_complete=complete.recipes,
              help="How to distil; 'atomhub recipes' lists the names.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Replace a field of the recipe. Repeatable.")  # fmt: skip
@click.option("--iterations", type=click.IntRange(min=0), metavar="N", help="Short for --set iterations=N.")
@options.seed
@options.device
@click.option("--name", metavar="NAME", help="Name of the set.  [default: SOURCE-ipcN]")
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR",
              help="Folder to save the set in.  [default: the local store]")  # fmt: skip
@click.option("--push", is_flag=False, flag_value="", metavar="[REPO]",
              help="Publish the set on the Hub, as REPO or under your own account.")  # fmt: skip
@options.publishing
@click.option("--branch", metavar="BRANCH", help="Branch on the Hub to commit to.  [default: main]")
@click.option("--overwrite", is_flag=True, help="Replace an existing set.")
@click.option("--measure-every", type=click.IntRange(min=0), default=0, metavar="N",
              help="Measure a briefly trained network every N iterations.")  # fmt: skip
@click.option("--track", multiple=True, metavar="csv|tensorboard|trackio|wandb",
              help="Also send losses, rates and images there. Repeatable.")  # fmt: skip
@click.option("--memory", metavar="8GiB", help="Most memory to take.  [default: 80 % of what is free]")
@click.option("--checkpoint-every", type=click.IntRange(min=1), default=500, show_default=True, metavar="N",
              help="Iterations between checkpoints.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be done and about how long it would take, and stop.")
@click.option("--resume/--no-resume", default=None, help="Continue an unfinished run, or discard it.")
@options.reading
@options.as_json
def distill(
    source: str, ipc: int, recipe: str, settings: tuple[str, ...], iterations: int | None, output: Path | None,
    push: str | None, private: bool | None, tags: tuple[str, ...], commit_message: str | None, branch: str | None,
    dry_run: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Distil SOURCE into a few synthetic images per class.

    SOURCE is digits (built in), a known name (mnist, fashion-mnist, cifar10, cifar100, svhn, tiny-imagenet,
    imagenette), a local image, parquet or arrow folder, or a dataset on the Hub (user/name). An interrupted run
    continues with --resume. Under torchrun, the processes share the classes.

    \b
    Examples:
      atomhub distill digits --ipc 10
      atomhub distill cifar10 --ipc 10 --recipe atom --set real_batch=64 --push
      atomhub distill ./photos --ipc 1 --size 64 --test-fraction 0.2 --dry-run
      torchrun --nproc-per-node 8 -m atomhub distill cifar100 --ipc 50
    """
    import atomhub
    from atomhub.hub.push import check_account, push as publish
    from atomhub.requests import progress_bars

    how = {"private": private, "tags": tags, "commit_message": commit_message, "revision": branch}
    if push is not None:
        check_account(push or None)  # before the work
    elif given := [key for key, value in how.items() if value not in (None, ())]:
        flag = {"tags": "tag", "commit_message": "message", "revision": "branch"}.get(given[0], given[0])
        raise click.UsageError(f"--{flag} is about the Hub: add --push.")
    overrides = _overrides(settings, iterations)
    if dry_run:
        about_the_run = {key: value for key, value in options.items() if key not in _SAVING}
        _forecast(source, ipc, recipe, overrides, as_json, **about_the_run)
        return
    logging.getLogger("atomhub").setLevel(logging.WARNING if as_json else logging.INFO)
    with Steps(f"Distilling {source}, ipc {ipc}", quiet=as_json or RANK > 0) as steps:
        distilled = atomhub.distill(
            source, ipc, recipe, overrides, save=output or True, checkpoints=True,
            progress=steps.losses, **options,
        )  # fmt: skip
    url = None
    if push is not None and RANK == 0:
        with progress_bars(watched(as_json)):
            done = publish(distilled, push or None, **how)
        url = done.url
        if not as_json:
            report_push(done, as_json=False)
    made = distilled.manifest.provenance
    if as_json:
        report = {"name": distilled.name, "path": str(distilled.path), "ipc": ipc,
                  "classes": len(distilled.class_names), "recipe": made.method,
                  "iterations": getattr(made.recipe, "iterations", None), "seconds": made.seconds}  # fmt: skip
        print_json(report | ({"url": url} if url else {}))
        return
    print_data(distilled.path)
    measure = f"atomhub evaluate {shlex.quote(str(output or distilled.name))}{_probe(made.recipe, overrides)}"
    say(f"Saved {distilled.name}: {len(distilled)} images in {made.seconds:.0f} s. Measure it with: {measure}")


def _probe(recipe: Any, overrides: dict[str, Any]) -> str:
    """Return the options that measure a set which was made for linear probes, or none."""
    if not recipe.weights or not (recipe.layer or recipe.linear):
        return ""
    weights = overrides.get("weights") or recipe.weights.partition(" sha256:")[0]
    network = f"probe/{recipe.matcher}{',' if ':' in recipe.matcher else ':'}weights={weights}"
    return f" --protocol probe --network {shlex.quote(network)}"


_SAVING = ("track", "name", "overwrite", "measure_every", "checkpoint_every", "resume")


def _forecast(source: str, ipc: int, recipe: str, overrides: dict[str, Any], as_json: bool, **options: Any) -> None:
    """Print what a run would do and take."""
    from dataclasses import asdict

    import atomhub

    found = atomhub.forecast(source, ipc, recipe, overrides, **options)
    if as_json:
        print_json(asdict(found) | {"seconds": found.seconds})
        return
    print_data(found.plan)
    if found.networks:
        print_data(f"A network takes about {duration(found.network_seconds)}.")
    if found.choosing_seconds:
        print_data(f"Choosing the first images takes about {duration(found.choosing_seconds)}.")
    print_data(f"An iteration takes about {found.iteration_seconds:.2g} s.")
    print_data(f"In all: about {duration(found.seconds)}.")


def _overrides(settings: tuple[str, ...], iterations: int | None) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise click.BadParameter(f"{setting!r} is not KEY=VALUE, such as power=2.", param_hint="--set")
        overrides[key.strip()] = value.strip()
    return overrides | ({"iterations": iterations} if iterations is not None else {})
