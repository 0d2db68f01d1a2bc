"""``atomhub evaluate`` and ``atomhub demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .output import (
    Steps,
    accuracy,
    device_option,
    json_option,
    print_json,
    print_table,
    say,
    seed_option,
    source_option,
)

if TYPE_CHECKING:
    from atomhub.manifest import Measurement


@click.command()
@click.argument("name")
@click.option("--network", default="convnet", show_default=True, metavar="NAME", help="Network to train.")
@click.option("--protocol", default="dm", show_default=True, metavar="dm|datadam|mix|quick", help="How to train it.")
@click.option(
    "--runs", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Networks to train."
)
@click.option("--baseline/--no-baseline", default=True, show_default=True, help="Also train on random real images.")
@click.option("--whole", is_flag=True, help="Also train on the whole real training set (slow).")
@seed_option
@device_option
@source_option
@json_option
def evaluate(
    name: str, network: str, protocol: str, runs: int, baseline: bool, whole: bool, seed: int, device: str,
    source: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Train networks on the set NAME and test them on the real test images.

    NAME is a set of the store or a folder. The result is stored in the set's manifest and card.

    \b
    Examples:
      atomhub evaluate digits-ipc10
      atomhub evaluate cifar10-ipc10 --protocol dm --runs 20 --json
    """
    import atomhub
    from atomhub.core.networks import find_network
    from atomhub.training.protocols import find_protocol

    find_network(network)
    find_protocol(protocol)
    distilled = atomhub.load(name)
    with Steps(f"Evaluating {distilled.name}", quiet=as_json, unit="networks") as steps:
        result = atomhub.evaluate(
            distilled, network, protocol, runs, baseline=_baselines(baseline, whole), seed=seed, device=device,
            source=source, progress=lambda kind, done, total: steps(done, total, kind),
        )  # fmt: skip
    if as_json:
        print_json(_report(distilled.name, result))
        return
    columns, row = ["network", "distilled"], [result.network, accuracy(result.score)]
    for kind, score in result.baseline.items():
        columns.append(BASELINES[kind])
        row.append(accuracy(score))
    title = f"{distilled.name}: test accuracy in %, mean ± std of {runs} networks, protocol {protocol}"
    print_table(columns, [row], title)
    if distilled.path is None:
        say("The set lies in the Hub's cache, so the result was not stored with it.")


BASELINES = {"random": "random real images", "whole": "whole training set", "rounded": "rounded to 8 bits"}


def _baselines(random: bool, whole: bool) -> Any:
    return ("random",) * random + ("whole",) * whole


def _report(name: str, result: Measurement) -> dict[str, Any]:
    keep = {"mean", "std", "runs"}
    return {
        "name": name,
        "protocol": result.protocol,
        "results": [{"network": result.network, **result.score.model_dump(include=keep | {"seconds"})}],
        "baseline": {kind: score.model_dump(include=keep) for kind, score in result.baseline.items()},
    }


@click.command()
@click.option(
    "--runs", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Networks to train."
)
@seed_option
@device_option
@json_option
def demo(runs: int, seed: int, device: str, as_json: bool) -> None:
    """Do the main job on the built-in digits: distil 1 and 10 images per class, keep, train, measure.

    Keeps demo-digits-ipc1 and demo-digits-ipc10, in place of those of an earlier demo. Takes two or three minutes on
    two CPU cores; needs no network and no account.

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
                "digits", ipc, seed=seed, device=device, name=name, progress=steps.losses,
                command=f"atomhub distill digits --ipc {ipc} --seed {seed} --name {name}",
            ).save(overwrite=True)  # fmt: skip
        with Steps(f"Evaluating {distilled.name}", quiet=as_json, unit="networks") as steps:
            result = atomhub.evaluate(
                distilled, "convnet", "quick", runs, baseline=_baselines(True, whole is None), seed=seed, device=device,
                progress=lambda kind, done, total: steps(done, total, kind),
            )  # fmt: skip
        whole = whole or result.baseline["whole"]  # the same for both
        reports.append(_report(distilled.name, result))
        random = result.baseline["random"]
        rows.append([str(ipc), accuracy(random), accuracy(result.score), accuracy(whole)])
    if as_json:
        print_json({"demo": reports})
        return
    title = f"digits: test accuracy in %, mean ± std of {runs} networks, protocol quick"
    print_table(["ipc", BASELINES["random"], "distilled", BASELINES["whole"]], rows, title)
    say(f"See one: {distilled.path}/preview.png. Use one: atomhub.load({distilled.name!r}).loader()")
