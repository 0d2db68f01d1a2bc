"""Architecture search: rank many networks by what they learn from a distilled set, and check the ranking."""

from __future__ import annotations

import hashlib
import json
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from torch import Tensor

from atomhub.core import draws
from atomhub.devices import enough_memory, find_device, keep_large_buffers
from atomhub.distilled import DistilledDataset
from atomhub.errors import AtomhubError, UsageError, check_whole, closest, first_line
from atomhub.files import replace_file
from atomhub.sources import RealData
from atomhub.training.evaluation import images_of, whole_real
from atomhub.training.protocols import Protocol, find_protocol
from atomhub.training.trainer import accuracy, fit, seeded
from atomhub.training.zoo import Images, find_network

_VALIDATION = 2000
"""Most real training images that rank the candidates."""
Progress = Callable[[str, int, int], None]
"""Called with ``candidates`` or ``checks``, how many are done, and how many there are."""
Option = Annotated[list[str | int | float], Field(min_length=1)]
T = TypeVar("T", bound="Candidate | Check")


class Space(BaseModel):
    """Networks to choose from: all combinations of the options' values.

    Attributes:
        network: Name of the network, as in :func:`atomhub.evaluate`; what options do not say is as the set's recipe.
        options: Values of each option.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str
    options: dict[str, Option] = {}

    @model_validator(mode="after")
    def _plain(self) -> Space:
        if ":" in self.network:
            raise ValueError("network is a name alone; its options go into the table")
        for key, values in self.options.items():
            if len({str(v) for v in values}) < len(values):
                raise ValueError(f"{key} has a value twice")
        return self

    def specs(self) -> list[str]:
        """Return the networks by name, in a fixed order."""
        rows = product(*([f"{key}={value}" for value in values] for key, values in self.options.items()))
        return [self.network + (":" + ",".join(row) if row else "") for row in rows]


@dataclass(frozen=True)
class Candidate:
    """A network trained on the distilled set.

    Attributes:
        network: Its name, with options.
        accuracy: In percent, on real *training* images: the test images choose nothing.
        parameters: Numbers it learns.
        seconds: Of its training.
        failed: Why it could not be trained; its accuracy is 0.
    """

    network: str
    accuracy: float
    parameters: int
    seconds: float
    failed: str = ""


@dataclass(frozen=True)
class Check:
    """A candidate trained on the whole real training set.

    Attributes:
        network: Its name, with options.
        accuracy: In percent, on the real test images.
        seconds: Of its training.
        failed: Why it could not be trained; it counts nowhere.
    """

    network: str
    accuracy: float
    seconds: float
    failed: str = ""


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        name: Of the distilled set.
        candidates: The best first.
        checks: Those trained on the real set, in the same order.
        correlation: Spearman's rank correlation of the two accuracies over the checks; None below 3 of them.
        regret: Points by which the best checked network beats the one that was chosen; None without checks, or if the
            chosen one could not be trained.
        images: How many images candidates were trained on, and how many there are in the real training set.
    """

    name: str
    candidates: tuple[Candidate, ...]
    checks: tuple[Check, ...]
    correlation: float | None
    regret: float | None
    images: tuple[int, int]


def find_space(space: str | Path) -> Space:
    """Return the space of a name (``convnet-720``) or of a TOML file.

    Raises:
        UsageError: there is none of that name, or the file is not a space.
    """
    shipped = {p.name.removesuffix(".toml"): p for p in (files("atomhub.training") / "spaces").iterdir()}
    try:
        if str(space) in shipped:
            text = shipped[str(space)].read_text(encoding="utf-8")
        elif str(space).endswith(".toml"):
            text = Path(space).read_text(encoding="utf-8")
        else:
            raise UsageError(
                f"There is no space {str(space)!r}.", f"{closest(str(space), shipped)} Or give a .toml file."
            )
        return Space.model_validate(tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"The space {str(space)!r} is not one: {where}: {first['msg']}.", _EXAMPLE) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"The space {str(space)!r} cannot be read: {first_line(error)}.", _EXAMPLE) from None


_EXAMPLE = 'Write, say: network = "convnet", then a table [options] with width = [32, 64].'


def search(
    distilled: DistilledDataset,
    space: str | Path = "convnet-720",
    budget: int | None = None,
    *,
    protocol: str = "quick",
    check: int = 0,
    check_epochs: int = 20,
    log: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    source: str | Path | RealData | None = None,
    progress: Progress | None = None,
) -> Search:
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
        log: JSONL file that keeps every result as it comes; one that is there is gone on with.
        seed: Of weights, order, augmentation, and what is drawn.
        device: ``auto``, ``cpu`` or ``cuda``.
        source: Where a local source lies now.
        progress: Told after every network.

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
    rules, where = find_protocol(protocol), find_device(device)
    if budget is not None and budget < len(specs):
        specs = [specs[i] for i in draws.sample(seed, draws.SEARCH, 0, [0], [len(specs)], budget)[0]]
    shape = images_of(distilled)
    for spec in specs:  # a space that is wrong is told before the work
        find_network(spec, shape, distilled.manifest.recipe, tried=False)
    real = distilled.real(source, tested=check > 0)
    pixels = distilled.images.contiguous().numpy().tobytes()
    identity = {
        "set": distilled.name, "images": hashlib.sha256(pixels).hexdigest(),
        "source": real.info.fingerprint, "protocol": protocol, "seed": seed, "check_epochs": check_epochs,
    }  # fmt: skip
    kept = _Log(Path(log) if log is not None else None, identity)
    trial = _Trial(distilled, shape, where, seed)
    keep_large_buffers()
    judges = _judges(real, seed)
    images, labels = distilled.as_tensors()
    found: list[Candidate] = []
    for done, spec in enumerate(specs, 1):
        one = kept.find(Candidate, spec)
        if one is None:
            one = trial.run(spec, images, labels, rules, judges)
            kept.add(one)
        found.append(one)
        if progress:
            progress("candidates", done, len(specs))
    found.sort(key=lambda c: -c.accuracy)
    good = [c for c in found if not c.failed]
    checks: list[Check] = []
    if check:
        spread = sorted({round(i) for i in np.linspace(0, len(good) - 1, min(check, len(good)))}) if good else []
        whole = whole_real(distilled, real)
        rules = Protocol(check_epochs, 256, "dm's optimiser on the whole training set")
        test = real.test_tensors()
        for done, place in enumerate(spread, 1):
            spec = good[place].network
            checked = kept.find(Check, spec)
            if checked is None:
                trained = trial.run(spec, *whole, rules, test)
                checked = Check(spec, trained.accuracy, trained.seconds, trained.failed)
                kept.add(checked)
            checks.append(checked)
            if progress:
                progress("checks", done, len(spread))
    return _concluded(distilled, tuple(found), tuple(checks), (len(images), len(real.train.labels)))


