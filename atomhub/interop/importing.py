"""Read the synthetic images that other projects published; nothing in a file is run."""

import hashlib
import io
import re
import warnings
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from atomhub import limits
from atomhub.command import command
from atomhub.core.synthetic import to_views
from atomhub.core.whitening import Normalization, fit_zca
from atomhub.data.real import RealData
from atomhub.data.sources import open_source
from atomhub.dataset import DistilledDataset
from atomhub.errors import AtomhubWarning, IntegrityError, NotFoundError, UsageError, check_whole, first_line
from atomhub.files import read_regular, user_path
from atomhub.manifest import Format, Manifest, check_name
from atomhub.provenance import Imported, Provenance
from atomhub.results import Results
from atomhub.training.nets import InputSpec
from atomhub.training.networks import find_network
from atomhub.version import versions


def import_set(
    file: str | Path, like: object, *, labels: str | Path | None = None,
    space: Literal["auto", "pixels", "normalized", "zca"] = "auto", formation: int = 1, name: str | None = None,
    network: str = "convnet", **options: Any,
) -> DistilledDataset:  # fmt: skip
    """Read synthetic images that another project published; in memory, with float32 pixels.

    Understood are the files of DC, DSA, DM and DataDAM (``{"data": [[images, labels], ...]}``, of which the last
    experiment is taken), of IDC, DREAM, DANCE and NCFM (``[images, labels]``), and of MTT and its family (a tensor
    of images, with the labels in a file of their own). ``torch.load(weights_only=True)`` reads them: nothing in a file
    can run.

    Args:
        file: The file, ``.pt`` or ``.pth``.
        like: The real dataset it was distilled from: what :func:`atomhub.open_source` understands.
        labels: File of the labels; None: where the name of ``file`` has ``images`` in it, the one beside it that has
            ``labels`` instead.
        space: What the numbers are: ``pixels`` in 0..1, ``normalized`` by mean and standard deviation, or ``zca``:
            whitened after that, which is undone with a whitening fit on the real training images; ``auto``: pixels if
            they lie within 0..1 (or nearly), else normalised. Images of whole numbers, uint8, are pixels in 0..255.
        formation: Views per side in each stored image (IDC, DREAM, DANCE and NCFM: 2); they become images, so ipc
            grows by its square.
        name: Name of the set; None: ``<source>-ipc<ipc>-<stem of the file>``.
        network: The network to measure it with, such as ``convnet:width=128,norm=instance``.
        options: Source options (:class:`atomhub.data.real.SourceOptions`), such as ``test_fraction``.

    Raises:
        NotFoundError: the file or the labels are not there.
        IntegrityError: the file holds something else than tensors, which is never unpickled.
        UsageError: the tensors do not fit the source, or are not what ``space`` says.
    """
    if space not in ("auto", "pixels", "normalized", "zca"):
        raise UsageError(f"The space cannot be {space!r}.", "Use auto, pixels, normalized or zca.")
    check_whole("The formation", formation, 1, 64)
    find_network(network, InputSpec(3, 10, 32), tried=False)  # a wrong name is reported before the work
    path = user_path(file)
    content = _load(path)
    layout, images, targets = _found(path, content, None if labels is None else Path(labels).expanduser())
    real = like if isinstance(like, RealData) else open_source(like, **options)
    measured = find_network(network, InputSpec(real.info.channels, len(real.class_names), real.info.size)).spec
    images, order, ipc = _fitted(path, images, targets, real, formation)
    images = images[order]
    chosen = space if space != "auto" else _guessed(images)
    normalization = Normalization(real.mean, real.std)
    if chosen == "zca":
        normalization = fit_zca(real.train.images, normalization)
    pixels = images if chosen == "pixels" else normalization.undo(images)
    if formation > 1:
        missing = -pixels.shape[-1] % formation  # filled with grey, as IDC does
        padded = F.pad(pixels, (0, missing) * 2, value=0.5).unflatten(0, (-1, ipc))
        pixels = to_views(padded, formation, real.info.size).flatten(0, 1)
        ipc *= formation**2
    clipped = float(((pixels < -1e-4) | (pixels > 1 + 1e-4)).float().mean())
    if clipped > 0.5:
        raise UsageError(
            f"{clipped:.0%} of the pixel values in {path} would lie outside 0..1: they are not {chosen}.",
            "Say what they are: `space`: pixels, normalized or zca.",
        )
    if clipped > 0.01:
        doubt = f": are they really {chosen}?" if clipped > 0.2 else ", so this set is not quite what the file holds."
        warnings.warn(
            f"{clipped:.0%} of the pixel values lie outside 0..1 and are clipped{doubt}", AtomhubWarning, stacklevel=2
        )
    about = Imported(
        file=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), layout=layout, space=chosen,
        formation=formation, clipped=clipped,
    )  # fmt: skip
    manifest = Manifest(
        name=check_name(name or f"{real.name}-ipc{ipc}-{re.sub(r'[^A-Za-z0-9._-]+', '-', path.stem)}"[:96]),
        format=Format(
            class_names=real.class_names, ipc=ipc, channels=real.info.channels, size=real.info.size, pixels="float32",
            mean=real.mean, std=real.std, flip=real.info.flip,
        ),
        provenance=Provenance(
            source=real.info,
            imported=about,
            command=command(
                "import", path.name, like=real.info.called, space=chosen,
                labels=None if labels is None else Path(labels).name,
                formation=formation if formation > 1 else None, network=measured, name=name, **real.options.chosen(),
            ),
            versions=versions("torch", "torchvision"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        results=Results(network=measured),
    )  # fmt: skip
    return DistilledDataset(pixels.clamp(0, 1), torch.arange(len(real.class_names)).repeat_interleave(ipc), manifest)


def _load(path: Path) -> Any:
    """Return what a .pt file holds, if it is tensors, numbers and containers of them."""
    try:
        content = read_regular(path, limits.IMAGES)
    except OSError as error:
        raise NotFoundError(f"The file {str(path)!r} cannot be read: {error.strerror}.") from None
    if zipfile.is_zipfile(io.BytesIO(content)):  # torch.save compresses nothing
        try:
            inside = sum(member.file_size for member in zipfile.ZipFile(io.BytesIO(content)).infolist())
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            inside = 0  # torch says what is wrong with it
        if inside > 2 * len(content) + 2**20:
            raise IntegrityError(
                f"{path} would have {inside} bytes unpacked, and has {len(content)}.", "It is not read."
            )
    # DC's files keep accuracies as NumPy numbers
    from numpy.dtypes import Float32DType, Float64DType, Int64DType

    scalar = np.float64(0).__reduce__()[0]
    safe: list[Any] = [
        scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, Float32DType, Float64DType, Int64DType,
    ]  # fmt: skip
    try:
        with torch.serialization.safe_globals(safe), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files use other versions of the protocol
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a stranger's bytes make of the reader
        if "WeightsUnpickler" in str(error) or "weights_only" in str(error).lower():
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f": it needs {found[1]}" if found else ""
            raise IntegrityError(
                f"{path} holds more than tensors{what}, and is not unpickled.",
                "Save images and labels alone: torch.save([images, labels], ...)",
            ) from None
        raise IntegrityError(f"{path} is not a file of torch.save: {first_line(error)[:160]}.") from None


def _found(path: Path, content: Any, labels: Path | None) -> tuple[Literal["dc", "pair", "tensors"], Tensor, Tensor]:
    """Return how the tensors lie in a file, the images, and the labels."""
    layout: Literal["dc", "pair", "tensors"] = "tensors"
    if isinstance(content, dict) and isinstance(content.get("data"), list | tuple) and content["data"]:
        layout, data = "dc", content["data"]
        pair = data if isinstance(data[0], Tensor) else data[-1]
    elif isinstance(content, list | tuple) and len(content) == 2:
        layout, pair = "pair", content
    elif isinstance(content, Tensor):
        beside = path.with_name(path.name.replace("images", "labels"))
        place = labels or (beside if "images" in path.name else None)
        if place is None:
            raise NotFoundError(f"{path} holds images alone.", "Name the file of their labels: `labels`.")
        pair = (content, _load(place))
    else:
        raise IntegrityError(f"{path} holds {type(content).__name__}, not images and labels.", _KNOWN)
    if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(t, Tensor) for t in pair)):
        raise IntegrityError(f"{path} does not hold a tensor of images and one of labels.", _KNOWN)
    return layout, pair[0], pair[1]


