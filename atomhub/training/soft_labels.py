"""Soft labels: what a teacher that was trained on the real images makes of the synthetic ones."""

from dataclasses import replace

import torch

from atomhub.command import chain, command
from atomhub.core.draws import seeded
from atomhub.dataset import DistilledDataset, check_set
from atomhub.devices import enough_memory, find_device, keep_large_buffers
from atomhub.errors import UsageError, check_whole
from atomhub.manifest import check_name
from atomhub.provenance import Teacher
from atomhub.training.accuracy import accuracy, logits
from atomhub.training.baselines import whole_real
from atomhub.training.fit import fit
from atomhub.training.measure import network_for
from atomhub.training.networks import PROBE
from atomhub.training.protocols import PROTOCOLS, of_whole_set


def soften(
    distilled: DistilledDataset, teacher: str | None = None, epochs: int | None = None, *, temperature: float = 1.0,
    name: str | None = None, seed: int = 0, device: str = "auto", source: object = None,
) -> DistilledDataset:  # fmt: skip
    """Return a copy of a set, in memory, with soft labels; its hard labels, and results of them, stay.

    The teacher is trained on the whole real training set, with SGD and augmentation as in the ``dm`` protocol; a linear
    probe as in the protocol ``probe``. Networks that learn from soft labels (``evaluate(..., labels="soft")``) are
    reported apart from those that learn classes.

    Args:
        distilled: The set.
        teacher: Name of a network, as in :func:`atomhub.evaluate`; None: the one that the set was distilled with.
        epochs: Passes of the teacher over the real training set; None: 20, of a linear probe 300.
        temperature: The teacher's logits are divided by this before the softmax: labels are softer above 1.
        name: Name of the new set; None: ``<name>-soft``.
        seed: Seed of the teacher's weights, order and augmentation.
        device: ``auto``, ``cpu`` or ``cuda``.
        source: Where a local source lies now.

    Raises:
        UsageError: an unknown network, or a number that is not possible.
        NotFoundError: the source is not at hand.
        AtomhubError: the teacher's loss is not finite.
    """
    check_set(distilled)
    check_whole("epochs", 1 if epochs is None else epochs, 1)
    check_whole("seed", seed, 0)
    if not 0 < temperature < float("inf"):
        raise UsageError(f"The temperature cannot be {temperature}: use a number above 0.")
    if not isinstance(teacher, str | None):
        raise UsageError(f"The teacher cannot be {type(teacher).__name__}.", "Give the name of a network.")
    chosen = check_name(name or f"{distilled.name}-soft")
    where = find_device(device)
    network = network_for(distilled, teacher)
    real = distilled.real(source, tested=False)
    linear = network.spec.startswith(PROBE)
    epochs = epochs or (PROTOCOLS["probe"].epochs if linear else 20)
    rules = of_whole_set(epochs, linear)
    images, labels = whole_real(distilled, real)
    keep_large_buffers()
    classes, own = len(distilled.class_names), None
    with enough_memory("use a smaller teacher"):
        with seeded(seed, where):
            model = network.build().to(where)
        stages = distilled.safe(rules.augmentation)
        fit([model], [images.to(where)], labels.to(where), rules, stages, classes, [seed], record=True)
        with torch.no_grad():
            found = torch.cat([logits(model, part.to(where)).cpu() for part in distilled.as_tensors()[0].split(512)])
        if real.test is not None:
            own = round(accuracy(model, *real.test_tensors(), distilled.normalization, where, classes), 4)
    soft = (found.double() / temperature).softmax(1).to(torch.float16)
    if not bool(soft.isfinite().all()):
        raise UsageError(f"The temperature cannot be {temperature}: the labels are not finite.", "Use about 1 to 20.")
    record = Teacher(network=network.spec, epochs=epochs, temperature=temperature, seed=seed, accuracy=own)
    made = command(
        "soften", distilled.repo or distilled.name, teacher=network.spec, epochs=epochs, temperature=temperature,
        seed=seed, name=chosen,
    )  # fmt: skip
    before = None if distilled.repo else distilled.manifest.provenance.command
    manifest = distilled.manifest.replace(
        name=chosen,
        format={"labels": "soft"},
        provenance={"teacher": record, "command": chain(before or "", made)},
        # what was measured with other soft labels is not of these
        results={"measured": tuple(r for r in distilled.manifest.results.measured if r.labels != "soft" or r.teacher)},
        files={},
    )
    return replace(distilled, manifest=manifest, soft_labels=soft, path=None, repo=None)
