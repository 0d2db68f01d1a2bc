"""The index of names: a bare name means one commit of one repository to everybody, and nobody can take it over."""

import json

import pytest
import torch

import atomhub
from atomhub.cli.main import main
from atomhub.errors import AtomhubError, AtomhubWarning, IntegrityError, NotFoundError, UsageError
from atomhub.hub import index, names

pytestmark = pytest.mark.usefixtures("writer", "home")


@pytest.fixture
def published(hub, saved):
    """A measured set of Alice's on the Hub, and no longer in the store; its name."""
    atomhub.evaluate(saved, protocol="quick", runs=2, baseline=None)
    atomhub.load(saved.name).push_to_hub()
    main(["remove", saved.name, "--yes"])
    return saved.name


@pytest.fixture
def entered(hub, published, tmp_path):
    """The name of a set that the index on the Hub has, which was fetched."""
    index.add(f"alice/{published}", tmp_path / "index.json")
    hub.add("atomhub/index", {"index.json": (tmp_path / "index.json").read_bytes()})
    index.refresh()
    return published


class TestNames:
    def test_a_name_of_the_index_loads_for_everybody(self, hub, saved, entered, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        found = atomhub.load(entered)
        assert torch.equal(found.images, saved.images)
        assert found.repo == f"alice/{entered}"
        hub.down = True
        with pytest.warns(AtomhubWarning, match="Using what was downloaded before"):
            assert torch.equal(atomhub.load(entered).images, saved.images)
        assert torch.equal(atomhub.load(entered, local_files_only=True).images, saved.images)

    def test_its_owner_may_go_on_and_the_name_stays_where_it_was(self, hub, saved, entered):
        other = atomhub.distill("digits", 1, "atom", {"iterations": 1}, seed=9, name=entered)
        other.push_to_hub(f"alice/{entered}")
        assert torch.equal(atomhub.load(entered).images, saved.images)
        assert torch.equal(atomhub.load(f"alice/{entered}").images, other.images)

    def test_another_set_under_the_same_commit_is_refused_before_its_images_are_fetched(self, hub, entered):
        """As somebody could serve who took over the account, or the Hub."""
        known = names.known()
        other = known.sets[entered].model_copy(update={"manifest": "0" * 64})
        names.write(known.model_copy(update={"sets": {entered: other}}), names.refreshed())
        hub.downloads.clear()
        with pytest.raises(IntegrityError, match="not the set that the index of names means"):
            atomhub.load(entered)
        assert {path.rsplit("/")[-1] for path in hub.downloads} == {"manifest.json"}
        with pytest.raises(IntegrityError, match="not the set that the index of names means"):
            atomhub.load(entered, local_files_only=True)

    def test_a_revision_is_asked_of_the_repository_itself(self, entered):
        for ask in (lambda: atomhub.load(f"{entered}@v1"), lambda: atomhub.load(entered, revision="v1")):
            with pytest.raises(UsageError, match=f"means one commit of alice/{entered}.\nFor another revision: alice/"):
                ask()

    def test_a_namespace_of_ones_own_comes_first(self, hub, entered, monkeypatch):
        monkeypatch.setenv("ATOMHUB_NAMESPACE", "bob")
        with pytest.raises(NotFoundError, match=f"no repository 'bob/{entered}'"):
            atomhub.load(entered)

    def test_a_set_in_the_store_comes_first(self, saved, entered):
        saved.save()
        assert atomhub.load(entered).repo is None

    def test_a_misspelt_name_is_helped(self, entered):
        with pytest.raises(NotFoundError, match=f"Did you mean '{entered}'"):
            atomhub.load(f"{entered}x")

    def test_the_index_that_comes_with_atomhub_can_be_read(self):
        assert names.read(names.SHIPPED).version == 1


class TestRefresh:
    def test_it_says_what_changed(self, hub, entered, tmp_path, capsys):
        owner = names.find(entered).repo
        atomhub.distill("digits", 1, "atom", {"iterations": 1}, seed=9, name=entered).push_to_hub(owner)
        index.add(owner, tmp_path / "index.json", name="newest")
        index.add(owner, tmp_path / "index.json")
        content = json.loads((tmp_path / "index.json").read_text()) | {"updated": "2100-01-01T00:00:00Z"}
        hub.repos["atomhub/index"].commit("more", {"index.json": json.dumps(content).encode()})
        main(["list", "--update"])
        said = capsys.readouterr()
        commit = hub.sha(owner)[:8]
        assert f"newest: {owner} at {commit}\n" in said.err
        assert f"{entered}: {owner} at {commit} in place of {owner} at" in said.err
        assert "The index has 2 names, 2 of them changed." in said.err
        assert "On the Hub, by name:" in said.out
        main(["list", "--json"])
        assert json.loads(capsys.readouterr().out)["names"][entered]["commit"] == hub.sha(owner)

    def test_an_older_index_is_not_taken(self, hub, entered):
        old = {"version": 1, "updated": "2001-01-01T00:00:00Z", "sets": {}}
        hub.repos["atomhub/index"].commit("old", {"index.json": json.dumps(old).encode()})
        with pytest.raises(AtomhubError, match="older than the one that is known"):
            index.refresh()
        assert names.find(entered)

    @pytest.mark.parametrize(
        "content",
        [
            b"nonsense",
            b'{"version": 2, "updated": "2100-01-01T00:00:00Z", "sets": {}}',
            b'{"version": 1, "updated": "2100-01-01T00:00:00Z", "sets": {"../up": {}}}',
            b'{"version": 1, "updated": "2100-01-01T00:00:00Z", "sets": {"a": {"repo": "alice/a/b"}}}',
            b"[" * 100_000,
            b'"' + b" " * 2**22 + b'"',
        ],
    )
    def test_what_is_no_index_is_not_taken(self, hub, entered, content):
        hub.repos["atomhub/index"].commit("bad", {"index.json": content})
        with pytest.raises(IntegrityError):
            index.refresh()
        assert names.find(entered)

    def test_no_index_on_the_hub_is_one_sentence(self, hub, monkeypatch, capsys):
        monkeypatch.setenv("ATOMHUB_INDEX", "bob/none")
        with pytest.raises(SystemExit) as caught:
            main(["list", "--update"])
        assert caught.value.code == 1
        assert "There is no repository 'bob/none' on the Hub" in capsys.readouterr().err

    def test_a_damaged_copy_is_said_and_the_shipped_index_counts(self, entered):
        names.refreshed().write_text("{")
        with pytest.warns(AtomhubWarning, match="not an index of names.*atomhub list --update"):
            assert names.find(entered) is None


class TestAdd:
    def test_an_entry_has_what_a_visitor_asks_for(self, hub, published, tmp_path, capsys):
        file = tmp_path / "mine.json"
        main(["index", "add", f"alice/{published}", "--file", str(file), "--json"])
        said = json.loads(capsys.readouterr().out)
        entry = json.loads(file.read_text())["sets"][published]
        assert said == {"name": published, **entry, "file": str(file)}
        assert (entry["repo"], entry["commit"]) == (f"alice/{published}", hub.sha(f"alice/{published}"))
        assert (entry["source"], entry["ipc"]) == ("digits", 1)
        (claim,) = entry["claims"]
        assert (claim["protocol"], claim["runs"]) == ("quick", 2)

    def test_it_says_how_to_propose_it(self, published, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        main(["index", "add", f"alice/{published}", "--name", "mine"])
        said = capsys.readouterr().err
        assert f"mine means alice/{published} at " in said
        assert "hf upload atomhub/index index.json index.json --repo-type dataset --create-pr" in said

    def test_a_name_that_is_taken_stays(self, hub, entered, digits1, tmp_path):
        digits1.push_to_hub(f"bob/{entered}", token="hf_other")
        before = (tmp_path / "index.json").read_bytes()
        with pytest.raises(UsageError, match=f"The name '{entered}' means alice/{entered} already"):
            index.add(f"bob/{entered}", tmp_path / "index.json")
        assert (tmp_path / "index.json").read_bytes() == before

    def test_a_set_that_is_not_whole_is_not_entered(self, hub, published, tmp_path):
        repo = f"alice/{published}"
        broken = hub.files(repo) | {"distilled.safetensors": hub.files(repo)["distilled.safetensors"][::-1]}
        hub.repos[repo].commit("broken", broken)
        with pytest.raises(IntegrityError):
            index.add(repo, tmp_path / "index.json")
        assert not (tmp_path / "index.json").exists()

    def test_a_set_on_this_machine_is_not_on_the_hub(self, tmp_path):
        with pytest.raises(UsageError, match="'digits-ipc1' is not on the Hub"):
            index.add("digits-ipc1", tmp_path / "index.json")


class TestCollections:
    def test_an_owner_has_one_collection_for_each_source(self, hub, saved, capsys):
        for _ in range(2):  # again is no error
            main(["push", saved.name, "--collection", "--json"])
            address = json.loads(capsys.readouterr().out)["collection"]
        main(["push", saved.name, f"alice/other-{saved.name}", "--collection"])
        assert f"It is in {address}." in capsys.readouterr().err
        ((slug, (title, items)),) = hub.collections.items()
        assert address == f"{hub.url}/collections/{slug}"
        assert title == "Distilled digits"
        assert items == [(f"alice/{saved.name}", "dataset"), (f"alice/other-{saved.name}", "dataset")]

    def test_what_is_not_published_now_is_not_collected(self, hub, saved, capsys):
        with pytest.raises(SystemExit) as caught:
            main(["push", saved.name, "--collection", "--dry-run"])
        assert caught.value.code == 2
        assert hub.collections == {}
