"""Architecture search: every result is kept as it comes, so that an interrupted search continues."""

import hashlib
import io
import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from atomhub.core import draws
from atomhub.dataset import DistilledDataset
from atomhub.devices import find_device
from atomhub.errors import AtomhubError, UsageError, check_whole, first_line
from atomhub.files import locked, replace_file
from atomhub.interrupts import heeded
from atomhub.training.architectures import Candidate, Check, Progress, Search, T, Trials, conclude, find_space
from atomhub.training.measure import network_for
from atomhub.training.networks import check_probe
from atomhub.training.protocols import find_protocol


def search(
    distilled: DistilledDataset, space: str | Path = "convnet-720", budget: int | None = None, *,
    protocol: str = "quick", check: int = 0, check_epochs: int = 20, log: str | Path | None = None, seed: int = 0,
    device: str = "auto", source: object = None, progress: Progress | None = None,
) -> Search:  # fmt: skip
    """Train every network of a space on a distilled set, and rank them by their accuracy on real training images.

    A distilled set is small, so a network is judged in seconds (DC, ICLR 2021, section 4.3). At most 2 000 random
    images of the real training set judge: the networks have seen none of them, and the test set chooses nothing. A
    network that cannot take the images, or whose training fails, is ranked last with the reason.

    Args:
        distilled: The set.
        space: ``convnet-720`` or a TOML file.
        budget: Candidates to try, drawn at random; None: all.
        protocol: How candidates are trained.
        check: Candidates, evenly spread over the ranking and the chosen one among them, to train on the whole real set
            as well and measure on the test set: 2 or more; 0: none.
        check_epochs: Passes of those over the real set.
        log: JSONL file that keeps every result as it comes; a search whose log exists continues from it.
        seed: Seed of weights, order, augmentation, and what is drawn.
        device: ``auto``, ``cpu`` or ``cuda``.
        source: Where a local source lies now.
        progress: Called after every network.

    Raises:
        UsageError: an unknown space or protocol, a number that is not possible, or the log of another search.
        NotFoundError: the source is not at hand.
    """
    specs = find_space(space).specs()
    check_whole("budget", len(specs) if budget is None else budget, 1)
    check_whole("seed", seed, 0)
    check_whole("check_epochs", check_epochs, 1)
    if check == 1:
        raise UsageError("check cannot be 1: a ranking needs two networks or more.")
    check_whole("check", check, 0)
    rules, where = find_protocol(protocol, taught=False), find_device(device)
    if budget is not None and budget < len(specs):
        specs = [specs[i] for i in draws.sample(seed, draws.SEARCH, 0, [0], [len(specs)], budget)[0]]
    for spec in specs:  # a space that is wrong is reported before the work
        check_probe(spec, rules.frozen)
        network_for(distilled, spec, tried=False)
    real = distilled.real(source, tested=check > 0)
    pixels = distilled.images.contiguous().numpy().tobytes()
    identity = {
        "set": distilled.name, "images": hashlib.sha256(pixels).hexdigest(),
        "source": real.info.fingerprint, "protocol": protocol, "seed": seed, "check_epochs": check_epochs,
    }  # fmt: skip
    with ExitStack() as locks:
        if log is not None:
            locks.enter_context(locked(Path(log), wait=0, doing="searching in"))
        kept = Log(Path(log) if log is not None else None, identity)
        stop = locks.enter_context(heeded("this network"))
        trials = Trials(distilled, real, where, seed, kept, progress, stop)
        ranked = trials.rank(specs, rules)
        checks = trials.check(ranked, check, check_epochs) if check else []
    images = (len(distilled.training_labels()), len(real.train.labels))
    return conclude(distilled.name, tuple(ranked), tuple(checks), images)


class Log:
    """Results as they came: a line that says of what search, then a line each. Lines that are none are passed over.

    Failures are not kept: they cost little, and another time there may be memory for them.

    Args:
        path: Where; None: nothing is kept.
        identity: What search it is.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path = path
        self.known: dict[tuple[type, str], Candidate | Check] = {}
        if path is None:
            return
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read: {first_line(error)}.", "Name another `output`.") from error
        if not text.strip():
            replace_file(path, (json.dumps({"search": identity}) + "\n").encode())
            return
        lines = [self._record(line) for line in text.splitlines()]
        theirs = lines[0].get("search")
        if not isinstance(theirs, dict):
            raise UsageError(f"{path} is not the log of a search.", "Name another `output`.")
        if other := [key for key in identity if theirs.get(key) != identity[key]]:
            raise UsageError(f"{path} is the log of another search: {other[0]} differs.", "Name another `output`.")
        if not text.endswith("\n"):  # an interruption left part of a line
            self._append("\n")
        kinds: tuple[type[Candidate] | type[Check], ...] = (Candidate, Check)
        for line in lines[1:]:
            for kind in kinds:
                try:
                    found = TypeAdapter(kind).validate_python(line.get(kind.__name__.lower()))
                except ValidationError:
                    continue
                self.known[kind, found.network] = found

    @staticmethod
    def _record(line: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}

    def find(self, kind: type[T], spec: str) -> T | None:
        """Return the result of a network, if it is there."""
        found = self.known.get((kind, spec))
        return found if isinstance(found, kind) else None

    def add(self, result: Candidate | Check) -> None:
        """Keep a result."""
        if not result.failed:
            self._append(json.dumps({type(result).__name__.lower(): asdict(result)}) + "\n")

    def _append(self, text: str) -> None:
        if self.path is not None:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(text)
            except OSError as error:
                raise AtomhubError(f"Cannot write {self.path}: {error.strerror}.", "Name another `output`.") from error


def plot(found: Search, path: str | Path) -> None:
    """Draw the checks' accuracy on real test images against that of the proxy, as PNG."""
    from matplotlib.figure import Figure

    proxy = {c.network: c for c in found.candidates}
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    points = [(proxy[c.network].accuracy, c.accuracy) for c in found.checks if not c.failed]
    if not points:
        raise UsageError("There is nothing to draw: no network was checked.")
    # one network that learnt nothing would leave no room to tell the others apart
    near = [(x, y) for x, y in points if x >= points[0][0] / 2 and y >= points[0][1] / 2]
    if others := near[1:]:
        axes.scatter(*zip(*others, strict=True), color="tab:blue", label="other networks")
    axes.scatter(*points[0], color="tab:orange", marker="*", s=160, label="chosen")
    axes.set_xlabel(f"trained on {found.images[0]} distilled images: accuracy on real training images (%)")
    axes.set_ylabel(f"trained on {found.images[1]} real images: test accuracy (%)")
    title = [f"{found.name}: {len(found.checks)} of {len(found.candidates)} networks", found.agreement]
    axes.set_title(", ".join(filter(None, title)), loc="left", fontsize=10)
    axes.margins(0.1)
    for x, y in sorted(set(points) - set(near)):  # far below: an arrow at the edge says where
        edge = (min(max(x, axes.get_xlim()[0]), axes.get_xlim()[1]), axes.get_ylim()[0])
        style = {"arrowstyle": "->", "color": "tab:blue"}
        axes.annotate(
            f"{x:.0f}, {y:.0f}", edge, (0, 22), textcoords="offset points", ha="left", fontsize=8, arrowprops=style
        )
    axes.legend(loc="best")  # never over the chosen network
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    replace_file(Path(path), buffer.getvalue())
