"""``atomhub push``, ``pull`` and ``verify``: sets on the Hub, and whether to trust them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import complete, options
from .output import Steps, agreed, print_data, print_json, print_table, say, size, soft, watched

if TYPE_CHECKING:
    from atomhub.dataset import DistilledDataset
    from atomhub.hub.push import Pushed
    from atomhub.results import Score


_WIDE = 5.0
"""Points: where a claim may be as far off unseen, `verify` says so."""


@click.command()
@click.argument("name", shell_complete=complete.sets)
@click.argument("repo", required=False)
@options.publishing
@click.option("--revision", "--branch", metavar="BRANCH", help="Branch to commit to.  [default: main]")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--collection", is_flag=True, help="Put it into your collection 'Distilled SOURCE', made if need be.")
@click.option("--dry-run", is_flag=True, help="Show the files and the card, and change nothing.")
@options.as_json
def push(name: str, repo: str | None, collection: bool, dry_run: bool, as_json: bool, **how: Any) -> None:
    """Publish the set NAME on the Hugging Face Hub in one commit.

    REPO is user/name, by default NAME under your own account. A repository that does not exist is created. Log in once
    with: hf auth login

    \b
    Examples:
      atomhub push cifar10-ipc10
      atomhub push cifar10-ipc10 my-lab/cifar10-ipc10 --private --tag v1
    """
    import atomhub
    from atomhub.errors import AtomhubError
    from atomhub.hub.push import push as publish
    from atomhub.requests import progress_bars

    if collection and (dry_run or how["create_pr"] or how["private"]):
        raise click.UsageError("--collection is for a set that is published now, for everybody.")
    distilled = atomhub.load(name)
    with progress_bars(watched(as_json)):
        done = publish(distilled, repo, dry_run=dry_run, **how)
    report_push(done, as_json, dry_run)
    if collection:
        from atomhub.hub.collections import collect

        try:
            say(f"It is in {collect(done.repo_id, distilled.manifest.provenance.source_id)}.")
        except AtomhubError as error:
            raise AtomhubError(
                f"{done.repo_id} is published, but in no collection: {error.message}", error.hint
            ) from error


def report_push(done: Pushed, as_json: bool, dry_run: bool = False) -> None:
    """Print what a push did."""
    if as_json:
        print_json({"repo": done.repo_id, "url": done.url, "commit": done.commit, "changed": done.changed,
                    "tagged": done.tagged, "files": done.files})  # fmt: skip
    elif dry_run:
        print_table(["file", "size"], [[path, size(count)] for path, count in done.files.items()], done.repo_id)
        print_data(done.card)
        say("Nothing was changed." if done.changed else "The Hub holds exactly this already.")
    else:
        print_data(done.url)
        tagged = f" Tagged {', '.join(done.tagged)}." if done.tagged else ""
        say((f"Published {done.repo_id} at {str(done.commit)[:8]}." if done.changed
             else f"{done.repo_id} holds exactly this already: no new commit.") + tagged)  # fmt: skip


@click.command()
@click.argument("name", metavar="NAME[@REVISION]", shell_complete=complete.names)
@click.option("--labels", is_flag=True, help="Also download its stored labels.")
@options.as_json
def pull(name: str, labels: bool, as_json: bool) -> None:
    """Download the set NAME from the Hub and verify it.

    NAME is user/name, or a name of the index (atomhub list). Afterwards the set loads without internet.

    \b
    Examples:
      atomhub pull alice/cifar10-ipc10
      atomhub pull alice/cifar10-ipc10@v1
    """
    from atomhub.hub.pull import pull as download
    from atomhub.requests import progress_bars

    with progress_bars(watched(as_json)):
        distilled = download(name, labels=labels)
    if as_json:
        print_json({"name": name, "classes": len(distilled.class_names), "ipc": distilled.ipc})
        return
    say(f"Pulled and verified {name}: {len(distilled)} images. Use it with: atomhub.load({name!r})")


@click.group()
def index() -> None:
    """The names by which everybody may load sets on the Hub.

    \b
    Example:
      atomhub index add alice/cifar100-ipc10
    """


@index.command("add")
@click.argument("repo", metavar="USER/NAME[@REVISION]")
@click.option("--name", metavar="NAME", help="What the set is to be called.  [default: the repository's name]")
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path), default=Path("index.json"), show_default=True,
              help="File of the index; one that is not there begins as the index that is on the Hub.")  # fmt: skip
@options.as_json
def index_add(repo: str, name: str | None, file: Path, as_json: bool) -> None:
    """Enter a set on the Hub into a file of the index, for a pull request.

    The set is downloaded and its files are verified; its name then means that one commit and digest.

    \b
    Example:
      atomhub index add alice/cifar100-ipc10
    """
    from shlex import quote

    from atomhub.hub.index import FILE, add
    from atomhub.hub.names import place
    from atomhub.requests import progress_bars

    with progress_bars(watched(as_json)):
        name, entry = add(repo, file, name)
    if as_json:
        print_json({"name": name, **entry.model_dump(), "file": str(file)})
        return
    say(f"{name} means {entry.repo} at {entry.commit[:8]} in {file}.")
    say(f"Propose it: hf upload {place()} {quote(str(file))} {FILE} --repo-type dataset --create-pr")


def fetched(distilled: DistilledDataset, source: str | None, yes: bool) -> str | None:
    """Fetch the real images that a set names, if they are not on this machine and whoever types agrees.

    Returns:
        Where the real images are, if that is not what the set's manifest says.
    """
    from atomhub.data import reopen
    from atomhub.data.places import hub_size

    absent = reopen.absent(distilled.manifest) if source is None else {}
    for repo, info in absent.items():
        bytes_ = hub_size(repo, info.revision)
        weight = size(bytes_) if bytes_ else "of unknown size"
        say(f"The real images are the dataset {repo} on the Hub ({weight}), which is not on this machine.")
        if not agreed("Fetch it?", yes, f"whether to fetch {repo}"):
            raise click.exceptions.Exit(1)
        if len(absent) == 1 and not distilled.manifest.provenance.parts:
            return info.id
        reopen.fetch(info)
    return source


def _counted(score: Score) -> str:
    """Return an accuracy with its number of networks, which those of few say themselves."""
    return score.text if score.runs < 3 else f"{score.text} ({score.runs})"


@click.command()
@click.argument("name", shell_complete=complete.sets)
@click.option("--runs", type=click.IntRange(min=2), metavar="N",
              help="Number of networks to train.  [default: as many as claimed, 2 to 5]")  # fmt: skip
@click.option("--record", metavar="YOU",
              help="Keep the verdict under your name, with the set or for a pull request.")  # fmt: skip
@options.device
@options.source
@options.yes
@options.as_json
def verify(
    name: str, runs: int | None, record: str | None, device: str, source: str | None, yes: bool, as_json: bool
) -> None:
    """Check whether the accuracy that the set NAME claims holds.

    Checks the files, trains new networks on the set, and compares their mean accuracy with the claim by the standard
    errors of both (Welch's t test, level 1 %); says from which difference on a lie would have been noticed in 4 of 5
    cases. More networks notice smaller ones. Exits with 1 if a claim does not hold.

    \b
    Examples:
      atomhub verify digits-ipc10
      atomhub verify alice/cifar10-ipc10@v1 --runs 3 --record "Jane Doe"
    """
    import atomhub
    from atomhub.requests import progress_bars
    from atomhub.storage.parquet import check_parquet

    with progress_bars(watched(as_json)):
        distilled = atomhub.load(name)
        if distilled.repo and any(r.labels == "stored" for r in distilled.manifest.results.measured):
            distilled = atomhub.load(name, labels=True)
    if distilled.path is not None:
        check_parquet(distilled, distilled.path)
    say(f"{name}: the files are intact, and the parquet holds the tensors.")
    source = fetched(distilled, source, yes)
    with Steps(f"Verifying {distilled.name}", quiet=as_json, unit="networks") as steps:
        verdicts = atomhub.verify(distilled, runs, device=device, source=source, progress=steps.networks)
    columns: list[list[str]] = [["", "claimed (networks)", "measured (networks)", "allowed difference",
                                 "seen in 4 of 5 cases", "verdict"]]  # fmt: skip
    found: list[dict[str, Any]] = []
    for v in verdicts:
        measured = v.measured.score if v.measured else None
        figures = [_counted(v.claim.score), "-", "-", "-", "cannot be repeated"]
        if measured:
            weak = ", but too few networks to see much" * (v.seen > _WIDE)
            said = f"holds{weak}" if v.holds else "does NOT hold"
            figures[1:] = [_counted(measured), f"{v.allowed:.1f}", f"{v.seen:.1f}", said]
        columns.append([f"{v.claim.protocol}{soft(v.claim)}, {v.claim.network}", *figures])
        found.append({"network": v.claim.network, "protocol": v.claim.protocol, "claimed": v.claim.score.mean,
                      "measured": measured.mean if measured else None, "allowed": v.allowed, "seen": v.seen,
                      "holds": v.holds if v.measured else None, "why": v.why or None,
                      **({"teacher": v.claim.teacher} if v.claim.teacher else {})})  # fmt: skip
    kept = None
    if record is not None and any(v.measured for v in verdicts):
        from atomhub.job.evaluation import record_verdicts
        from atomhub.storage.verified import VERIFIED

        kept = record_verdicts(distilled, verdicts, record)
        say(f"The verdict is kept in {kept}.")
        if distilled.repo:
            say(f"Send it to its owner: hf upload {distilled.repo} {kept} {VERIFIED} --repo-type dataset --create-pr")
    if as_json:
        print_json({"name": name, "claims": found} | ({"record": str(kept)} if kept else {}))
    else:
        head, *rows = (list(row) for row in zip(*columns, strict=True))
        print_table(head, rows, f"{name}: test accuracy in %, differences in points")
        for v in verdicts:
            if v.why:
                say(f"{v.claim.protocol}{soft(v.claim)}, {v.claim.network} cannot be repeated: {v.why}")
    if not any(v.measured for v in verdicts) or not all(v.holds for v in verdicts if v.measured):
        raise click.exceptions.Exit(1)
