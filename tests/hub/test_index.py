"""The index of names: a bare name means one commit of one repository to everybody, and nobody can take it over."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hub_server import Fault

import atomhub
import atomhub.hub.pull
from atomhub.cli.main import main
from atomhub.errors import AtomhubError, AtomhubWarning, IntegrityError, NotFoundError, UsageError
from atomhub.hub import index, names
from atomhub.hub.collections import collect

pytestmark = pytest.mark.usefixtures("writer", "home")


@pytest.fixture(scope="session")
def result(_digits1):
    """What was measured once of ``digits1``."""
    return atomhub.evaluate(dataclasses.replace(_digits1), protocol="quick", runs=2, baseline=None)


@pytest.fixture
def published(hub, saved, result):
    """A measured set of Alice's on the Hub, and no longer in the store; its name."""
    saved.manifest = saved.manifest.replace(results={"measured": (result,)})
    saved.save(overwrite=True).push_to_hub()
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
        with pytest.warns(AtomhubWarning, match="Using what was downloaded before") as told:
            assert torch.equal(atomhub.load(entered).images, saved.images)
        assert told[-1].filename == __file__  # where the user's line is
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
        for ask in (atomhub.load, atomhub.hub.pull.pull):
            with pytest.raises(NotFoundError, match=f"(?s)Did you mean '{entered}'.*atomhub list --update"):
                ask(f"{entered}x")

    def test_what_is_gone_is_told_by_its_name(self, hub, entered):
        del hub.repos[f"alice/{entered}"]
        with pytest.raises(NotFoundError, match=f"(?s)name '{entered}' means alice/.* at .*atomhub pull {entered}"):
            atomhub.load(entered)

    def test_an_index_of_ones_own_is_apart_from_the_projects(self, entered, monkeypatch):
        monkeypatch.setenv("ATOMHUB_INDEX", "bob/index")
        assert names.find(entered) is None
        monkeypatch.delenv("ATOMHUB_INDEX")
        assert names.find(entered)

    def test_the_index_that_comes_with_atomhub_can_be_read(self):
        assert names.read(names.SHIPPED).version == 1