_KNOWN = "Known are the files of DC, DSA, DM, DataDAM, IDC, DREAM, DANCE, NCFM and MTT."


def _fitted(path: Path, images: Tensor, labels: Tensor, real: RealData, formation: int) -> tuple[Tensor, Tensor, int]:
    """Return images, their order by class, and ipc; UsageError if they do not fit the source."""
    info, classes = real.info, len(real.class_names)
    shape = (info.channels, info.size, info.size)
    for what, tensor in (("images", images), ("labels", labels)):
        plain = (
            not tensor.is_nested
            and tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and not tensor.is_quantized
        )
        # a view of one number can claim to be of any size
        if (
            not plain
            or tensor.is_complex()
            or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise UsageError(f"{path} has {what} that are not a plain tensor of numbers.")
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise UsageError(f"{path} has images of {images.dtype}.", "Known are floating point numbers and uint8.")
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise UsageError(
            f"{path} has images of shape {tuple(images.shape)}, and {info.id} ones of {shape}.",
            "Name the source it was distilled from: `like`.",
        )
    labels = _numbered(labels, (len(images), classes))
    whole = labels.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if labels.ndim != 1 or len(labels) != len(images) or not whole:
        raise UsageError(
            f"{path} has labels of {labels.dtype} and shape {tuple(labels.shape)} for {len(images)} images."
        )
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UsageError(f"{path} has labels that are not 0 to {classes - 1}, the classes of {info.id}.")
    labels = labels.long()
    images = images.detach().float() / 255 if images.dtype == torch.uint8 else images.detach().float()
    if not bool(images.isfinite().all()):
        raise UsageError(f"{path} has values that are not finite.")
    counts = torch.bincount(labels, minlength=classes)
    if counts.min() < counts.max():
        raise UsageError(f"{path} has between {int(counts.min())} and {int(counts.max())} images per class: "
                         "a set needs the same number of each.")  # fmt: skip
    if formation > info.size // 2:
        raise UsageError(f"The formation cannot be {formation}: use 1 to {info.size // 2}.")
    return images, labels.argsort(stable=True), int(counts[0])


def _numbered(labels: Tensor, soft: tuple[int, int]) -> Tensor:
    """Return labels as class numbers where they are those in floating point, or probabilities of shape ``soft``."""
    if labels.is_floating_point():
        labels = labels.float()
    if labels.shape == soft:
        labels = labels.argmax(1)
        warnings.warn("The labels are soft: the class they say is taken.", AtomhubWarning, stacklevel=4)
    whole = labels.is_floating_point() and bool(labels.isfinite().all() and (labels == labels.round()).all())
    return labels.long() if whole else labels  # DataDAM publishes class numbers in float32


def _guessed(images: Tensor) -> Literal["pixels", "normalized"]:
    """Pixels optimised in 0..1 stray a little; normalised ones have many values below 0."""
    outside = float(((images < -0.1) | (images > 1.1)).float().mean())
    return "pixels" if outside < 0.01 else "normalized"
