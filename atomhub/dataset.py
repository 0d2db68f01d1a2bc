"""A distilled set in memory, and its views for training any model."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from atomhub.core.augment import DSA, IDC, OPERATIONS, Stages
from atomhub.core.synthetic import to_views
from atomhub.core.whitening import Normalization, Whitening
from atomhub.data.real import RealData
from atomhub.data.reopen import real_of
from atomhub.errors import NotFoundError, UsageError, check_whole, closest
from atomhub.manifest import Manifest
from atomhub.recipe import safe_operations
from atomhub.stored import StoredEpochs, StoredLabels
from atomhub.views import Collate, Labelled, PictureTransform, to_pil

if TYPE_CHECKING:
    import datasets
    from PIL import Image

Augmentation = Sequence[str] | Callable[[Tensor], Tensor] | None


@dataclass(eq=False)
class DistilledDataset:
    """A few synthetic images per class, with all that is known about them.

    Every view normalises by :meth:`normalize`, with the constants the set was distilled under; test images go through
    :meth:`test_transform`, which does the same.

    In a multi-formation set (``manifest.format.formation`` above 1) an image holds several views, and it is those that
    networks are trained on: :meth:`as_tensors`, :meth:`loader` and their like give them, enlarged.

    Attributes:
        images: (N, C, H, W), uint8 in 0..255 or float32 in 0..1, class-major, N = classes * ipc, as they are stored.
        labels: (N,) int64.
        manifest: Format, provenance and measured results (:func:`atomhub.evaluate` adds them).
        path: Folder it was loaded from or saved to; None: in memory only.
        whitening: ZCA fit on the real training images, where the recipe has it.
        soft_labels: (N, K) float16 probabilities that a teacher gave the images (:func:`atomhub.soften`), if any; in a
            multi-formation set a row for every view.
        repo: ``user/name`` on the Hub, if it was pulled from there.
        stored: A teacher's labels for every batch of some epochs (:func:`atomhub.label`), if any are at hand.
    """

    images: Tensor
    labels: Tensor
    manifest: Manifest
    path: Path | None = None
    whitening: Whitening | None = None
    soft_labels: Tensor | None = None
    repo: str | None = None
    stored: StoredLabels | None = None

    @property
    def name(self) -> str:
        """Name of the set, such as ``cifar10-ipc10``."""
        return self.manifest.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes; label k is ``class_names[k]``."""
        return self.manifest.format.class_names

    @property
    def ipc(self) -> int:
        """Stored images per class."""
        return self.manifest.format.ipc

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation, and whitening if any, under which the set was distilled."""
        return self.whitening or Normalization(self.manifest.format.mean, self.manifest.format.std)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return a stored image, (C, H, W) as in ``images``, and its class; networks train on :meth:`as_tensors`."""
        return self.images[operator.index(index)], int(self.labels[operator.index(index)])

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"DistilledDataset({self.name!r}, {len(self.class_names)} classes x {self.ipc} of {shape})"

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return images as networks expect them.

        Args:
            pixels: (..., C, H, W), uint8 in 0..255 or float in 0..1: synthetic or real.

        Returns:
            float32, per channel (pixels / 255 - mean) / std, then whitened if the set is.
        """
        return self.normalization.apply(pixels)

    def test_transform(self, size: int | None = None) -> Callable[[Any], Tensor]:
        """Return the transform that brings a real PIL image of any size and mode to a normalised (C, H, W) tensor.

        It converts, crops and resizes exactly as the training images were (:func:`atomhub.data.pictures.to_pixels`). A
        JPEG that is decoded already is not decoded smaller first, as large ones are: pixels differ by two levels or so.

        Args:
            size: Side in pixels to resize to then, as :meth:`loader` does; None: that of the set.
        """
        return PictureTransform(self.manifest.format.size, self.manifest.format.channels, self.normalization, size)

    def as_tensors(self) -> tuple[Tensor, Tensor]:
        """Return normalised float32 images (N, C, H, W), and int64 labels (N,): what networks are trained on."""
        return self.normalize(self.training_pixels()), self.training_labels()

    def training_labels(self) -> Tensor:
        """Return the int64 labels of what networks are trained on, (N,)."""
        return self.labels.repeat_interleave(self.manifest.format.views_per_image)  # class-major before and after

    def training_pixels(self, rounded: bool = False) -> Tensor:
        """Return the pixels networks are trained on, (N, C, H, W): the images, or float views in 0..1 of them.

        Args:
            rounded: Take the images rounded to 8 bits, where the set is float32.
        """
        images = self.pixels8() if rounded else self.images
        if self.manifest.format.formation == 1:
            return images
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        return to_views(pixels.unflatten(0, (-1, self.ipc)), self.manifest.format.formation).flatten(0, 1)

    def as_torch_dataset(self, transform: Callable[[Image.Image], Any] | None = None) -> Dataset[Any]:
        """Return a map-style dataset of (image, label).

        Args:
            transform: Called with a PIL image, as torchvision's datasets do, in place of the normalised tensor. It must
                normalise: end it with ``Normalize(manifest.format.mean, manifest.format.std)``.
        """
        images, labels = self.as_tensors()
        return Labelled(images, labels) if transform is None else Labelled(self.pictures(), labels, transform)

    def loader(
        self, batch_size: int = 256, augment: Augmentation | str = "dsa", shuffle: bool = True,
        size: int | None = None, labels: str = "hard", temperature: float = 1.0, **options: Any,
    ) -> DataLoader[Any]:  # fmt: skip
        """Return a DataLoader of normalised, augmented (images, labels) batches for any training loop.

        Args:
            batch_size: Images in a batch.
            augment: ``dsa``: differentiable siamese augmentation, as ``dm`` and ``datadam`` have it: one operation
                is drawn for the batch, with parameters for every image; ``idc``: flip and colour, then one of crop,
                scale, rotate, as ``idc`` and ``dance`` have it; a list of operations, to draw one of for the batch; a
                function of a normalised batch (B, C, H, W); or None.
            shuffle: New order every epoch.
            size: Side in pixels that a network wants, such as 224: batches are resized to it (bilinear) after they were
                augmented. :meth:`test_transform` brings test images to it in the same way.
            labels: ``hard``: labels are classes, (B,) int64; ``stored``: the batches are those of the stored labels, as
                they were augmented and mixed, a further epoch in every pass, and labels are the teacher's
                probabilities, (B, K) float32. Then ``batch_size``, ``augment`` and ``shuffle`` count for nothing, and
                there can be no workers.
            temperature: What a teacher's logits are divided by; the protocol ``rded`` has 20, and divides the
                network's as well.
            options: For ``torch.utils.data.DataLoader`` (``num_workers``, ``generator``, ...).

        Raises:
            UsageError: an augmentation, or labels, that do not exist, or a temperature of 0 or less.
            NotFoundError: the set has no stored labels, or they were not downloaded.
        """
        if size is not None:
            check_whole("size", size, 1)
        if labels == "stored":
            if not 0 < temperature < float("inf"):
                raise UsageError(f"The temperature cannot be {temperature}.", "Use about 1 to 20.")
            stored = self.stored_labels()
            if options.get("num_workers"):
                raise UsageError("Stored labels are played in order, by one process.", "Leave `num_workers` out.")
            return DataLoader(StoredEpochs(stored, self.as_tensors()[0], temperature, size), None, **options)
        if labels != "hard":
            raise UsageError(f"There are no {labels!r} labels in batches.", "Use 'hard' or 'stored'.")
        collate = Collate(augment if callable(augment) else self._stages(augment), size)
        return DataLoader(self.as_torch_dataset(), batch_size, shuffle, collate_fn=collate, **options)

    def stored_labels(self) -> StoredLabels:
        """Return the stored labels; NotFoundError, which says how to come by them, where there are none at hand."""
        if self.stored is not None:
            return self.stored
        hint = "Make a set that has: atomhub label"
        if self.manifest.provenance.stored:
            hint = "Their file labels.safetensors is missing: put it back."
            if self.repo:
                hint = f"Download them: atomhub.load({self.repo!r}, labels=True)"
        raise NotFoundError(f"{self.name!r} has no stored labels here.", hint)

    def _stages(self, augment: Sequence[str] | str | None) -> Stages:
        if isinstance(augment, str):
            if augment not in ("dsa", "idc"):
                hint = f"Use 'dsa', 'idc', None or a list: [{augment!r}]."
                raise UsageError(f"There is no augmentation {augment!r}.", hint)
            return self.safe(DSA if augment == "dsa" else IDC)
        for name in augment or ():
            if name not in OPERATIONS:
                raise UsageError(f"There is no augmentation {name!r}.", closest(str(name), OPERATIONS))
        return [augment] if augment else []

    def safe(self, stages: Stages) -> Stages:
        """Return an augmentation without what does not keep this set's classes (no flips for digits)."""
        return [safe_operations(tuple(stage), self.manifest.format.flip) for stage in stages]

    def as_hf_dataset(self, stored: bool = False) -> datasets.Dataset:
        """Return a ``datasets.Dataset`` with columns ``image`` (PIL) and ``label`` (ClassLabel), 8 bits per channel.

        Args:
            stored: Give the images of a multi-formation set as they are, in place of their views.
        """
        from datasets import ClassLabel, Dataset as HfDataset, Features, Image

        features = Features({"image": Image(), "label": ClassLabel(names=list(self.class_names))})
        labels = self.labels if stored else self.training_labels()
        return HfDataset.from_dict({"image": self.pictures(stored), "label": labels.tolist()}, features=features)

    def pictures(self, stored: bool = False) -> list[Image.Image]:
        """Return what networks are trained on as PIL images, mode L or RGB, 8 bits per channel.

        Args:
            stored: Give the images of a multi-formation set as they are, in place of their views.
        """
        pixels = self.pixels8() if stored else self.training_pixels()
        whole = pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().to(torch.uint8)
        return [to_pil(image) for image in whole]

    def pixels8(self) -> Tensor:
        """Return the images as uint8 (N, C, H, W): themselves, or rounded where the set is float32."""
        return self.images if self.images.dtype == torch.uint8 else (self.images * 255).round().to(torch.uint8)

    def preview(self, ipc: int = 10) -> Image.Image:
        """Return the stored images as one picture, class by class with names, up to ``ipc`` of each."""
        from atomhub.preview import draw_preview

        images = self.pixels8().unflatten(0, (-1, self.ipc))
        return draw_preview(images, self.class_names, self.manifest.format.formation, ipc)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the preview, where the set is from, and what was measured of it."""
        from atomhub.preview import notebook_html

        f, p = self.manifest.format, self.manifest.provenance
        facts = {
            "images": f"{len(self)} of {f.size}x{f.size}, {f.bytes_per_class} bytes per class",
            "source": p.source_id, "recipe": p.method,
        }  # fmt: skip
        for r in self.manifest.results.measured:
            facts[", ".join(filter(None, (r.protocol, r.network, r.taught)))] = f"{r.score.text} %"
        return notebook_html(self.preview(), repr(self), facts)

    def save(self, folder: str | Path | None = None, overwrite: bool = False) -> DistilledDataset:
        """Write the set in its format, all or nothing, and return it with its path.

        Args:
            folder: Where; None: under its name in the local store, where :func:`atomhub.load` finds it.
            overwrite: Replace an existing set.

        Raises:
            AtomhubError: the folder exists, or cannot be written.
        """
        from atomhub.storage import store

        return store.save(self, folder, overwrite)

    def push_to_hub(self, repo_id: str | None = None, **options: Any) -> str:
        """Publish the set on the Hugging Face Hub in one commit, and return its address.

        Arguments and errors as in :func:`atomhub.hub.push.push`.
        """
        from atomhub.hub.push import push

        return push(self, repo_id, **options).url

    def real(self, source: object = None, tested: bool = True) -> RealData:
        """Return the real images the set stands for: ``real().test`` holds the images to test on.

        Args:
            source: Where a local source lies now, if it is not in this machine's cache.
            tested: Whether there must be a test split.

        Raises:
            NotFoundError: the source is not at hand, or has no test split.
            SourceError: what is there has other classes or another shape.
        """
        return real_of(self.manifest, source, tested)

    def test_split(self, source: object = None) -> tuple[Tensor, Tensor]:
        """Return the real test images, uint8 (M, C, H, W), and labels, int64 (M,), of the set's source.

        Arguments and errors as in :meth:`real`.
        """
        return self.real(source).test_tensors()

    def subset(
        self, classes: Sequence[int | str] | None = None, ipc: int | None = None, name: str | None = None
    ) -> DistilledDataset:
        """Return some classes, and the first ``ipc`` images of each; see :func:`atomhub.combine.subset`."""
        from atomhub.combine import subset

        return subset(self, classes, ipc, name)


def check_set(distilled: object) -> None:
    """Refuse what is no set, such as the name of one.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(distilled, DistilledDataset):
        raise UsageError(f"A set cannot be of type {type(distilled).__name__}.", "Load it: `atomhub.load(name)`.")
