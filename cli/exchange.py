"""``atomhub export`` and ``atomhub import``: files of other projects and tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .output import json_option, print_data, print_json, say


@click.command("export")
@click.argument("name")
@click.option("--format", "format_", required=True, type=click.Choice(["ddranking", "dc", "images", "npz"]),
              help="ddranking: tensors and config.yaml; dc: one .pt file as DC, DM and DataDAM write; "
              "images: PNGs by class; npz: NumPy.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Where to.  [default: NAME-FORMAT]")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@json_option
def export_set(name: str, format_: Any, output: Path | None, overwrite: bool, as_json: bool) -> None:
    """Write the set NAME as another project or tool wants it.

    \b
    Examples:
      atomhub export cifar10-ipc10 --format ddranking
      atomhub export digits-ipc1 --format images --output pictures
    """
    import atomhub
    from atomhub.hub import exchange

    distilled = atomhub.load(name)
    folder = exchange.export(distilled, format_, output or Path(f"{distilled.name}-{format_}"), overwrite)
    if as_json:
        print_json({"name": distilled.name, "format": format_, "path": str(folder)})
        return
    say(f"{distilled.name}: {exchange.FORMATS[format_]}.")
    print_data(folder)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--like", required=True, metavar="SOURCE", help="The real dataset it was distilled from, as for distill.")
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE",
              help="File of the labels.  [default: labels*.pt beside images*.pt]")  # fmt: skip
@click.option("--space", type=click.Choice(["auto", "pixels", "normalized", "zca"]), default="auto", show_default=True,
              help="What its numbers are.")  # fmt: skip
@click.option("--formation", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Views a side in each image (IDC, DREAM, DANCE, NCFM: 2); they are decoded.")  # fmt: skip
@click.option("--network", default="convnet", show_default=True, metavar="NAME",
              help="ConvNet it was made with: convnet:width=128,depth=3,norm=instance.")  # fmt: skip
@click.option("--size", type=click.IntRange(min=2), metavar="PIXELS", help="Side of the source's images.")
@click.option(
    "--test-fraction", type=float, metavar="F", help="Set aside for tests, where the source has no test split."
)
@click.option("--name", metavar="NAME", help="Name of the set.  [default: <source>-ipc<N>-<file>]")
@click.option("--overwrite", is_flag=True, help="Replace a set of that name.")
@json_option
def import_set(
    file: Path, like: str, labels: Path | None, space: Any, formation: int, network: str, size: int | None,
    test_fraction: float | None, name: str | None, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Read the synthetic images another project published in FILE, and keep them as a set of our own format.

    Known are the files of DC, DSA, DM, DataDAM, MTT, IDC, DREAM, DANCE and NCFM. Nothing in a file is run: one that
    holds more than tensors and numbers is refused.

    \b
    Examples:
      atomhub import res_DM_CIFAR10_ConvNet_10ipc.pt --like cifar10 --name cifar10-ipc10-dm
      atomhub import data_best.pt --like cifar10 --formation 2
    """
    from atomhub.errors import UsageError
    from atomhub.hub import exchange
    from atomhub.training.zoo import split_spec

    plain, options = split_spec(network)
    if plain != "convnet" or set(options) - {"width", "depth", "norm"}:
        raise UsageError(f"The network cannot be {network!r}.", "Use convnet:width=128,depth=3,norm=instance.")
    distilled = exchange.import_set(
        file,
        like,
        labels=labels,
        space=space,
        formation=formation,
        name=name,
        network=options,
        size=size,
        test_fraction=test_fraction,
    ).save(overwrite=overwrite)
    found = distilled.manifest.imported
    if as_json:
        print_json({"name": distilled.name, "ipc": distilled.manifest.ipc, "path": str(distilled.path),
                    "imported": found.model_dump() if found else None})  # fmt: skip
        return
    if found:
        say(
            f"{distilled.name}: {distilled.manifest.ipc} images a class, read as {found.space}; {found.clipped:.2%} of "
            f"the pixel values were clipped. How good is it? atomhub evaluate {distilled.name}"
        )
    print_data(distilled.path)
