"""Labels that travel: a teacher's, of every batch, stored with a set and played again without the teacher."""

import json
import math
import re
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import atomhub
from atomhub import limits
from atomhub.errors import IntegrityError, NotFoundError, UsageError
from atomhub.job.teachers import taught
from atomhub.presets import PRESETS, TUNED
from atomhub.stored import StoredLabels
from atomhub.training.measure import network_for
from atomhub.training.protocols import PROTOCOLS


@pytest.fixture(autouse=True)
def quickly(home, monkeypatch):
    """A teacher of two epochs, students of three."""
    monkeypatch.setitem(TUNED, "digits", {"norm": "instance", "matcher": "convnet", "width": 8})
    monkeypatch.setitem(PRESETS, "rded", PRESETS["rded"] | {"bank_epochs": 2})
    monkeypatch.setitem(PROTOCOLS, "rded", replace(PROTOCOLS["rded"], epochs=3))


@pytest.fixture
def labelled(digits1):
    return atomhub.label(digits1, epochs=3)


def seen(images, stored, e, start, size, batch):
    """The images of a batch as ``docs/format.md`` describes them, pixel by pixel in float64."""
    side, found = images.shape[-1], []
    for row in range(start, start + size):
        image = images[stored.order[e, row]].double().numpy()
        half = side // 2
        cut = [image[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
        a, b, c, d = (cut[q] for q in stored.quarters[e, row])
        image = np.concatenate([np.concatenate([a, b], 2), np.concatenate([c, d], 2)], 1)
        left, top, width, height = stored.parts[e, row].double().tolist()
        out = np.zeros_like(image)
        for y in range(side):
            for x in range(side):
                at = []
                for low, length, place in ((top, height, y), (left, width, x)):
                    p = min(max((low + length * (place + 0.5) / side) * side - 0.5, 0), side - 1)
                    first = min(math.floor(p), side - 2)
                    at.append((first, p - first))
                (i, v), (j, u) = at
                patch = image[:, i : i + 2, j : j + 2]
                out[:, y, x] = (patch * np.outer([1 - v, v], [1 - u, u])).sum((1, 2))
        found.append(out[:, :, ::-1] if stored.mirrored[e, row] else out)
    left, right, top, bottom = stored.boxes[e, batch].tolist()
    mixed = [image.copy() for image in found]
    for n, image in enumerate(mixed):
        image[:, top:bottom, left:right] = found[stored.partners[e, start + n]][:, top:bottom, left:right]
    return np.stack(mixed)


def test_batches_are_those_that_the_format_describes(labelled):
    stored, images = labelled.stored, labelled.as_tensors()[0]
    for e in range(stored.epochs):
        ((batch, logits),) = stored.epoch(images, e)
        assert np.abs(batch[0].numpy() - seen(images, stored, e, 0, 10, 0)).max() < 1e-4
        assert torch.equal(logits[0], stored.logits[e])
    assert not stored.mirrored.any()  # digits
    flips = replace(stored, mirrored=torch.ones_like(stored.mirrored))
    ((batch, _),) = flips.epoch(images, 1)
    assert np.abs(batch[0].numpy() - seen(images, flips, 1, 0, 10, 0)).max() < 1e-4


def test_networks_learn_what_they_learn_from_the_live_teacher(labelled):
    one = {"protocol": "rded", "runs": 1, "network": "lenet", "per_class": True}
    live = atomhub.evaluate(labelled, baseline=None, **one)
    kept = atomhub.evaluate(labelled, labels="stored", **one)  # of the seed that the network has
    assert np.abs(np.array(live.score.confusion) - kept.score.confusion).sum() <= 8  # float16 labels
    assert (live.labels, kept.labels) == ("soft", "stored")
    assert kept.teacher.startswith(live.teacher) and kept.teacher.endswith(" (3 epochs)")
    assert kept.taught == f"stored labels of {kept.teacher}"
    again = atomhub.verify(labelled, 2)
    assert [v.claim.labels for v in again if v.measured] == ["soft", "stored"]


def test_a_loader_gives_the_next_epoch_in_every_pass_and_begins_again(labelled):
    loader = labelled.loader(labels="stored", size=20)
    passes = [next(iter(loader)) for _ in range(4)]
    images, labels = passes[0]
    assert (images.shape, labels.shape, len(loader)) == ((10, 1, 20, 20), (10, 10), 1)
    assert torch.allclose(labels, labelled.stored.logits[0].float().softmax(1))
    assert not torch.equal(images, passes[1][0]) and torch.equal(images, passes[3][0])
    with pytest.raises(UsageError, match="The temperature cannot be 0"):
        labelled.loader(labels="stored", temperature=0)
    soft = next(iter(labelled.loader(labels="stored", temperature=20.0)))[1]  # another loader goes on as well
    assert torch.allclose(soft, (labelled.stored.logits[1].float() / 20).softmax(1))
    with pytest.raises(UsageError, match="by one process"):
        labelled.loader(labels="stored", num_workers=2)


def test_they_lie_beside_the_set_which_loads_without_them(labelled, tmp_path, hub, writer):
    saved = labelled.save()
    file = saved.path / "labels.safetensors"
    about = saved.manifest.provenance.stored
    assert (about.epochs, about.size) == (3, file.stat().st_size)
    assert "`labels.safetensors`" in (saved.path / "README.md").read_text()
    found = atomhub.load(saved.name)
    assert torch.equal(found.stored.logits, labelled.stored.logits)
    repo = atomhub.load(saved.name).push_to_hub(f"alice/{saved.name}-x").split("datasets/")[-1]
    assert "labels.safetensors" in hub.files(repo)
    pulled = atomhub.load(repo)
    assert pulled.stored is None and torch.equal(pulled.images, labelled.images)
    with pytest.raises(NotFoundError, match=r"labels=True"):
        pulled.loader(labels="stored")
    assert torch.equal(atomhub.load(repo, labels=True).stored.order, labelled.stored.order)
    assert len(datasets.load_dataset(str(saved.path), split="train")) == 10
    with pytest.raises(NotFoundError, match="has no stored labels"):
        atomhub.load("digits-ipc1").loader(labels="stored")


def test_a_push_does_not_lose_labels_that_were_not_downloaded(labelled, hub, writer, tmp_path):
    repo = labelled.push_to_hub("alice/kept-labels").split("datasets/")[-1]
    pulled = atomhub.load(repo)
    with pytest.raises(NotFoundError, match="'digits-ipc1-labels' has no stored labels here") as refused:
        pulled.push_to_hub(repo)
    assert f"atomhub.load({repo!r}, labels=True)" in refused.value.hint
    copy = pulled.save(tmp_path / "copy")  # which does not say that it has what it has not
    assert atomhub.load(copy.path).manifest.provenance.stored is None
    atomhub.load(repo, labels=True).push_to_hub(repo)
    assert "labels.safetensors" in hub.files(repo)
    copy.push_to_hub(repo)
    assert "labels.safetensors" not in hub.files(repo)


@pytest.mark.parametrize("fields", [{"formation": 2}, {"zca": True}, {"pixels": "uint4"}, {"pixels": "float32"}])
def test_whatever_a_set_is_made_of_its_batches_have_the_labels_of_the_live_teacher(fields):
    one = atomhub.distill("digits", 1, "atom", {"iterations": 1, "width": 8, "real_batch": 8} | fields)
    stored = atomhub.label(one, epochs=2).stored
    images, teacher = one.as_tensors()[0], taught(one, "rded", {})["teacher"]()
    assert stored.order.shape == (2, len(images))
    for batch, logits in stored.epoch(images, 1):
        assert torch.allclose(teacher.logits(batch[0]), logits[0].float(), rtol=2e-3, atol=2e-3)


def test_a_claim_of_stored_labels_is_verified_from_the_hub(labelled, hub, writer, run):
    atomhub.evaluate(labelled, "lenet", "rded", 2, labels="stored")
    repo = labelled.push_to_hub("alice/claims").split("datasets/")[-1]
    _, out, _ = run("verify", repo, "--runs", "2")
    assert "rded, stored labels of convnet" in out and "cannot be repeated" not in out


def test_the_teacher_of_some_classes_or_another_order_is_another(digits1, monkeypatch):
    """Whichever was trained first: a teacher of other classes would label all wrong."""
    monkeypatch.setitem(PRESETS, "rded", PRESETS["rded"] | {"bank_epochs": 12})
    backwards = digits1.subset(classes=list(range(9, -1, -1)), name="backwards")
    for one in (digits1.subset(classes=[3, 1], name="few"), backwards, digits1):
        teacher, (images, labels) = taught(one, "rded", {})["teacher"](), one.test_split()
        right = teacher.logits(one.normalize(images)).argmax(1) == labels
        assert right.float().mean() > 0.7, one.name
        assert atomhub.label(one, epochs=1).stored.logits.shape[-1] == len(one.class_names)


def test_labels_made_anew_come_without_the_results_of_the_old_ones(labelled):
    how = {"protocol": "rded", "runs": 1, "network": "lenet", "baseline": None}
    atomhub.evaluate(labelled, **how)
    atomhub.evaluate(labelled, labels="stored", **how)
    again = atomhub.label(labelled, epochs=2, name="again")
    assert [r.labels for r in again.manifest.results.measured] == ["soft"]


@pytest.mark.parametrize("name", ["order", "quarters", "parts", "partners", "boxes", "logits"])
def test_labels_of_strangers_are_checked(labelled, name):
    tensor = getattr(labelled.stored, name).clone()
    tensor.flatten()[0] = -1 if name in ("parts", "partners", "boxes") else float("nan") if name == "logits" else 99
    bad = replace(labelled.stored, **{name: tensor})
    with pytest.raises(IntegrityError, match=f"{name} is out of range"):
        atomhub.load(with_labels(labelled, bad.content()).path)


def test_labels_that_are_not_those_described_are_refused(labelled):
    saved = labelled.save()
    file = saved.path / "labels.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"labels.safetensors is not the file"):
        atomhub.load(saved.name)
    shorter = replace(labelled.stored, logits=labelled.stored.logits[:, :, :9])
    with pytest.raises(IntegrityError, match="holds no stored labels"):
        atomhub.load(with_labels(labelled, shorter.content()).path)


def with_labels(distilled, content):
    """Save a set with this content as its labels, described as if they were."""
    import hashlib

    class Given(StoredLabels):
        def content(self):
            return content

    about = distilled.manifest.provenance.stored
    about = about.model_copy(update={"size": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    stored = Given(**vars(distilled.stored))
    manifest = distilled.manifest.replace(provenance={"stored": about})
    return replace(distilled, manifest=manifest, stored=stored).save(overwrite=True)


def test_the_command_stores_and_trains_from_them(digits1, home, run):
    name = replace(digits1, manifest=digits1.manifest.replace(name="tens")).save().name
    code, out, err = run("label", name, "--epochs", "2", "--json")
    assert code == 0, err
    about = json.loads(out)
    assert (about["name"], about["stored"]["epochs"]) == ("tens-labels", 2)
    with safe_open(f"{about['path']}/labels.safetensors", "pt") as file:
        assert file.get_slice("logits").get_shape() == [2, 10, 10]
    code, out, err = run("evaluate", "tens-labels", "--protocol", "rded", "--labels", "stored", "--network", "lenet",
                         "--runs", "1", "--json")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["results"][0]["labels"] == "stored"
    code, out, err = run("train", "tens-labels", "--protocol", "rded", "--labels", "stored", "--network", "lenet",
                         "--no-test", "--output", str(home / "net"))  # fmt: skip
    assert code == 0, err
    assert "lenet: not tested." in err
    assert "It was not tested on real images." in (home / "net" / "README.md").read_text()
    assert "2 epochs by convnet" in run("info", "tens-labels")[1]
    code, _, err = run("evaluate", "tens-labels", "--protocol", "rded", "--labels", "stored", "--whole")
    assert (code, "no baseline 'whole'" in err) == (1, True) or code == 2


def test_what_cannot_be_is_said(labelled, digits1, monkeypatch):
    with pytest.raises(UsageError, match="Stored labels are for the protocol 'rded', not for 'quick'"):
        atomhub.evaluate(labelled, protocol="quick", labels="stored")
    with pytest.raises(UsageError, match="not for 'dm'"):
        atomhub.train("lenet", labelled, "dm", labels="stored")
    with pytest.raises(NotFoundError, match="has no stored labels"):
        atomhub.evaluate(digits1, protocol="rded", labels="stored")
    with pytest.raises(UsageError, match="There are no 'tepid' labels"):
        labelled.loader(labels="tepid")
    monkeypatch.setattr(limits, "LABELS", 10_000)
    with pytest.raises(UsageError, match=r"(?s)300 epochs would take more than .*\nUse epochs=20 or less"):
        atomhub.label(digits1)


def test_another_network_can_be_the_teacher_and_is_again_in_verify(digits1, run):
    name = replace(digits1, manifest=digits1.manifest.replace(name="tens")).save().name
    assert (
        run("evaluate", name, "--protocol", "rded", "--teacher", "lenet", "--network", "lenet", "--runs", "2")[0] == 0
    )
    (claim,) = atomhub.load(name).manifest.results.measured
    assert claim.teacher.startswith("lenet, 2 epochs on ")
    usual = atomhub.evaluate(digits1, "lenet", "rded", 2)
    assert usual.score.accuracies != claim.score.accuracies
    (verdict,) = atomhub.verify(atomhub.load(name))
    assert (verdict.measured.teacher, verdict.holds) == (claim.teacher, True)
    about = atomhub.label(digits1, epochs=1, teacher="lenet").manifest.provenance
    assert (about.stored.teacher, "--teacher lenet" in about.command) == (claim.teacher, True)


@pytest.mark.parametrize(("protocol", "options", "said"), [
    ("rded", {"teacher": "lenet5"}, "There is no network 'lenet5'"),
    ("rded", {"teacher": "probe/resnet18:weights=a.safetensors"}, "it is trained whole"),
    ("rded", {"teacher": "lenet", "labels": "stored"}, "those of their own teacher, not of 'lenet'"),
    ("rded", {"teacher": lambda: None}, "The teacher cannot be <function"),
    ("rded", {"teacher": ""}, "The teacher cannot be ''"),
    ("quick", {"teacher": "lenet"}, "'quick' has no teacher, so it cannot be 'lenet'"),
])  # fmt: skip
def test_a_teacher_that_cannot_be_is_said_before_the_work(labelled, protocol, options, said):
    with pytest.raises(UsageError, match=said):
        atomhub.evaluate(labelled, "lenet", protocol, 1, **options)


def test_a_teacher_starts_from_weights_and_its_claim_names_their_digest(digits1, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a@b").mkdir()
    network = network_for(digits1, "lenet")
    save_file(dict(network.build().state_dict()), "a@b/trained.safetensors")
    fresh, named = ({"teacher": name} for name in ("lenet", "lenet:weights=a@b/trained.safetensors"))
    measured = [atomhub.evaluate(digits1, "lenet", "rded", 1, baseline=[], **given) for given in (fresh, named)]
    assert re.match(r"lenet:weights=trained.safetensors@[0-9a-f]{12}, 2 epochs on ", measured[1].teacher)
    assert measured[0].score.accuracies != measured[1].score.accuracies
    digits1.manifest = digits1.manifest.replace(results={"measured": measured[1:]})
    line = atomhub.label(digits1, epochs=1, **named).manifest.provenance.command
    assert re.search(r"--teacher lenet:weights=trained.safetensors@[0-9a-f]{12} ", line)  # no folder of this machine
    shutil.copy("a@b/trained.safetensors", ".")
    assert atomhub.verify(digits1, runs=2)[0].measured.teacher == measured[1].teacher
    save_file(dict(network.build().state_dict()), "trained.safetensors")  # others, of the same name
    (verdict,) = atomhub.verify(digits1, runs=2)
    assert (verdict.measured, "have the digest" in verdict.why) == (None, True)


@pytest.mark.parametrize(("field", "value", "said"), [
    ("teacher", "lenet:weights=/etc/a.safetensors, 2 epochs on digits", "weights are a path"),
    ("teacher", " lenet:weights =/etc/a.safetensors, 2 epochs on digits", "weights are a path"),
    ("network", " probe/lenet:weights\t=/etc/a.safetensors", "weights are a path"),
    ("teacher", " probe/lenet:weights=a.safetensors, 2 epochs on digits", "it is trained whole"),
    ("teacher", "convnet:weights=a.safetensors, 2 epochs on digits", "Cannot read the weights"),
    ("teacher", "torchvision/resnet18:weights=V9, 2 epochs on digits", "There are no weights 'V9'"),
    ("teacher", ", x", "The teacher cannot be ''"),
    ("teacher", "lenet, 2000 epochs on digits", "Its teacher was lenet, 2000 epochs, and is lenet, 2 epochs here"),
])  # fmt: skip
def test_a_claim_of_a_stranger_chooses_no_file_and_stops_no_other(digits1, field, value, said):
    claim = atomhub.evaluate(digits1, "lenet", "rded", 1, baseline=[], teacher="lenet")
    false = claim.model_copy(update={field: value})
    digits1.manifest = digits1.manifest.replace(results={"measured": (false,)})
    (verdict,) = atomhub.verify(digits1, runs=2)
    assert (verdict.measured, said in verdict.why) == (None, True), verdict.why


def test_results_under_two_teachers_stand_beside_each_other(digits1):
    for teacher, baseline in ((None, ["random"]), ("lenet", [])):
        atomhub.evaluate(digits1, "lenet", "rded", 1, baseline=baseline, teacher=teacher)
    usual, other = digits1.manifest.results.measured
    assert (other.teacher.split(",")[0], other.baseline) == ("lenet", {})
    assert (usual.teacher.split(":")[0], list(usual.baseline)) == ("convnet", ["random"])


def test_a_convnet_by_name_is_the_same_teacher_in_verify(digits1, home):
    claim = atomhub.evaluate(digits1, "lenet", "rded", 1, baseline=[], teacher="convnet:width=4")
    assert claim.teacher.startswith("convnet:width=4,norm=instance, ")
    trained = set((home / "banks").iterdir())
    assert atomhub.verify(digits1, runs=2)[0].measured.teacher == claim.teacher
    assert set((home / "banks").iterdir()) == trained


def test_teachers_that_differ_in_training_alone_are_two(digits1, home):
    small = "vit:depth=1,width=16,heads=2,hidden=16,patch=4"
    for dropout in (0.0, 0.9):
        atomhub.evaluate(digits1, "lenet", "rded", 1, baseline=[], teacher=f"{small},dropout={dropout}")
    assert len(list((home / "banks").iterdir())) == 2


def test_a_wrong_teacher_is_said_before_images_are_fetched(run):
    code, _, err = run("evaluate", "cifar10-ipc1", "--protocol", "rded", "--teacher", "lenet5")
    assert (code, "There is no network 'lenet5'" in err) == (2, True)
    code, _, err = run("label", "cifar10-ipc1", "--teacher", "lenet5")
    assert (code, "There is no network 'lenet5'" in err) == (2, True)