@dataclass(frozen=True)
class _Trial:
    """Trains one network after the other under the same conditions."""

    distilled: DistilledDataset
    images: Images
    device: torch.device
    seed: int

    def run(self, spec: str, images: Tensor, labels: Tensor, rules: Protocol, test: tuple[Tensor, Tensor]) -> Candidate:
        """Train a network and measure it; a failure is a result."""
        try:
            network = find_network(spec, self.images, self.distilled.manifest.recipe)
        except UsageError as error:
            if "cannot take" not in error.message:
                raise
            return Candidate(spec, 0.0, 0, 0.0, error.message)
        operations = self.distilled.operations(rules.augmentation)
        start = time.perf_counter()
        with seeded(self.seed, self.device):
            model = network.build().to(self.device)
        parameters = sum(p.numel() for p in model.parameters())
        try:
            with enough_memory("use a space of smaller networks"):
                fit([model], [images.to(self.device)], labels.to(self.device), rules, operations,
                    self.images.classes, [self.seed])  # fmt: skip
                percent = accuracy(model, *test, self.distilled.normalization, self.device, self.images.classes)
        except AtomhubError as error:
            return Candidate(spec, 0.0, parameters, 0.0, error.message)
        return Candidate(spec, round(percent, 4), parameters, round(time.perf_counter() - start, 3))


def _judges(real: RealData, seed: int) -> tuple[Tensor, Tensor]:
    """Return real training images (M, C, H, W) uint8 and labels (M,): as many of each class, as far as there are."""
    classes = len(real.class_names)
    offsets = real.train.offsets(classes)
    counts = offsets[1:] - offsets[:-1]
    each = min(max(1, _VALIDATION // classes), int(counts.min()))
    rows = (draws.sample(seed, draws.SEARCH, 1, range(classes), counts, each) + offsets[:-1, None]).flatten()
    return torch.from_numpy(real.train.images[rows]), torch.from_numpy(real.train.labels[rows])


class _Log:
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
            raise UsageError(f"{path} cannot be read: {first_line(error)}.", "Name another --output.") from error
        if not text.strip():
            replace_file(path, (json.dumps({"search": identity}) + "\n").encode())
            return
        lines = [self._record(line) for line in text.splitlines()]
        theirs = lines[0].get("search")
        if not isinstance(theirs, dict):
            raise UsageError(f"{path} is not the log of a search.", "Name another --output.")
        if other := [key for key in identity if theirs.get(key) != identity[key]]:
            raise UsageError(f"{path} is the log of another search: {other[0]} differs.", "Name another --output.")
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
                raise AtomhubError(f"Cannot write {self.path}: {error.strerror}.", "Name another --output.") from error


def _concluded(
    distilled: DistilledDataset, candidates: tuple[Candidate, ...], checks: tuple[Check, ...], images: tuple[int, int]
) -> Search:
    from scipy.stats import spearmanr

    proxy = {c.network: c.accuracy for c in candidates}
    good = [c for c in checks if not c.failed]
    correlation = None
    if len(good) > 2:
        value = float(spearmanr([proxy[c.network] for c in good], [c.accuracy for c in good]).statistic)
        correlation = None if np.isnan(value) else round(value, 4)
    regret = round(max(c.accuracy for c in good) - good[0].accuracy, 4) if good and good[0] is checks[0] else None
    return Search(distilled.name, candidates, checks, correlation, regret, images)


def plot(found: Search, path: str | Path) -> None:
    """Draw the checks' accuracy on real test images against that of the proxy, as PNG."""
    import io

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
    if len(near) < len(points):
        axes.plot([], [], " ", label=f"not shown: {len(points) - len(near)} far below")
    axes.set_xlabel(f"trained on {found.images[0]} distilled images: accuracy on real training images (%)")
    axes.set_ylabel(f"trained on {found.images[1]} real images: test accuracy (%)")
    rank = "" if found.correlation is None else f", rank correlation {found.correlation:.2f}"
    axes.set_title(
        f"{found.name}: {len(found.checks)} of {len(found.candidates)} networks{rank}", loc="left", fontsize=10
    )
    axes.legend(loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    replace_file(Path(path), buffer.getvalue())
