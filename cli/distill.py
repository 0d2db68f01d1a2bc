"""``atomhub distill``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from .hub import report_push
from .output import Steps, device_option, json_option, print_data, print_json, say, seed_option, watched


@click.command()
@click.argument("source")
@click.option("--ipc", type=click.IntRange(min=1), required=True, metavar="N", help="Images per class.")
@click.option("--recipe", default="atom", show_default=True, metavar="NAME|FILE.toml", help="See: atomhub recipes")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Replace a field of the recipe. Repeatable."
)
@click.option("--iterations", type=click.IntRange(min=1), metavar="N", help="Short for --set iterations=N.")
@seed_option
@device_option
@click.option("--name", help="Name of the set.  [default: SOURCE-ipcN]")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Write the set to this folder, not the store."
)
@click.option("--push", is_flag=False, flag_value="", metavar="[REPO]",
              help="Publish the set on the Hub, by default under your own account.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a set of the same name.")
@click.option("--measure-every", type=click.IntRange(min=0), default=0, metavar="N",
              help="Measure one quick network every N iterations, for the curve.")  # fmt: skip
@click.option("--memory", metavar="8GiB", help="Limit for the work of an iteration.  [default: as fast as possible]")
@click.option("--checkpoint-every", type=click.IntRange(min=1), default=500, show_default=True, metavar="N",
              help="Iterations between checkpoints.")  # fmt: skip
@click.option("--resume/--no-resume", default=None, help="Go on with an unfinished run of this name, or start it anew.")
@click.option("--size", type=int, metavar="PIXELS", help="Resize the real images to this side.")
@click.option("--image-column", metavar="NAME", help="Column of the images.")
@click.option("--label-column", metavar="NAME", help="Column of the classes.")
@click.option("--train-split", metavar="NAME", help="Split or folder to distil.")
@click.option("--test-split", metavar="NAME", help="Split or folder to test on.")
@click.option("--test-fraction", type=float, metavar="F", help="Set this share of a single split aside for tests.")
@click.option("--config", metavar="NAME", help="Configuration of a Hub data set.")
@click.option("--revision", metavar="REV", help="Revision of a Hub data set.")
@click.option("--skip-unreadable", is_flag=True, help="Leave unreadable images out.")
@click.option("--flip/--no-flip", default=None, help="Whether a mirrored image keeps its class.")
@json_option
def distill(
    source: str, ipc: int, recipe: str, settings: tuple[str, ...], iterations: int | None, seed: int, device: str,
    name: str | None, output: Path | None, push: str | None, overwrite: bool, measure_every: int, memory: str | None,
    checkpoint_every: int, resume: bool | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Distil SOURCE into a few synthetic images per class and keep them.

    SOURCE is digits (built in), a known name (mnist, fashion-mnist, cifar10, cifar100, svhn, tiny-imagenet,
    imagenette), a local image, parquet or arrow folder, or a Hub data set (user/name). A run that was interrupted goes
    on with --resume. Under torchrun, processes share the classes.

    \b
    Examples:
      atomhub distill digits --ipc 10
      atomhub distill cifar10 --ipc 10 --recipe atom --iterations 2000 --push
      atomhub distill ./photos --ipc 1 --size 64 --test-fraction 0.2
      torchrun --nproc-per-node 8 -m atomhub distill cifar100 --ipc 50
    """
    import atomhub
    from atomhub.devices import find_device, first_of_machine, parse_size, processes
    from atomhub.files import check_target, home
    from atomhub.hub import client, layout, remote, store
    from atomhub.pipeline import choose_recipe
    from atomhub.sources import SourceOptions

    overrides = _overrides(settings, iterations)
    chosen = choose_recipe(recipe, source, overrides)
    where = find_device(device)
    if push is not None:
        remote.check_account(push or None)  # before the work
    if memory is not None:
        parse_size(memory)
    if name is not None:
        store.place(name)  # an impossible name is told before the work
    with processes(where) as team:
        with first_of_machine(team):
            real = atomhub.open_source(source, SourceOptions(**options))
        for note in real.info.notes:
            say(f"Note: {note}")
        if chosen.pool:
            say(f"Networks first: a pool of {chosen.pool}, trained on the real images unless it is in the cache.")
        name = name or f"{real.name}-ipc{ipc}"
        target = (output or store.place(name)).expanduser().absolute()
        check_target(target, overwrite, layout.MANIFEST)
        with Steps(f"Distilling {name}", quiet=as_json or team.rank > 0) as steps:
            distilled = atomhub.distill(
                real, ipc, chosen, seed=seed, device=device, memory=memory, name=name, measure_every=measure_every,
                checkpoints=home() / "runs" / name, checkpoint_every=checkpoint_every, resume=resume,
                progress=steps.losses, command=_command(real.info.id, ipc, recipe, overrides, seed, options),
            )  # fmt: skip
        if team.rank == 0:
            distilled = distilled.save(target, overwrite)
    manifest = distilled.manifest
    if push is not None and team.rank == 0:
        with client.progress_bars(watched(as_json)):
            report_push(remote.push(distilled, push or None), as_json=False)
    if as_json:
        print_json({"name": name, "path": str(target), "ipc": ipc, "classes": len(distilled.class_names),
                    "recipe": manifest.recipe.name, "iterations": manifest.recipe.iterations,
                    "seconds": manifest.seconds})  # fmt: skip
        return
    print_data(target)
    say(f"Kept {name}: {len(distilled)} images in {manifest.seconds:.0f} s. How good is it? "
        f"atomhub evaluate {shlex.quote(str(output or name))}")  # fmt: skip


def _overrides(settings: tuple[str, ...], iterations: int | None) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise click.BadParameter(f"{setting!r} is not KEY=VALUE, such as power=2.", param_hint="--set")
        overrides[key.strip()] = value.strip()
    return overrides | ({"iterations": iterations} if iterations is not None else {})


def _command(source: str, ipc: int, recipe: str, overrides: dict[str, Any], seed: int, options: dict[str, Any]) -> str:
    """Return the command to record: without folders of this machine, with every choice that changes the images."""
    words = ["atomhub", "distill", source.removeprefix("folder:"), "--ipc", str(ipc), "--recipe", Path(recipe).name]
    for key, value in overrides.items():
        words += ["--set", f"{key}={value}"]
    words += ["--seed", str(seed)]
    for key, value in options.items():
        flag = "--" + key.replace("_", "-")
        if value is False and key == "flip":
            words.append("--no-flip")
        elif value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return shlex.join(words)
