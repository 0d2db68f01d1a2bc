"""The Hub: published in one commit, found, pulled and verified; whatever goes wrong, nothing is half done."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import LIVE_TOKEN, ROOT
from datasets import load_dataset
from hub_server import HubServer
from huggingface_hub import DatasetCard, HfApi, ModelCard, snapshot_download
from published import FILES

import atomhub
from atomhub.errors import AtomhubWarning, IntegrityError, NotFoundError, UsageError
from atomhub.hub.pull import pulled
from atomhub.hub.push import push
from atomhub.storage import cards, formats

pytestmark = pytest.mark.usefixtures("writer")


def validate(card, kind):
    """Ask the Hub whether a card is valid, with the clients that ask the endpoint they were told."""
    if int(version("huggingface_hub").split(".")[0]) >= 2:
        card.validate(repo_type=kind)


class TestPush:
    def test_a_set_is_published_whole_in_one_commit_and_comes_back_as_it_was(self, hub, saved):
        url = saved.push_to_hub()
        repo = f"alice/{saved.name}"
        assert url == f"{hub.url}/datasets/{repo}"
        assert set(hub.files(repo)) - {".gitattributes"} == FILES
        assert len(hub.repos[repo].commits) == 2  # the empty repository, and the set
        again = atomhub.load(repo)
        assert torch.equal(again.images, saved.images)
        assert again.manifest == saved.manifest
        assert again.path is None  # the cache is not ours to write to

    def test_results_are_not_written_to_the_cache_by_its_folder_either(self, hub, saved):
        saved.push_to_hub()
        folder = Path(snapshot_download(f"alice/{saved.name}", repo_type="dataset"))
        before = (folder / "manifest.json").read_bytes()
        atomhub.evaluate(atomhub.load(folder), "mlp:width=8", "quick", runs=1, baseline=None)
        assert (folder / "manifest.json").read_bytes() == before
        assert (folder / "manifest.json").is_symlink()

    def test_unchanged_content_makes_no_commit(self, hub, saved):
        assert push(saved).changed
        before = hub.sha(f"alice/{saved.name}")
        done = push(saved)
        assert not done.changed
        assert done.commit == hub.sha(f"alice/{saved.name}") == before

    def test_a_new_result_changes_the_manifest_and_the_card_alone(self, hub, saved):
        saved.push_to_hub()
        before = hub.files(f"alice/{saved.name}")
        atomhub.evaluate(saved, protocol="quick", runs=1, baseline=None)
        atomhub.load(saved.name).push_to_hub()
        after = hub.files(f"alice/{saved.name}")
        assert {path for path in FILES if before[path] != after[path]} == {"README.md", "manifest.json"}
        assert b"Protocol quick" in after["README.md"]

    def test_words_that_the_owner_wrote_on_the_hub_are_kept(self, hub, saved):
        saved.push_to_hub()
        repo = f"alice/{saved.name}"
        card = hub.files(repo)["README.md"].replace(b"## Citation", b"## Thanks\n\nTo my cat.\n\n## Citation")
        card = card.replace(b"tags:\n", b"language: en\ntags:\n- cats\n", 1)
        hub.repos[repo].commit("words", hub.files(repo) | {"README.md": card})
        atomhub.evaluate(saved, protocol="quick", runs=1, baseline=None)
        atomhub.load(saved.name).push_to_hub()
        text = hub.files(repo)["README.md"].decode()
        assert "To my cat." in text
        assert "Protocol quick" in text
        metadata = yaml.safe_load(text.split("---")[1])
        assert metadata["language"] == "en"
        assert {"cats", "atomhub", "ipc:1"} <= set(metadata["tags"])
        assert metadata["atomhub"]["results"][0]["protocol"] == "quick"

    def test_a_dry_run_changes_nothing(self, hub, saved):
        done = push(saved, dry_run=True)
        assert set(done.files) == FILES
        assert done.files["distilled.safetensors"] == (saved.path / "distilled.safetensors").stat().st_size
        assert f'atomhub.load("alice/{saved.name}")' in done.card
        assert hub.repos == {}

    def test_private_tagged_and_named_otherwise(self, hub, saved):
        push(saved, f"alice/other-{saved.name}", private=True, tags=["v1"], commit_message="mine")
        repo = hub.repos[f"alice/other-{saved.name}"]
        assert repo.private
        assert repo.commits[-1].title == "mine"
        assert repo.tags == {"v1": repo.commits[-1].oid, "format-v1": repo.commits[-1].oid}
        assert push(saved, f"alice/other-{saved.name}", tags=["v1"]).changed is False
        assert atomhub.load(f"alice/other-{saved.name}@v1").name == saved.name

    def test_a_picture_that_cannot_be_drawn_here_is_not_taken_away(self, hub, saved, monkeypatch):
        saved.push_to_hub()
        pulled = atomhub.load(f"alice/{saved.name}")
        before = hub.sha(f"alice/{saved.name}")
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(UsageError, match="Publishing a set that is not on disk needs matplotlib"):
            pulled.push_to_hub(f"alice/{saved.name}")
        assert hub.sha(f"alice/{saved.name}") == before

    def test_the_tag_of_the_format_follows_the_newest_commit(self, hub, saved):
        saved.push_to_hub()
        repo = hub.repos[f"alice/{saved.name}"]
        assert repo.tags == {"format-v1": repo.commits[-1].oid}
        atomhub.evaluate(saved, protocol="quick", runs=1, baseline=None)
        atomhub.load(saved.name).push_to_hub()
        assert repo.tags == {"format-v1": repo.commits[-1].oid}
        newer = {"manifest.json": json.dumps({"format": {"version": 3}}).encode()}
        repo.commit("a later atomhub", hub.files(f"alice/{saved.name}") | newer)
        with pytest.raises(IntegrityError, match="(?s)format version 3.*@format-v1"):
            atomhub.load(f"alice/{saved.name}")
        assert len(atomhub.load(f"alice/{saved.name}@format-v1").manifest.results.measured) == 1

    def test_each_version_of_the_format_has_a_tag_of_its_own(self, hub, saved):
        """A reader that knows version 1 alone finds the last set it can read, and this one finds the newest."""
        saved.push_to_hub()
        name, repo = f"alice/{saved.name}", hub.repos[f"alice/{saved.name}"]
        first = repo.commits[-1].oid
        few = atomhub.distill("digits", 1, "atom", {"iterations": 2, "width": 4, "pixels": "uint4"}, name="few")
        few.push_to_hub(name)
        assert repo.tags == {"format-v1": first, "format-v2": repo.commits[-1].oid}
        assert torch.equal(atomhub.load(name).images, few.images)
        assert torch.equal(atomhub.load(f"{name}@format-v1").images, saved.images)

    def test_it_follows_a_push_to_main_by_name_as_well(self, hub, saved):
        saved.push_to_hub()
        atomhub.evaluate(saved, protocol="quick", runs=1, baseline=None)
        atomhub.load(saved.name).push_to_hub(revision="main", tags=["format-v1"])
        repo = hub.repos[f"alice/{saved.name}"]
        assert repo.tags == {"format-v1": repo.commits[-1].oid}

    def test_what_the_owner_added_stays_and_files_of_an_earlier_set_go(self, hub, digits1, tmp_path):
        repo = f"alice/{tmp_path.name.replace('_', '-')}"
        atomhub.distill("digits", 1, "atom", {"iterations": 1, "formation": 2}, name="views").push_to_hub(repo)
        assert formats.VIEWS in hub.files(repo)
        hub.repos[repo].commit("more", hub.files(repo) | {"banner.png": b"mine", "notes.txt": b"mine"})
        digits1.push_to_hub(repo)
        assert {"banner.png", "notes.txt"} <= set(hub.files(repo))
        assert formats.VIEWS not in hub.files(repo)

    def test_a_tag_never_moves(self, hub, saved, digits1):
        saved.push_to_hub(tags=["v1"])
        other = atomhub.distill("digits", 1, "atom", {"iterations": 1}, name=saved.name)
        with pytest.raises(UsageError, match="has a tag 'v1' already"):
            push(other, f"alice/{saved.name}", tags=["v1"])
        assert len(hub.repos[f"alice/{saved.name}"].commits) == 2

    def test_a_pull_request_on_somebody_elses_set(self, hub, saved, monkeypatch):
        saved.push_to_hub()
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        other = atomhub.distill("digits", 1, "atom", {"iterations": 1}, name=saved.name)
        url = other.push_to_hub(f"alice/{saved.name}", create_pr=True)
        assert url.endswith("/discussions/1")
        assert len(hub.repos[f"alice/{saved.name}"].commits) == 2

    def test_a_set_in_memory(self, hub, digits1, tmp_path):
        digits1.push_to_hub(f"alice/{tmp_path.name.replace('_', '-')}")
        assert digits1.path is None

    def test_plain_datasets_reads_the_repository(self, hub, saved):
        saved.push_to_hub()
        rows = load_dataset(f"alice/{saved.name}", split="train")
        assert rows.features["label"].names == list("0123456789")
        assert np.array_equal(np.asarray(rows[4]["image"]), saved.images[4, 0].numpy())

    def test_the_card_is_valid_for_the_hub(self, hub, saved):
        card = DatasetCard(push(saved, dry_run=True).card)
        validate(card, "dataset")
        data = card.data.to_dict()
        assert data["license"] == "cc-by-4.0"
        assert data["task_categories"] == ["image-classification"]
        assert data["configs"][0]["data_files"][0]["path"] == "data/train-*.parquet"
        assert {"atomhub", "dataset-distillation", "source:digits", "ipc:1", "recipe:atom"} <= set(data["tags"])


class TestPull:
    def test_afterwards_no_network_is_needed(self, hub, saved):
        repo = f"alice/{saved.name}"
        saved.push_to_hub(tags=["v1"])
        atomhub.load(f"{repo}@v1")
        atomhub.load(repo)
        hub.downloads.clear()
        hub.down = True
        assert torch.equal(atomhub.load(repo, local_files_only=True).images, saved.images)
        with pytest.warns(AtomhubWarning, match="Using what was downloaded before"):
            assert torch.equal(atomhub.load(repo).images, saved.images)
        assert hub.downloads == []
        with pytest.raises(NotFoundError, match=r"(?s)alice/never was not downloaded.*atomhub pull alice/never"):
            atomhub.load("alice/never", local_files_only=True)

    def test_a_bare_name_means_the_namespace(self, hub, saved, home, monkeypatch):
        saved.push_to_hub()
        (home / "sets").rename(home / "gone")
        with pytest.raises(NotFoundError, match="no distilled set"):
            atomhub.load(saved.name)
        monkeypatch.setenv("ATOMHUB_NAMESPACE", "alice")
        assert len(atomhub.load(saved.name)) == 10

    def test_only_the_files_of_the_format_are_fetched(self, hub, saved):
        saved.push_to_hub()
        repo = f"alice/{saved.name}"
        hub.repos[repo].commit("more", hub.files(repo) | {"huge.bin": b"x" * 10**6, "evil.pkl": b"x"})
        atomhub.load(repo)
        assert not [path for path in hub.downloads if "huge" in path or "evil" in path]

    def test_what_was_pulled_is_listed(self, hub, saved):
        saved.push_to_hub()
        atomhub.load(f"alice/{saved.name}")
        (found,) = [p for p in pulled() if p.repo == f"alice/{saved.name}"]
        assert found.commit == hub.sha(f"alice/{saved.name}")
        assert found.manifest.format.ipc == 1

    def test_names_and_revisions_that_do_not_exist(self, hub, saved):
        saved.push_to_hub()
        with pytest.raises(NotFoundError, match=r"(?s)no repository 'alice/nothing'.*hf auth login"):
            atomhub.load("alice/nothing")
        with pytest.raises(NotFoundError, match="no such revision"):
            atomhub.load(f"alice/{saved.name}@v9")
        with pytest.raises(UsageError, match="names the revision 'v1', and 'v2' was asked for"):
            atomhub.load("alice/x@v1", revision="v2")

    def test_a_private_set_is_for_those_who_may(self, hub, saved, monkeypatch):
        saved.push_to_hub(private=True)
        atomhub.load(f"alice/{saved.name}", token="hf_reader")
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        with pytest.raises(NotFoundError, match="or it is private"):
            atomhub.load(f"alice/{saved.name}")


class TestCards:
    def test_a_command_is_printed_as_it_was_recorded(self, digits1):
        line = "atomhub distill 'we`ird $x' --ipc 1"
        assert line in cards.dataset_card(digits1.manifest.replace(provenance={"command": line}))
        evil = "x\n```\n<script>"
        assert "```\n<script>" not in cards.dataset_card(digits1.manifest.replace(provenance={"command": evil}))

    def test_the_snippets_of_a_card_run_as_they_are(self, hub, saved, tmp_path, monkeypatch):
        """Both the card in the folder, run beside it, and the one on the Hub, run anywhere."""
        published = push(saved).card
        local = (saved.path / "README.md").read_text()
        for card, place in ((local, saved.path.parent), (published, tmp_path)):
            monkeypatch.chdir(place)
            snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
            assert len(snippets) == 3
            for snippet in snippets:
                exec(compile(snippet, "card", "exec"), {})

    def test_a_model_card_names_the_set_and_its_result(self, home, digits1):
        result = atomhub.evaluate(digits1, protocol="quick", runs=2, baseline=None)
        card = ModelCard(cards.model_card(digits1.manifest, result.network, result, 1234567, "alice/digits-ipc1"))
        assert card.data.datasets == ["alice/digits-ipc1"]
        assert card.data.eval_results[0].metric_value == result.score.mean
        assert "1,234,567 parameters" in card.text
        validate(card, "model")


def test_datasets_alone_reads_a_published_set_without_atomhub(hub, saved):
    """A process in which atomhub cannot be imported."""
    saved.push_to_hub()
    code = (
        "import sys; sys.modules['atomhub'] = None\n"
        "from datasets import load_dataset\n"
        f"rows = load_dataset('alice/{saved.name}', split='train')\n"
        "print(rows.features['label'].names[3], rows[3]['image'].size, len(rows))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "tests", env=os.environ
    )
    assert done.stdout.split() == ["3", "(16,", "16)", "10"], done.stderr


@pytest.fixture(autouse=True)
def _own_errors_only():
    """Deprecation warnings of the clients are theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=FutureWarning)
        yield


