"""Architecture search: rank many networks by what they learn from a distilled set, and check the ranking."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, ValidationError, model_validator
from torch import Tensor

from atomhub.core import draws
from atomhub.core.draws import seeded
from atomhub.data.real import RealData
from atomhub.dataset import DistilledDataset
from atomhub.devices import enough_memory, keep_large_buffers
from atomhub.errors import AtomhubError, UsageError, closest, first_line
from atomhub.training.accuracy import accuracy
from atomhub.training.baselines import whole_real
from atomhub.training.fit import fit
from atomhub.training.measure import network_for
from atomhub.training.networks import PROBE
from atomhub.training.protocols import Protocol, of_whole_set

_VALIDATION = 2000
"""Most real training images that rank the candidates."""
Progress = Callable[[str, int, int], None]
"""Called with ``candidates`` or ``checks``, how many are done, and how many there are."""
Option = Annotated[list[StrictStr | StrictInt | StrictFloat], Field(min_length=1)]
T = TypeVar("T", bound="Candidate | Check")


class Space(BaseModel):
    """Networks to choose from: all combinations of the options' values.

    Attributes:
        network: Name of the network, as in :func:`atomhub.evaluate`; the network that the set was distilled with says
            what its options do not.
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
        seconds: Time of its training.
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
        seconds: Time of its training.
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
        name: Name of the distilled set.
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

    @property
    def agreement(self) -> str:
        """The rank correlation in words; ranks of fewer than ten networks say little."""
        few = sum(not c.failed for c in self.checks) < 10
        return "" if few or self.correlation is None else f"rank correlation {self.correlation:.2f}"


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
        raise UsageError(f"The space {str(space)!r} is not valid: {where}: {first['msg']}.", _EXAMPLE) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"The space {str(space)!r} cannot be read: {first_line(error)}.", _EXAMPLE) from None


_EXAMPLE = 'An example: network = "convnet", then a table [options] with width = [32, 64].'


@dataclass(frozen=True)
class Trials:
    """Trains the networks of a search one after the other, under the same conditions.

    ``log`` keeps results as they come: ``find(kind, spec)`` gives one or None, ``add(result)`` keeps one. Once ``stop``
    is true, KeyboardInterrupt ends the work after a network.
    """

    distilled: DistilledDataset
    real: RealData
    device: torch.device
    seed: int
    log: Any
    progress: Progress | None
    stop: Callable[[], bool] = lambda: False

    def rank(self, specs: Sequence[str], rules: Protocol) -> list[Candidate]:
        """Train networks on the distilled set, and return them by their accuracy on real training images."""
        keep_large_buffers()
        rows, (images, labels) = judges(self.real, self.seed), self.distilled.as_tensors()
        test = torch.from_numpy(self.real.train.images[rows]), torch.from_numpy(self.real.train.labels[rows])
        found: list[Candidate] = []
        for done, spec in enumerate(specs, 1):
            one = self.log.find(Candidate, spec)
            if one is None:
                one = self.run(spec, images, labels, rules, test)
                self.log.add(one)
            found.append(one)
            if self.progress:
                self.progress("candidates", done, len(specs))
            if self.stop():
                raise KeyboardInterrupt
        return sorted(found, key=lambda c: -c.accuracy)

    def check(self, ranked: Sequence[Candidate], count: int, epochs: int) -> list[Check]:
        """Train candidates, evenly spread over a ranking, on the whole real training set, and test them."""
        good = [c for c in ranked if not c.failed]
        spread = sorted({round(i) for i in np.linspace(0, len(good) - 1, min(count, len(good)))}) if good else []
        whole, test = whole_real(self.distilled, self.real), self.real.test_tensors()
        checks: list[Check] = []
        for done, place in enumerate(spread, 1):
            spec = good[place].network
            one = self.log.find(Check, spec)
            if one is None:
                trained = self.run(spec, *whole, of_whole_set(epochs, spec.startswith(PROBE)), test)
                one = Check(spec, trained.accuracy, trained.seconds, trained.failed)
                self.log.add(one)
            checks.append(one)
            if self.progress:
                self.progress("checks", done, len(spread))
            if self.stop():
                raise KeyboardInterrupt
        return checks

    def run(self, spec: str, images: Tensor, labels: Tensor, rules: Protocol, test: tuple[Tensor, Tensor]) -> Candidate:
        """Train a network and measure it; a failure is a result."""
        try:
            network = network_for(self.distilled, spec)
        except UsageError as error:
            if "cannot take" not in error.message:
                raise
            return Candidate(spec, 0.0, 0, 0.0, error.message)
        stages, classes = self.distilled.safe(rules.augmentation), len(self.distilled.class_names)
        start = time.perf_counter()
        with seeded(self.seed, self.device):
            model = network.build().to(self.device)
        parameters = sum(p.numel() for p in model.parameters())
        try:
            with enough_memory("use a space of smaller networks"):
                own, wanted = images.to(self.device), labels.to(self.device)
                fit([model], [own], wanted, rules, stages, classes, [self.seed], record=True)
                percent = accuracy(model, *test, self.distilled.normalization, self.device, classes)
        except AtomhubError as error:
            return Candidate(spec, 0.0, parameters, 0.0, error.message)
        return Candidate(spec, round(percent, 4), parameters, round(time.perf_counter() - start, 3))


def judges(real: RealData, seed: int) -> NDArray[np.int64]:
    """Return rows (M,) of the real training images that rank networks: of each class as many, as far as there are."""
    classes = len(real.class_names)
    offsets = real.train.offsets(classes)
    counts = offsets[1:] - offsets[:-1]
    each = min(max(1, _VALIDATION // classes), int(counts.min()))
    rows = draws.sample(seed, draws.SEARCH, 1, range(classes), counts, each) + offsets[:-1, None]
    return rows.flatten()


def conclude(
    name: str, candidates: tuple[Candidate, ...], checks: tuple[Check, ...], images: tuple[int, int]
) -> Search:
    """Return what a search on the set of a name found: the ranking, the checks, and how well they agree."""
    from scipy.stats import spearmanr

    proxy = {c.network: c.accuracy for c in candidates}
    good = [c for c in checks if not c.failed]
    correlation = None
    if len(good) > 2:
        value = float(spearmanr([proxy[c.network] for c in good], [c.accuracy for c in good]).statistic)
        correlation = None if np.isnan(value) else round(value, 4)
    regret = round(max(c.accuracy for c in good) - good[0].accuracy, 4) if good and good[0] is checks[0] else None
    return Search(name, candidates, checks, correlation, regret, images)