class TestRefresh:
    def test_it_says_what_changed(self, hub, entered, tmp_path, capsys):
        owner = names.find(entered).repo
        atomhub.distill("digits", 1, "atom", {"iterations": 1}, seed=9, name=entered).push_to_hub(owner)
        index.add(owner, tmp_path / "index.json", name="newest")
        index.add(owner, tmp_path / "index.json")
        hub.repos["atomhub/index"].commit("more", {"index.json": (tmp_path / "index.json").read_bytes()})
        main(["list", "--update"])
        said = capsys.readouterr()
        commit = hub.sha(owner)[:8]
        assert f"newest: {owner} at {commit}\n" in said.err
        assert f"{entered}: {owner} at {commit} in place of {owner} at" in said.err
        assert "The index has 2 names, 2 of them changed." in said.err
        assert "On the Hub, by name:" in said.out
        main(["list", "--json", "--update"])
        listed = json.loads(capsys.readouterr().out)
        assert (listed["names"][entered]["commit"], listed["changes"]) == (hub.sha(owner), {})

    def test_the_hub_decides_whatever_the_date_and_a_release_does_not_undo_it(self, hub, entered, tmp_path):
        """Clocks are wrong, and requests are merged in another order than they were made."""
        hub.repos["atomhub/index"].commit("odd", {"index.json": b'{"updated": "2100-01-01T00:00:00Z", "sets": {}}'})
        assert index.refresh() == {entered: "removed"}
        index.add(f"alice/{entered}", tmp_path / "next.json")
        later = names.read(tmp_path / "next.json")
        assert later.updated.year == 2100  # a second later
        hub.repos["atomhub/index"].commit("old", {"index.json": b'{"updated": "2001-01-01T00:00:00Z", "sets": {}}'})
        assert index.refresh() == {}
        assert names.known().updated.year == 2001

    def test_what_was_downloaded_before_is_no_answer(self, hub, entered, tmp_path, monkeypatch):
        hub.down = True
        for ask in (index.refresh, lambda: index.add(f"alice/{entered}", tmp_path / "new.json")):
            with pytest.raises(AtomhubError, match="answers 503"):
                ask()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(AtomhubError, match="atomhub/index was not asked for"):
            index.refresh()
        assert not (tmp_path / "new.json").exists()

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

    def test_a_damaged_copy_is_said_and_mended(self, entered, recwarn):
        names.refreshed().write_text("{")
        with pytest.warns(AtomhubWarning, match="not an index of names.*atomhub list --update"):
            assert names.find(entered) is None
        recwarn.clear()
        index.refresh()
        assert names.find(entered)
        assert not [w for w in recwarn if issubclass(w.category, AtomhubWarning)]

    def test_names_of_ones_own_hide_the_table(self, entered, monkeypatch, capsys):
        main(["list"])
        assert "On the Hub, by name:" in capsys.readouterr().out
        main(["list", "--protocol", "dm"])
        assert "(quick," not in capsys.readouterr().out.partition("On the Hub")[2]
        monkeypatch.setenv("ATOMHUB_NAMESPACE", "bob")
        main(["list"])
        assert "On the Hub, by name:" not in capsys.readouterr().out


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
        main(["index", "add", f"alice/{published}", "--name", "mine", "--file", "my index.json"])
        said = capsys.readouterr().err
        assert f"mine means alice/{published} at " in said
        assert "hf upload atomhub/index 'my index.json' index.json --repo-type dataset --create-pr" in said

    def test_a_name_that_is_taken_stays(self, hub, entered, digits1, tmp_path):
        digits1.push_to_hub(f"bob/{entered}", token="hf_other")
        before = (tmp_path / "index.json").read_bytes()
        with pytest.raises(UsageError, match=f"The name '{entered}' means alice/{entered} already"):
            index.add(f"bob/{entered}", tmp_path / "index.json")
        assert (tmp_path / "index.json").read_bytes() == before

    def test_a_new_file_begins_as_the_index_on_the_hub(self, hub, entered, digits1, tmp_path, monkeypatch):
        """So that the request of somebody who never asked for it removes no names, and takes none."""
        digits1.push_to_hub(f"bob/{entered}-2", token="hf_other")
        monkeypatch.setenv("ATOMHUB_HOME", str(tmp_path / "another"))
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        with pytest.raises(UsageError, match=f"The name '{entered}' means alice/{entered} already"):
            index.add(f"bob/{entered}-2", tmp_path / "theirs.json", name=entered)
        index.add(f"bob/{entered}-2", tmp_path / "theirs.json")
        assert set(names.read(tmp_path / "theirs.json").sets) == {entered, f"{entered}-2"}

    def test_names_that_mean_nothing_to_others_are_refused(self, hub, published, tmp_path):
        hub.repos[f"alice/{published}"].private = True
        for name, message in (
            (None, "is private"),
            ("", "A set cannot be named ''"),
            ("../up", "A set cannot be named '../up'"),
        ):
            with pytest.raises(UsageError, match=message):
                index.add(f"alice/{published}", tmp_path / "index.json", name=name)
        hub.repos[f"alice/{published}"].private = False
        with pytest.raises(UsageError, match="'digits-ipc1' means a set that comes with atomhub"):
            index.add(f"alice/{published}", tmp_path / "index.json", name="digits-ipc1")
        atomhub.load("digits-ipc1").push_to_hub("alice/digits-ipc1")
        assert index.add("alice/digits-ipc1", tmp_path / "index.json")[0] == "digits-ipc1"

    def test_several_at_once_lose_nothing(self, hub, published, tmp_path):
        with ThreadPoolExecutor(3) as pool:
            made = [pool.submit(index.add, f"alice/{published}", tmp_path / "index.json", f"n{i}") for i in range(3)]
        assert {one.result()[0] for one in made} == set(names.read(tmp_path / "index.json").sets) == {"n0", "n1", "n2"}

    def test_an_index_that_could_not_be_read_again_is_not_written(self, entered, tmp_path):
        many = {f"n{i}": names.find(entered) for i in range(20_000)}
        with pytest.raises(AtomhubError, match="An index of 20000 names is too large"):
            names.write(names.Index(sets={}).model_copy(update={"sets": many}), tmp_path / "many.json")
        assert not (tmp_path / "many.json").exists()

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
        for name in (saved.name, saved.name, f"other-{saved.name}"):  # again is no error
            main(["push", saved.name, f"alice/{name}", "--collection", "--json"])
            said = capsys.readouterr()
            assert json.loads(said.out)["repo"] == f"alice/{name}"
        ((slug, (title, items)),) = hub.collections.items()
        assert f"It is in {hub.url}/collections/{slug}." in said.err
        assert title == "Distilled digits"
        assert items == [(f"alice/{saved.name}", "dataset"), (f"alice/other-{saved.name}", "dataset")]

    def test_sources_of_long_names_have_their_own(self, hub, saved):
        saved.push_to_hub()
        first, second = (collect(f"alice/{saved.name}", "y" * 200 + end) for end in "ab")
        assert first != second

    def test_that_it_failed_does_not_hide_what_was_published(self, hub, saved, capsys):
        hub.faults = [Fault("POST", "/api/collections", status=403)]
        with pytest.raises(SystemExit) as caught:
            main(["push", saved.name, "--collection"])
        said = capsys.readouterr()
        assert caught.value.code == 1
        assert said.out.strip() == f"{hub.url}/datasets/alice/{saved.name}"
        assert f"Error: alice/{saved.name} is published, but in no collection: " in said.err

    def test_what_is_private_is_told_nobody(self, hub, saved, capsys):
        saved.push_to_hub(private=True)
        with pytest.raises(SystemExit):
            main(["push", saved.name, "--collection"])
        assert "is private, and is in no collection" in capsys.readouterr().err
        assert hub.collections == {}

    @pytest.mark.parametrize("option", ["--dry-run", "--create-pr", "--private"])
    def test_what_is_not_published_now_for_all_is_not_collected(self, hub, saved, option):
        with pytest.raises(SystemExit) as caught:
            main(["push", saved.name, "--collection", option])
        assert caught.value.code == 2
        assert hub.collections == {}
