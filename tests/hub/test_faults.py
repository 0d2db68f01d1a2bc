"""A Hub that fails: every failure is a sentence, and nothing is half done."""

import dataclasses
import time
import warnings

import pytest
import torch
from hub_server import Fault
from huggingface_hub import HfApi

import atomhub
from atomhub.errors import AtomhubError, IntegrityError, NotFoundError, UsageError
from atomhub.hub.push import push


@pytest.fixture(autouse=True)
def _own_errors_only():
    """Deprecation warnings of the clients are theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=FutureWarning)
        yield


pytestmark = pytest.mark.usefixtures("writer")


class TestFaults:
    """Every failure is a sentence; the remote is whole or untouched, and trying again succeeds."""

    def untouched(self, hub, saved):
        repo = hub.repos.get(f"alice/{saved.name}")
        return repo is None or set(repo.commits[-1].files) == {".gitattributes"}

    @pytest.mark.parametrize(
        "fault",
        [
            Fault("PUT", "/upload/", cut=100),
            Fault("POST", "/commit/", cut=10),
            Fault("POST", "/commit/", status=500),
            Fault("POST", "/commit/", status=502, times=2),
            Fault("POST", "/commit/", status=429, headers={"Retry-After": "1"}),
            Fault("POST", "/repos/create", status=503),
            Fault("GET", "/api/datasets/alice", status=500, times=2),
            Fault("GET", "/whoami", cut=5),
        ],
        ids=lambda f: f"{f.method} {f.path} {f.status if f.cut is None else 'cut'}",
    )
    def test_a_failure_that_passes_is_tried_again(self, hub, saved, fault):
        hub.faults = [dataclasses.replace(fault)]
        saved.push_to_hub()
        assert hub.faults[0].times == 0  # it did happen
        assert len(hub.repos[f"alice/{saved.name}"].commits) == 2
        assert torch.equal(atomhub.load(f"alice/{saved.name}").images, saved.images)

    def test_an_answer_lost_after_the_commit_does_not_commit_twice(self, hub, saved):
        plain = HfApi.create_commit
        calls = []

        def lost(self, *arguments, **options):
            plain(self, *arguments, **options)
            calls.append(1)
            if len(calls) == 1:
                raise ConnectionError("reset by peer")
            raise AssertionError("committed twice")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(HfApi, "create_commit", lost)
            saved.push_to_hub()
        assert len(hub.repos[f"alice/{saved.name}"].commits) == 2

    def test_a_commit_that_another_client_raced_is_made_on_top(self, hub, saved):
        repo = f"alice/{saved.name}"
        saved.push_to_hub()
        atomhub.evaluate(saved, protocol="quick", runs=1, baseline=None)

        def race():
            hub.repos[repo].commit("somebody", hub.files(repo) | {"notes.txt": b"hello"})

        hub.faults = [Fault("POST", "/commit/", before=race)]
        atomhub.load(saved.name).push_to_hub()
        assert hub.files(repo)["notes.txt"] == b"hello"
        assert b"Protocol quick" in hub.files(repo)["README.md"]

    def test_a_hub_that_stays_broken(self, hub, saved):
        hub.faults = [Fault("POST", "/commit/", status=500, times=99)]
        with pytest.raises(AtomhubError, match=r"(?s)The Hub answers 500 for alice/.*nothing was changed"):
            saved.push_to_hub()
        assert self.untouched(hub, saved)
        hub.faults = []
        saved.push_to_hub()

    @pytest.mark.parametrize(
        ("token", "repo", "message"),
        [
            ("hf_wrong", None, r"(?s)does not know this token.*hf auth login"),
            ("hf_reader", None, r"(?s)You are 'alice'.*may not write.*read-only"),
            ("hf_other", "alice/{}", r"(?s)You are 'bob'.*may not write to alice/"),
        ],
    )
    def test_tokens_that_will_not_do(self, hub, saved, token, repo, message, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(AtomhubError, match=message) as caught:
            push(saved, repo and repo.format(saved.name))
        assert "hf_" not in str(caught.value)
        assert self.untouched(hub, saved)

    def test_without_a_token(self, hub, saved, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(AtomhubError, match=r"(?s)not logged in.*hf auth login"):
            saved.push_to_hub()

    def test_a_repository_of_something_else_is_left_alone(self, hub, saved):
        hub.add(f"alice/{saved.name}", {"README.md": b"my holidays", "beach.jpg": b"x"})
        with pytest.raises(AtomhubError, match=r"was not published by atomhub: it holds beach.jpg"):
            saved.push_to_hub()
        assert set(hub.files(f"alice/{saved.name}")) == {"README.md", "beach.jpg"}
        with pytest.raises(NotFoundError, match="is not a distilled set: it has no manifest.json"):
            atomhub.load(f"alice/{saved.name}")

    def test_an_impossible_id(self, saved):
        with pytest.raises(UsageError, match="cannot be a repository"):
            push(saved, "alice/a--b")

    @pytest.mark.parametrize("fault", [Fault("GET", r"/cdn/.*\.safetensors", cut=50),
                                       Fault("GET", r"/cdn/.*\.parquet", status=500),
                                       Fault("GET", r"/cdn/.*\.png", status=429, headers={"Retry-After": "0"}),
                                       Fault("GET", r"/resolve/.*manifest", before=lambda: time.sleep(1)),
                                       Fault("GET", "/api/datasets/alice", status=502)],
                             ids=lambda f: f"{f.path} {f.status if f.cut is None else 'cut'}")  # fmt: skip
    def test_downloads_that_fail_once(self, hub, saved, fault):
        saved.push_to_hub()
        hub.faults = [dataclasses.replace(fault)]
        assert torch.equal(atomhub.load(f"alice/{saved.name}").images, saved.images)
        assert hub.faults[0].times == 0

    def test_a_link_to_something_else_is_not_published(self, hub, saved, tmp_path):
        (tmp_path / "secret").write_text("password")
        (saved.path / "preview.png").unlink()
        (saved.path / "preview.png").symlink_to(tmp_path / "secret")
        with pytest.raises(IntegrityError, match="preview.png is not the file|it is a link"):
            saved.push_to_hub()
        assert hub.repos == {}

    def test_a_broken_set_is_not_published(self, hub, saved):
        path = saved.path / "preview.png"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(IntegrityError, match="preview.png"):
            saved.push_to_hub()
        assert hub.repos == {}
