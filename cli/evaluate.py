"""``atomhub evaluate`` and ``atomhub demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from . import complete, options
from .hub import fetched
from .output import Steps, accuracy, print_json, print_table, say, soft

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atomhub.dataset import DistilledDataset
    from atomhub.results import Measurement


@click.command()
@click.argument("name", shell_complete=complete.sets)
@click.option("--network", "networks", multiple=True, default=(None,), metavar="NAME",
              help="Network, such as convnet:width=64,norm=batch. Repeatable.  [default: the protocol's]")  # fmt: skip
@options.protocol()
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True, metavar="N",
              help="Number of networks to train.")  # fmt: skip
@click.option("--baseline/--no-baseline", default=True, show_default=True,
              help="Also train on random real images, as many as the set has.")  # fmt: skip
@click.option("--herding", is_flag=True, help="Also train on the real images nearest the class means.")
@click.option("--whole", is_flag=True, help="Also train on the whole real training set, which is slow.")
@click.option("--per-class", is_flag=True, help="Also show the accuracy of every class, and what it is mistaken for.")
@options.labels
@options.teacher
@options.training
def evaluate(
    name: str, networks: tuple[str | None, ...], protocol: str, runs: int, baseline: bool, herding: bool, whole: bool,
    per_class: bool, labels: Any, source: str | None, yes: bool, as_json: bool, **how: Any,
) -> None:  # fmt: skip
    """Train networks on the set NAME and test them on real images.

    The results are kept in the manifest and the card of the set, if it is in the local store or a folder. Networks are
    convnet, mlp, lenet, alexnet, vgg11, resnet18, vit, and torchvision's classifiers. A protocol of the literature
    measures the ConvNet of its published figures: batch norm in datadam, instance norm in the others.

    \b
    Examples:
      atomhub evaluate digits-ipc10
      atomhub evaluate cifar10-ipc10 --network convnet --network resnet18 --network vit
      atomhub evaluate cifar10-ipc10 --protocol dm --runs 20 --json
    """
    import atomhub
    from atomhub.job.teachers import check_teacher
    from atomhub.storage import store
    from atomhub.training.measure import network_for
    from atomhub.training.protocols import find_protocol

    rules = find_protocol(protocol)
    distilled = atomhub.load(name, labels=labels == "stored")
    for network in networks:  # a wrong name is reported before the work
        network_for(distilled, network, rules)
    check_teacher(distilled, protocol, labels, how["teacher"])
    source = fetched(distilled, source, yes)
    results = []
    for number, network in enumerate(networks, 1):
        which = f", {network} ({number}/{len(networks)})" if len(networks) > 1 else ""
        with Steps(f"Evaluating {distilled.name}{which}", quiet=as_json, unit="networks") as steps:
            result = atomhub.evaluate(
                distilled, network, protocol, runs, baseline=_baselines(baseline, whole, herding), labels=labels,
                per_class=per_class, progress=steps.networks, source=source, **how,
            )  # fmt: skip
        results.append(result)
    if as_json:
        print_json(_report(distilled, results))
        return
    intervals = [f"± {r.score.interval:.1f}" if r.score.runs > 1 else "-" for r in results]
    rows = [["distilled", *(accuracy(r.score) for r in results)], ["95 % interval of the mean", *intervals]]
    rows += [[BASELINES[kind], *(accuracy(r.baseline[kind]) for r in results)] for kind in results[0].baseline]
    for said, points in (("above random (DD-Ranking's IOR)", [r.ior for r in results]),
                         ("below the whole set (its HLR)", [r.hlr for r in results])):  # fmt: skip
        if any(p is not None for p in points):
            rows.append([said, *("-" if p is None else f"{p:.1f} points" for p in points)])
    rows.append(["time (distilled)", *(f"{r.score.seconds:.0f} s" for r in results)])
    title = (
        f"{distilled.name}: accuracy in % on {results[0].test_images} real test images after the last epoch, "
        f"mean ± std over the networks ({runs}), protocol {protocol}{soft(results[0])}, "
        f"{distilled.manifest.format.bytes_per_class} bytes per class"
    )
    print_table(["trained on", *(r.network for r in results)], rows, title)
    if per_class:
        print_table(["class", *(r.network for r in results)], _by_class(distilled, results), "Accuracy by class, in %:")
    if not store.keeps_results(distilled):
        say("The set is not in the store, so the result was not kept.")


def _by_class(distilled: DistilledDataset, results: Sequence[Measurement]) -> list[list[str]]:
    names, rows = distilled.class_names, []
    for k, name in enumerate(names):
        found = [r.score.of_class(k) for r in results]
        taken = (f" (else mostly {names[other]})" if other is not None else "" for _, other in found)
        rows.append([name, *(f"{percent:.1f}{said}" for (percent, _), said in zip(found, taken, strict=True))])
    return rows


BASELINES = {"random": "random real images", "herding": "herding", "whole": "whole training set",
             "rounded": "rounded to 8 bits"}  # fmt: skip


def _baselines(random: bool, whole: bool, herding: bool = False) -> Any:
    return ("random",) * random + ("herding",) * herding + ("whole",) * whole


def _report(distilled: DistilledDataset, results: Sequence[Measurement]) -> dict[str, Any]:
    keep = {"mean", "std", "runs"}

    def summary(result: Measurement) -> dict[str, Any]:
        score = result.score
        interval = round(score.interval, 4) if score.runs > 1 else None
        baseline = {kind: s.model_dump(include=keep) for kind, s in result.baseline.items()}
        return {"network": result.network, "labels": result.labels, **score.model_dump(include=keep | {"seconds"}),
                "interval95": interval, "ior": result.ior, "hlr": result.hlr, "test_images": result.test_images,
                "baseline": baseline,
                **({"teacher": result.teacher} if result.teacher else {}),
                **({"confusion": score.confusion} if score.confusion else {})}  # fmt: skip

    return {"name": distilled.name, "bytes_per_class": distilled.manifest.format.bytes_per_class,
            "protocol": results[0].protocol, "results": [summary(r) for r in results]}  # fmt: skip


@click.command()
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True, metavar="N",
              help="Number of networks to train.")  # fmt: skip
@options.seed
@options.device
@options.as_json
def demo(runs: int, seed: int, device: str, as_json: bool) -> None:
    """Distil the built-in digits, train on the result, and measure it.

    Saves demo-digits-ipc1 and demo-digits-ipc10, with 1 and 10 images per class, in place of those of an earlier demo.
    Takes three to six minutes on two CPU cores, and needs neither internet nor an account.

    \b
    Example:
      atomhub demo
    """
    import atomhub

    reports, rows, whole = [], [], None
    for ipc in (1, 10):
        with Steps(f"Distilling digits, ipc {ipc}", quiet=as_json) as steps:
            name = f"demo-digits-ipc{ipc}"
            distilled = atomhub.distill(
                "digits", ipc, seed=seed, device=device, name=name, save=True, overwrite=True, progress=steps.losses
            )
        with Steps(f"Evaluating {distilled.name}", quiet=as_json, unit="networks") as steps:
            result = atomhub.evaluate(
                distilled, "convnet", "quick", runs, baseline=_baselines(True, whole is None), seed=seed, device=device,
                progress=steps.networks,
            )  # fmt: skip
        whole = whole or result.baseline["whole"]  # the same for both
        reports.append(_report(distilled, [result]))
        random = result.baseline["random"]
        rows.append([str(ipc), accuracy(random), accuracy(result.score), accuracy(whole)])
    if as_json:
        print_json({"demo": reports})
        return
    title = f"digits: test accuracy in %, mean ± std of {runs} networks, protocol quick, {result.network}"
    print_table(["ipc", BASELINES["random"], "distilled", BASELINES["whole"]], rows, title)
    say(f"See one: {distilled.path}/preview.png. Use one: atomhub.load({distilled.name!r}).loader()")
