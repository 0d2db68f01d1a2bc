"""``atomhub train``, ``soften`` and ``label``: networks, and the labels of teachers."""

from pathlib import Path
from typing import Any

import click

from . import complete, options
from .hub import fetched
from .output import Steps, print_data, print_json, say, size


@click.command()
@click.argument("name", shell_complete=complete.sets)
@click.option("--network", metavar="NAME", help="Network to train.  [default: the protocol's]")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Folder to write to.  [default: NAME-NETWORK]")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an existing network.")
@options.protocol()
@options.labels
@click.option("--push", "repo", metavar="REPO",
              help="Also publish the network on the Hub, as the model repository user/name.")  # fmt: skip
@options.private
@click.option("--test/--no-test", "tested", default=True, show_default=True,
              help="Whether to test the network on the real images, which must be at hand then.")  # fmt: skip
@options.training
def train(
    name: str, network: str | None, output: Path | None, overwrite: bool, protocol: str, repo: str | None,
    private: bool | None, tested: bool, seed: int, source: str | None, yes: bool, as_json: bool, **how: Any,
) -> None:  # fmt: skip
    """Train a network on the set NAME and save it.

    The network is measured on the real test images, and saved with its config and a model card.

    \b
    Examples:
      atomhub train digits-ipc10 --network resnet18 --output digits-resnet18
      atomhub train cifar10-ipc10 --push alice/cifar10-convnet
    """
    import atomhub
    from atomhub.files import check_target
    from atomhub.hub import models
    from atomhub.hub.push import check_account
    from atomhub.training.measure import network_for
    from atomhub.training.networks import split_spec
    from atomhub.training.protocols import find_protocol

    distilled = atomhub.load(name, labels=how["labels"] == "stored")
    shown = network_for(distilled, network, find_protocol(protocol)).spec  # of weights it has no folder
    plain = split_spec(shown)[0].replace("/", "-")
    target = (output or Path(f"{distilled.name}-{plain}")).expanduser().absolute()
    check_target(target, overwrite, models.CONFIG)
    if repo is not None:
        check_account(repo)
    source = fetched(distilled, source, yes) if tested else None
    if not as_json:
        say(f"Training {shown} on {distilled.name}, protocol {protocol} ...")
    classifier = atomhub.train_classifier(distilled, network, protocol, seed=seed, source=source, tested=tested, **how)
    models.save_model(classifier, target, overwrite)
    url = models.push_model(classifier, repo, private=private) if repo is not None else None
    result = classifier.config.result
    percent = result.score.mean if result else None
    if as_json:
        print_json({"network": classifier.config.network, "accuracy": percent, "protocol": protocol, "seed": seed,
                    "path": str(target), "url": url})  # fmt: skip
        return
    right = f"{percent:.1f} % right on the real test images" if percent is not None else "not tested"
    say(f"{classifier.config.network}: {right}. Use it with: "
        f"atomhub.load_model({repo or str(target)!r}).predict(picture)")  # fmt: skip
    print_data(url or target)


@click.command()
@click.argument("name", shell_complete=complete.sets)
@click.option("--teacher", metavar="NETWORK",
              help="Network that gives the labels.  [default: the one that the set was distilled with]")  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), metavar="N",
              help="Epochs of the teacher's training on real images.  [default: 20; of a probe 300]")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, metavar="T",
              help="Temperature of the teacher's softmax; higher is softer.")  # fmt: skip
@click.option("--name", "new", metavar="NEW", help="Name of the new set.  [default: NAME-soft]")
@click.option("--overwrite", is_flag=True, help="Replace an existing set.")
@options.training
def soften(
    name: str, teacher: str | None, new: str | None, overwrite: bool, source: str | None, yes: bool, as_json: bool,
    **how: Any,
) -> None:  # fmt: skip
    """Save a copy of the set NAME with soft labels.

    A teacher is trained on the whole real training set and gives every synthetic image its class probabilities.
    Networks learn from them with: atomhub evaluate NEW --labels soft. Such results are reported apart.

    \b
    Example:
      atomhub soften cifar10-ipc10 --teacher resnet18 --epochs 30
    """
    import atomhub
    from atomhub.files import check_target
    from atomhub.storage import formats, store

    distilled = atomhub.load(name)
    check_target(store.place(new or f"{distilled.name}-soft").absolute(), overwrite, formats.MANIFEST)
    source = fetched(distilled, source, yes)
    if not as_json:
        say(f"Training the teacher on the real images of {distilled.name} ...")
    soft = atomhub.soften(distilled, teacher, name=new, source=source, **how).save(overwrite=overwrite)
    record = soft.manifest.provenance.teacher
    if as_json:
        print_json({"name": soft.name, "teacher": record.model_dump() if record else None, "path": str(soft.path)})
        return
    if record and record.accuracy is not None:
        say(f"The teacher is {record.accuracy:.1f} % right on the real test images.")
    print_data(soft.path)


@click.command()
@click.argument("name", shell_complete=complete.sets)
@click.option("--epochs", type=click.IntRange(min=1), default=300, show_default=True, metavar="N",
              help="Epochs to store.")  # fmt: skip
@click.option("--name", "new", metavar="NEW", help="Name of the new set.  [default: NAME-labels]")
@click.option("--overwrite", is_flag=True, help="Replace an existing set.")
@options.teacher
@options.training
def label(
    name: str, new: str | None, overwrite: bool, source: str | None, yes: bool, as_json: bool, **how: Any
) -> None:  # fmt: skip
    """Save a copy of the set NAME with a teacher's labels of batches.

    Batches are those of the protocol rded, and so is the teacher, unless --teacher names another network. Whoever has
    the set then trains as under the teacher, without it and without the real images: atomhub train NEW --protocol rded
    --labels stored --no-test.

    \b
    Example:
      atomhub label photos-ipc10 --epochs 300
    """
    import atomhub
    from atomhub.files import check_target
    from atomhub.job.teachers import check_teacher
    from atomhub.storage import formats, store

    distilled = atomhub.load(name)
    check_teacher(distilled, "rded", "hard", how["teacher"])
    check_target(store.place(new or f"{distilled.name}-labels").absolute(), overwrite, formats.MANIFEST)
    source = fetched(distilled, source, yes)
    with Steps(f"Labelling {distilled.name}", quiet=as_json, unit="epochs") as steps:
        labelled = atomhub.label(distilled, name=new, source=source, progress=steps.networks, **how)
    labelled = labelled.save(overwrite=overwrite)
    about = labelled.manifest.provenance.stored
    assert about is not None
    if as_json:
        print_json({"name": labelled.name, "stored": about.model_dump(), "path": str(labelled.path)})
        return
    say(f"{about.epochs} epochs of labels of {about.teacher}: {size(about.size)}.")
    print_data(labelled.path)
