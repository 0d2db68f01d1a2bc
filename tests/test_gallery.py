"""The gallery: pages that say what sets say of themselves, and nothing that they would do to a browser."""

import json
import re
import threading
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from conftest import HUB

import atomhub
from atomhub.cli.main import cli
from atomhub.errors import AtomhubError
from atomhub.gallery.gather import Entry, local_sets, remote_sets
from atomhub.gallery.pages import publish_gallery, write_gallery
from atomhub.job.evaluation import Verdict, record_verdicts
from atomhub.provenance import Stored
from atomhub.results import REVISION, Measurement, Score
from atomhub.storage import store, verified


class Page(HTMLParser):
    """A page's links, tags, attributes and words; fails where a tag is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.words, self.attributes = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.links += [value for key, value in attributes if key in ("href", "src")]
        if tag not in ("meta", "link", "img", "br", "line", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def measured(mean, protocol="dm", network="convnet:width=128,norm=instance", runs=5, **more):
    score = Score(mean=mean, std=0.5, runs=runs, accuracies=(mean,) * runs, seconds=1.0)
    return Measurement(
        protocol=protocol, network=network, score=score, seed=0, revision=REVISION, test_images=10, device="CPU", **more
    )


def with_results(entry, *results, name=None, **form):
    manifest = entry.manifest.replace(results={"measured": results}, **({"format": form} if form else {}))
    return replace(entry, name=name or entry.name, manifest=manifest)


@pytest.fixture
def entry(home):
    """cifar10-ipc1, which comes with atomhub."""
    return next(e for e in local_sets()[0] if e.name == "cifar10-ipc1")


def written(folder, *entries, broken=()):
    write_gallery(entries, broken, folder)
    return {str(p.relative_to(folder)): Page(p.read_text(encoding="utf-8")) for p in folder.rglob("*.html")}


def test_the_pages_show_the_store_and_what_comes_with_atomhub(digits1, home, tmp_path):
    mine = replace(digits1, manifest=digits1.manifest.model_copy(update={"name": "my-digits"})).save()
    (home / "sets" / "odd").mkdir()
    (home / "sets" / "odd" / "manifest.json").write_text("{}")
    done = CliRunner().invoke(cli, ["gallery", "--output", str(tmp_path / "pages")], catch_exceptions=False)
    assert done.stdout.strip() == str(tmp_path / "pages" / "index.html")
    assert "Not shown: odd: " in done.stderr
    front = Page((tmp_path / "pages" / "index.html").read_text(encoding="utf-8"))
    for name in (mine.name, *store.starters()):
        assert f"sets/{name}.html" in front.links
        page = Page((tmp_path / "pages" / "sets" / f"{name}.html").read_text(encoding="utf-8"))
        assert f'distilled = atomhub.load("{name}")' in page.text
        manifest = atomhub.load(name).manifest
        for result in manifest.results.measured:
            assert result.score.text in page.text
        assert manifest.provenance.command in page.text
        assert {cls for cls in manifest.format.class_names} <= {v for k, v in page.attributes if k == "title"}
    assert "odd" in front.text


def test_every_link_stays_in_the_folder_and_leads_somewhere(home, tmp_path):
    pages = written(tmp_path / "pages", *local_sets()[0])
    for path, page in pages.items():
        for link in page.links:
            if not link.startswith(("data:,", "#")):
                assert not re.match(r"[a-z]+:|//", link), link
                assert ((tmp_path / "pages" / path).parent / link).exists(), link


def test_nothing_of_a_stranger_is_markup(entry, tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    stored = Stored(teacher=evil, protocol="rded", epochs=7, seed=0, size=2000, sha256="0" * 64)
    manifest = entry.manifest.replace(
        format={"class_names": (evil, *entry.manifest.format.class_names[1:])},
        provenance={"command": evil, "device": evil, "versions": {evil: evil}, "stored": stored},
        results={"measured": (measured(50, network=evil), measured(50, protocol=evil, teacher=evil, labels=evil))},
    )
    harmless = written(tmp_path / "a", entry)
    stranger = Entry(entry.name, manifest, entry.pictures, entry.verdicts, "https://hub.test/datasets/a/b")
    pages = written(tmp_path / "b", stranger)
    for path, page in pages.items():
        assert page.tags.count("script") == 1
        assert {key for key, _ in page.attributes} - {key for key, _ in harmless[path].attributes} <= {"title"}
        assert not any(key.startswith("on") for key, _ in page.attributes)
    assert evil in pages[f"sets/{entry.name}.html"].text
    assert f"7 epochs by {evil}, 2 kB" in pages[f"sets/{entry.name}.html"].text


@pytest.mark.parametrize("source", ["best", "source", "method", "figures", "²", "1" * 40, "__class__"])
def test_no_name_of_a_source_harms_the_pages_of_others(entry, tmp_path, source):
    info = entry.manifest.provenance.source.model_copy(update={"id": source})
    odd = entry.manifest.replace(results={"measured": (measured(50),)}, provenance={"source": info})
    pages = written(tmp_path / "pages", entry, Entry("odd", odd, entry.pictures, []))
    assert entry.name in pages["index.html"].text
    assert f"{source}, 1 per class: dm" in pages["leaderboard.html"].text


def test_a_set_that_cannot_be_shown_is_a_line(entry, tmp_path, monkeypatch):
    broken = Entry("odd", entry.manifest, {"preview.png": None}, [])
    assert "odd : " in written(tmp_path / "pages", entry, broken)["index.html"].text.replace("odd:", "odd :")


def test_the_size_of_images_costs_no_memory(entry, tmp_path):
    huge = entry.manifest.replace(format={"size": 8192, "ipc": 10})
    written(tmp_path / "pages", Entry("huge", huge, entry.pictures, []))


def test_a_picture_that_is_none_or_another_than_was_said_is_not_shown(entry, home, tmp_path):
    path = store.save(atomhub.load("cifar10-ipc1")).path
    (path / "preview.png").write_bytes(b"<svg onload=alert(1)>")
    found, broken = local_sets()
    assert "cifar10-ipc1" not in [e.name for e in found]
    assert "preview.png is not the file its manifest describes" in next(b.reason for b in broken)


class TestLeaderboard:
    def test_figures_of_different_protocols_and_norms_are_never_in_one_table(self, entry, tmp_path):
        results = [
            measured(40), measured(50, "datadam", "convnet:width=128,norm=batch"),
            measured(60, network="convnet:width=128,norm=batch"), measured(70, network="resnet18:norm=instance"),
            measured(80, labels="soft"), measured(90, runs=1).model_copy(update={"revision": REVISION - 1}),
        ]  # fmt: skip
        text = written(tmp_path / "pages", with_results(entry, *results))["leaderboard.html"].text
        assert "cifar10, 1 per class: dm, ConvNet, instance norm" in text
        assert "cifar10, 1 per class: datadam, ConvNet, batch norm" in text
        assert "40.0 ± 0.5" in text
        assert "50.0 ± 0.5" in text
        for other in (60, 70, 80, 90):
            assert f"{other}.0" not in text

    def test_the_best_is_first_and_published_figures_stand_apart_in_their_own_protocol(self, entry, tmp_path):
        random = {"random": measured(15).score, "whole": measured(85).score}
        best = with_results(entry, measured(45, baseline=random), name="best")
        text = written(tmp_path / "pages", with_results(entry, measured(40)), best)["leaderboard.html"].text
        assert text.index("best") < text.index("cifar10-ipc1")
        assert re.search(r"best 45\.0 ± 0\.5 5 15\.0 ± 0\.5 30\.0 40\.0 3\.07 kB", text)
        assert "DM published: Zhao and Bilen, WACV 2023 26.0" in text
        assert "NCFM" not in text  # nothing was measured under its protocol

    def test_accuracy_by_bytes_is_a_picture_with_words(self, entry, tmp_path):
        wide = with_results(entry, measured(55), name="wide", ipc=4)
        page = written(tmp_path / "pages", with_results(entry, measured(40)), wide)["leaderboard.html"]
        assert page.tags.count("circle") == 0  # of different ipc: two tables, of one set each
        few = with_results(entry, measured(38), name="few", pixels="uint4", version=2)
        page = written(tmp_path / "more", with_results(entry, measured(40)), few)["leaderboard.html"]
        assert page.tags.count("circle") == 2
        (label,) = [v for k, v in page.attributes if k == "aria-label" and "few" in v]
        assert "cifar10-ipc1, 3.07 kB per class, 40.0 ± 0.5" in label
        assert "few, 1.54 kB per class, 38.0 ± 0.5" in label


def test_a_gallery_is_replaced_only_where_that_is_wanted(entry, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(AtomhubError):
            write_gallery([entry], [], tmp_path / "site", overwrite)
    write_gallery([entry], [], tmp_path / "pages")
    with pytest.raises(AtomhubError, match="exists"):
        write_gallery([], [], tmp_path / "pages")
    write_gallery([], [], tmp_path / "pages", overwrite=True)
    assert "There are no sets here yet" in (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "site" / "index.html").read_text() == "mine"


@pytest.mark.usefixtures("writer")
class TestHub:
    def test_of_sets_on_the_hub_manifest_and_pictures_alone_are_fetched(self, hub, saved):
        saved.push_to_hub()
        hub.add("bob/odd", hub.files(f"alice/{saved.name}") | {"manifest.json": b"[]"})
        HUB.requests.clear()
        found, broken = remote_sets()
        assert [e.name for e in found] == [f"alice/{saved.name}"]
        assert found[0].url == f"{hub.url}/datasets/alice/{saved.name}"
        assert set(found[0].pictures) <= {"preview.png", "curve.png"}
        assert [b.name for b in broken] == ["bob/odd"]
        fetched = {path.rsplit("/", 1)[-1] for _, path, _ in HUB.requests if "/resolve/" in path}
        assert fetched <= {"manifest.json", "preview.png", "curve.png"}
        assert remote_sets("carol") == ([], [])

    def test_pages_are_published_as_a_static_space_and_old_ones_go(self, hub, saved, entry, tmp_path):
        write_gallery([entry, with_results(entry, name="other")], [], tmp_path / "pages")
        url = publish_gallery(tmp_path / "pages")
        assert url == f"{hub.url}/spaces/alice/atomhub-gallery"
        space = "spaces:alice/atomhub-gallery"
        assert b"sdk: static" in hub.files(space)["README.md"]
        assert "sets/other.html" in hub.files(space)
        write_gallery([entry], [], tmp_path / "pages", overwrite=True)
        publish_gallery(tmp_path / "pages")
        assert "sets/other.html" not in hub.files(space)
        assert "sets/cifar10-ipc1.html" in hub.files(space)
        commits = len(hub.repos[space].commits)
        publish_gallery(tmp_path / "pages")
        assert len(hub.repos[space].commits) == commits

    def test_a_verdict_is_kept_beside_a_set_published_and_shown(self, hub, saved, tmp_path, short, monkeypatch):
        monkeypatch.chdir(tmp_path)
        atomhub.evaluate(saved, protocol="quick", runs=2, baseline=None)
        run = lambda *words: CliRunner().invoke(cli, [*words], catch_exceptions=False)  # noqa: E731
        done = run("verify", saved.name, "--runs", "2", "--record", "Jane <b>Doe</b>")
        (record,) = verified.read(saved.path, atomhub.load(saved.name).manifest)
        assert record.by == "Jane <b>Doe</b>"
        assert record.holds is (done.exit_code == 0)
        atomhub.load(saved.name).push_to_hub()
        ((entry,), _) = remote_sets()
        assert entry.verdicts == [record]
        page = written(tmp_path / "pages", entry)[f"sets/alice--{saved.name}.html"]
        assert f"{record.score.text} by Jane <b>Doe</b>" in page.text
        # somebody else measures the published set, and keeps the verdict for a pull request
        done = run("verify", f"alice/{saved.name}", "--runs", "2", "--record", "Eve")
        file = tmp_path / f"alice--{saved.name}.verified.json"
        assert f"hf upload alice/{saved.name} {file.name} verified.json --repo-type dataset --create-pr" in " ".join(
            done.stderr.split()
        )
        assert json.loads(file.read_text())["verified"][0]["by"] == "Eve"
        # its owner merges it, and pushes again
        repo = f"alice/{saved.name}"
        hub.repos[repo].commit("merged", hub.files(repo) | {verified.VERIFIED: file.read_bytes()})
        atomhub.load(saved.name).push_to_hub()
        assert {v["by"] for v in json.loads(hub.files(repo)[verified.VERIFIED])["verified"]} == {record.by, "Eve"}

    def test_a_verdict_of_other_images_or_of_another_claim_counts_for_nothing(self, saved, short):
        atomhub.evaluate(saved, protocol="quick", runs=2, baseline=None)
        one = atomhub.load(saved.name)
        record_verdicts(one, atomhub.verify(one, runs=2), "Jane")
        content = (saved.path / verified.VERIFIED).read_bytes()
        assert len(verified.parse(content, one.manifest)) == 1
        claimed = one.manifest.results.measured[0]
        higher = claimed.model_copy(update={"score": claimed.score.model_copy(update={"mean": 99.9})})
        assert verified.parse(content, one.manifest.replace(results={"measured": (higher,)})) == []
        assert verified.parse(content.replace(one.manifest.tensors.encode(), b"0" * 64), one.manifest) == []
        (record,) = json.loads(content)["verified"]
        forged = {"verified": [record | {"holds": True, "score": record["score"] | {"mean": 1.0}, "allowed": 1e6}]}
        assert verified.parse(json.dumps(forged).encode(), one.manifest) == []
        for odd in (b"", b"[]", b"\xff", b'{"verified": [1]}', b'{"verified": ' + b"[" * 10_000):
            assert verified.parse(odd, one.manifest) == []

    def test_two_verdicts_at_once_are_both_kept(self, saved, short, monkeypatch):
        """The second comes between the first one's reading and its writing."""
        atomhub.evaluate(saved, protocol="quick", runs=2, baseline=None)
        one = atomhub.load(saved.name)
        verdicts, threads, parse = atomhub.verify(one, runs=2), [], verified.parse

        def interrupted(content, manifest):
            if not threads:
                threads.append(threading.Thread(target=record_verdicts, args=(one, verdicts, "Eve")))
                threads[0].start()
                threads[0].join(2)
            return parse(content, manifest)

        monkeypatch.setattr(verified, "parse", interrupted)
        record_verdicts(one, verdicts, "Jane")
        threads[0].join()
        assert {v.by for v in verified.read(saved.path, one.manifest)} == {"Jane", "Eve"}

    def test_a_file_of_verdicts_that_cannot_be_read_is_not_replaced(self, saved):
        (saved.path / verified.VERIFIED).write_text('{"verified": [,]}')
        result = atomhub.evaluate(saved, protocol="quick", runs=2, baseline=None)
        with pytest.raises(AtomhubError, match="verified.json cannot be read"):
            record_verdicts(atomhub.load(saved.name), [Verdict(result, result, True, 1.0, 1.0)], "Jane")
        assert (saved.path / verified.VERIFIED).read_text() == '{"verified": [,]}'

    def test_a_space_that_the_hub_has_just_filled_is_taken(self, hub, entry, tmp_path):
        hub.add("spaces:alice/atomhub-gallery", {"index.html": b"hello", "style.css": b"", "README.md": b"---\n---\n"})
        write_gallery([entry], [], tmp_path / "pages")
        publish_gallery(tmp_path / "pages")
        assert b"Distilled datasets" in hub.files("spaces:alice/atomhub-gallery")["index.html"]

    def test_a_space_of_something_else_stays_as_it_is(self, hub, entry, tmp_path):
        hub.add("spaces:alice/atomhub-gallery", {"app.py": b"mine"})
        write_gallery([entry], [], tmp_path / "pages")
        with pytest.raises(AtomhubError, match="was not published by atomhub: it holds app.py"):
            publish_gallery(tmp_path / "pages")
