"""Files of other projects: written as they want them, read without trusting them."""

import pickle

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import atomhub
from atomhub.core.synthetic import to_views
from atomhub.errors import AtomhubError, AtomhubWarning, IntegrityError, NotFoundError, UsageError
from atomhub.interop.exporting import export
from atomhub.interop.importing import import_set
from atomhub.training.protocols import PROTOCOLS, Protocol


@pytest.fixture
def published(tmp_path, digits1):
    """Write ``content`` to a file as torch.save does, and return its path."""

    def write(content, name="res.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def same(imported, distilled, tolerance=1e-6):
    """Whether two sets hold the same pixels."""
    return torch.allclose(imported.images, distilled.images.float() / 255, atol=tolerance)


def test_the_files_of_dc_dm_and_datadam_are_read(home, digits1, published):
    images, labels = digits1.as_tensors()
    scores = {"ConvNet": [np.float64(12.5), np.float32(3)]}  # as their scripts keep them
    for content in (
        {"data": [[torch.zeros_like(images), labels], [images, labels]], "accs_all_exps": scores},
        {"data": [images, labels]},
    ):
        imported = import_set(published(content), "digits")
        assert same(imported, digits1)
        assert imported.manifest.provenance.imported.layout == "dc"
        assert imported.manifest.provenance.imported.space == "normalized"


def test_the_files_of_idc_dream_dance_and_ncfm_are_read(home, digits1, published):
    pixels = digits1.images.float() / 255
    imported = import_set(published([pixels, digits1.labels]), "digits", name="pair")
    assert same(imported, digits1)
    said = imported.manifest.provenance.imported
    assert (imported.name, said.layout, said.space) == ("pair", "pair", "pixels")


def test_the_files_of_mtt_are_read_with_the_labels_beside_them(home, digits1, published):
    images, labels = digits1.as_tensors()
    file = published(images, "images_best.pt")
    with pytest.raises(NotFoundError, match="labels_best.pt"):
        import_set(file, "digits")
    published(labels, "labels_best.pt")
    assert same(import_set(file, "digits"), digits1)
    other = published(images, "syn.pt")
    with pytest.raises(NotFoundError, match="(?s)holds images alone.*labels="):
        import_set(other, "digits")
    assert same(import_set(other, "digits", labels=file.with_name("labels_best.pt")), digits1)


def test_whitening_is_undone(home, published):
    distilled = atomhub.distill("digits", 1, "atom", {"iterations": 1, "zca": True})
    imported = import_set(published(list(distilled.as_tensors())), "digits", space="zca")
    assert same(imported, distilled, 1e-3)


def test_images_in_any_order_are_sorted_by_class(home, digits1, published):
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    images, labels = digits1.as_tensors()
    imported = import_set(published([images[order], labels[order].to(torch.int32)]), "digits")
    assert same(imported, digits1)
    assert imported.labels.tolist() == list(range(10))


def test_multi_formation_is_decoded_view_by_view(home, digits1, published):
    images = torch.arange(16.0).view(1, 1, 4, 4).repeat(2, 1, 1, 1)
    images[1] += 100
    views = to_views(images[:, None], 2).flatten(0, 1)
    assert views.shape == (8, 1, 4, 4)
    for i, corner in enumerate(([0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15])):
        small = torch.tensor(corner, dtype=torch.float32).view(1, 1, 2, 2)
        large = torch.nn.functional.interpolate(small, size=(4, 4), mode="bilinear")[0]
        assert torch.allclose(views[i], large)
        assert torch.allclose(views[4 + i], large + 100)
    imported = import_set(published([digits1.images.float() / 255, digits1.labels]), "digits", formation=2)
    assert (imported.manifest.format.ipc, imported.labels.tolist()) == (4, [k for k in range(10) for _ in range(4)])
    assert imported.manifest.provenance.imported.formation == 2


def test_an_imported_set_is_kept_measured_and_says_what_it_is(home, digits1, published, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(3, 256, "test"))
    imported = import_set(published(list(digits1.as_tensors())), "digits", network="convnet:width=8").save()
    again = atomhub.load("digits-ipc1-res")
    assert torch.equal(again.images, imported.images)
    result = atomhub.evaluate(again, protocol="brief", runs=1)
    assert result.network.startswith("convnet:width=8")
    assert result.baseline["rounded"].runs == 1
    card = (again.path / "README.md").read_text()
    assert "made by dataset distillation by others" in card
    assert "imported from" in card
    assert "The whole recipe" not in card


def test_the_recorded_command_imports_the_same_set(home, digits1, published, shell, monkeypatch):
    file = published(list(digits1.as_tensors()))
    imported = import_set(file, "digits", network="convnet:width=8", name="mine", size=16)
    monkeypatch.chdir(file.parent)
    shell(imported.manifest.provenance.command)
    again = atomhub.load("mine")
    assert torch.equal(again.images, imported.images)
    assert again.manifest.results.network == imported.manifest.results.network
    assert again.manifest.provenance.command == imported.manifest.provenance.command


def test_the_recorded_command_names_labels_and_how_the_source_was_read(home, digits1, tmp_path, shell, monkeypatch):
    torch.save(digits1.as_tensors()[0], tmp_path / "pictures.pt")
    torch.save(digits1.labels, tmp_path / "numbers.pt")
    labels = tmp_path / "numbers.pt"
    imported = import_set(tmp_path / "pictures.pt", "digits", labels=labels, name="mine", flip=True, test_fraction=0.3)
    monkeypatch.chdir(tmp_path)
    shell(imported.manifest.provenance.command)
    again = atomhub.load("mine")
    assert torch.equal(again.images, imported.images)
    assert again.manifest.format == imported.manifest.format
    assert again.manifest.provenance.source == imported.manifest.provenance.source


def test_values_outside_the_pixels_are_clipped_and_counted(home, digits1, published):
    images, labels = digits1.as_tensors()
    images[0] = 50
    with pytest.warns(AtomhubWarning, match="^10% of the pixel values lie outside.*clipped, so this set is not quite"):
        imported = import_set(published([images, labels]), "digits")
    assert imported.manifest.provenance.imported.clipped == pytest.approx(0.1)
    assert imported.images.max() == 1
    images[1:3] = 50
    with pytest.warns(AtomhubWarning, match="are they really normalized"):
        import_set(published([images, labels]), "digits")
    for wrong in (images * 50, (digits1.images.float())):  # neither normalised nor pixels in 0..1
        with pytest.raises(UsageError, match="(?s)they are not normalized.*space="):
            import_set(published([wrong, labels]), "digits")
    assert same(import_set(published([digits1.images, labels]), "digits"), digits1)  # uint8


def test_soft_labels_count_as_the_class_they_say(home, digits1, published):
    images, labels = digits1.as_tensors()
    with pytest.warns(AtomhubWarning, match="labels are soft"):
        assert same(import_set(published([images, torch.eye(10)[labels] * 3 - 1]), "digits"), digits1)


class Evil:
    """Would leave a trace if it was unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_a_file_that_would_run_something_is_refused_unopened(home, tmp_path, digits1):
    trace = tmp_path / "trace"
    images, labels = digits1.as_tensors()
    torch.save({"data": [[images, labels]], "more": Evil(trace)}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps([Evil(trace)]))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(IntegrityError, match="holds more than tensors.*not unpickled|not a file of torch.save"):
            import_set(tmp_path / name, "digits")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: "text", IntegrityError, "holds str, not images and labels"),
        (lambda x, y: {"data": [[x, "labels"]]}, IntegrityError, "does not hold a tensor of images"),
        (
            lambda x, y: [x[..., :8], y],
            UsageError,
            r"(?s)shape \(10, 1, 16, 8\), and digits ones of \(1, 16, 16\).*like=",
        ),
        (lambda x, y: [x[:9], y[:9]], UsageError, "between 0 and 1 images per class"),
        (lambda x, y: [x, y + 1], UsageError, "labels that are not 0 to 9"),
        (lambda x, y: [x, y + 0.5], UsageError, r"labels of torch.float32 and shape \(10,\)"),
        (lambda x, y: [x, y.bool()], UsageError, "labels of torch.bool"),
        (lambda x, y: [x, y[:5].clone()], UsageError, r"shape \(5,\) for 10 images"),
        (lambda x, y: [x.to(torch.complex64), y], UsageError, "images that are not a plain tensor"),
        (lambda x, y: [x.to_sparse(), y], UsageError, "images that are not a plain tensor"),
        (lambda x, y: [x, y.to_sparse()], UsageError, "labels that are not a plain tensor"),
        (lambda x, y: [x.int(), y], UsageError, "images of torch.int32"),
        (lambda x, y: [torch.zeros(1).expand(10**9, 1, 16, 16), y], UsageError, "images that are not a plain tensor"),
        (lambda x, y: [x * float("nan"), y], UsageError, "values that are not finite"),
    ],
)
def test_what_does_not_fit_is_refused(home, digits1, published, change, error, message):
    with pytest.raises(error, match=message):
        import_set(published(change(*digits1.as_tensors())), "digits")


def test_a_file_that_is_not_there_or_not_of_torch(home, tmp_path):
    with pytest.raises(NotFoundError, match="none.pt' cannot be read"):
        import_set(tmp_path / "none.pt", "digits")
    (tmp_path / "noise.pt").write_bytes(b"noise" * 100)
    with pytest.raises(IntegrityError, match="not a file of torch.save|not unpickled"):
        import_set(tmp_path / "noise.pt", "digits")
    wrong = [
        ({"space": "hsv"}, "space cannot be 'hsv'"),
        ({"formation": "2"}, "formation cannot be '2'"),
        ({"network": "convnet:zca=true"}, "has no option 'zca'"),
    ]
    for arguments, message in wrong:
        with pytest.raises(UsageError, match=message):
            import_set(tmp_path / "noise.pt", "digits", **arguments)
    with pytest.raises(UsageError, match="formation cannot be 9"):
        torch.save([torch.zeros(10, 1, 16, 16), torch.arange(10)], tmp_path / "a.pt")
        import_set(tmp_path / "a.pt", "digits", formation=9)


def test_an_exported_dc_file_is_imported_as_it_was(home, tmp_path, digits1):
    folder = export(digits1, "dc", tmp_path / "out")
    assert same(import_set(folder / f"{digits1.name}.pt", "digits"), digits1)


def test_ddranking_gets_normalised_class_major_tensors_and_its_config(tmp_path, digits1):
    folder = export(digits1, "ddranking", tmp_path / "out")
    images, labels = digits1.as_tensors()
    assert torch.equal(torch.load(folder / "images.pt", weights_only=True), images)
    assert torch.equal(torch.load(folder / "labels.pt", weights_only=True), labels)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["ipc"], config["im_size"], config["use_zca"]) == (1, [16, 16], False)
    assert "flip" not in config["aug_params"]  # digits


def test_images_are_exact_and_npz_is_for_numpy(tmp_path, digits1):
    folder = export(digits1, "images", tmp_path / "pictures")
    pictures = sorted(folder.glob("*/*.png"))
    assert [p.parent.name for p in pictures] == [f"{k}_{k}" for k in range(10)]
    assert all(np.array_equal(np.asarray(Image.open(p)), digits1.images[k, 0]) for k, p in enumerate(pictures))
    content = np.load(export(digits1, "npz", tmp_path / "numpy") / f"{digits1.name}.npz")
    assert np.array_equal(content["images"], digits1.images.numpy())
    assert content["class_names"].tolist() == list(digits1.class_names)


def test_an_export_replaces_only_an_export(tmp_path, digits1):
    export(digits1, "npz", tmp_path / "out")
    with pytest.raises(AtomhubError, match="already exists"):
        export(digits1, "images", tmp_path / "out")
    export(digits1, "images", tmp_path / "out", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(AtomhubError, match="was not written by this command, so it is not replaced"):
        export(digits1, "npz", tmp_path / "mine", overwrite=True)
    with pytest.raises(UsageError, match="(?s)no format 'jpeg'.*npz"):
        export(digits1, "jpeg", tmp_path / "new")