class TestTheServer:
    """The Hub of the tests itself, where a test of the product would not notice."""

    def test_repositories_survive_on_disk(self, saved, tmp_path, monkeypatch):
        kept = HubServer(tmp_path / "root")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", kept.url)
        api = HfApi(endpoint=kept.url, token="hf_writer")
        api.create_repo("alice/kept", repo_type="dataset")
        api.upload_file(path_or_fileobj=b"hello", path_in_repo="a.txt", repo_id="alice/kept", repo_type="dataset")
        api.create_tag("alice/kept", tag="v1", repo_type="dataset")
        again = HubServer(tmp_path / "root")
        assert again.files("alice/kept", "v1")["a.txt"] == b"hello"
        HfApi(endpoint=again.url, token="hf_writer").delete_repo("alice/kept", repo_type="dataset")
        assert HubServer(tmp_path / "root").repos == {}

    def test_what_it_does_not_know_is_a_complaint(self, hub):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{hub.url}/api/models")
        assert hub.complaints
        hub.complaints.clear()


@pytest.mark.skipif(os.environ.get("ATOMHUB_LIVE_TESTS") != "1", reason="needs ATOMHUB_LIVE_TESTS=1 and HF_TOKEN")
def test_the_real_hub(tmp_path):
    """Push a private set, load it from a clean cache, delete it; in a process that is not told of the local Hub."""
    code = (
        "import atomhub, huggingface_hub as h\n"
        "made = atomhub.distill('digits', 1, 'atom', {'iterations': 3}, name='atomhub-live-test')\n"
        "url = made.push_to_hub(private=True)\n"
        "repo = '/'.join(url.split('/')[-2:])\n"
        "try:\n"
        "    assert (atomhub.load(repo).images == made.images).all()\n"
        "finally:\n"
        "    h.HfApi().delete_repo(repo, repo_type='dataset')\n"
    )
    keep = {k: v for k, v in os.environ.items() if k not in ("HF_ENDPOINT", "HF_HUB_DISABLE_XET")}
    environment = keep | {"HF_TOKEN": LIVE_TOKEN, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
