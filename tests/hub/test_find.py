"""Sets on the Hub are found by their tags; what their cards say are claims."""

import pytest
import yaml

import atomhub
from atomhub.errors import UsageError
from atomhub.hub.find import search
from atomhub.results import REVISION

pytestmark = pytest.mark.usefixtures("writer")


class TestSearch:
    def test_sets_are_found_by_their_tags(self, hub, digits1):
        for author, token, ipc in (("alice", "hf_writer", 1), ("alice", "hf_writer", 2), ("bob", "hf_other", 1)):
            made = digits1 if ipc == 1 else atomhub.distill("digits", 2, "atom", {"iterations": 1})
            made.push_to_hub(f"{author}/search-digits-{ipc}", token=token)
        hub.add("bob/holidays", {"README.md": b"---\ntags:\n- holidays\n---\n"})
        hub.repos["alice/search-digits-2"].downloads = 7
        assert [item.name for item in search()][0] == "alice/search-digits-2"
        assert {item.name for item in search(ipc=1)} == {"alice/search-digits-1", "bob/search-digits-1"}
        (found,) = search(author="bob", source="digits")
        assert (found.source, found.ipc, found.recipe, found.claims) == ("digits", 1, "atom", ())
        assert found.size == 10 * 16 * 16
        assert search(source="cifar10") == []

    def test_claims_are_shown_with_spread_and_protocol(self, hub, saved):
        atomhub.evaluate(saved, protocol="quick", runs=2, baseline=None)
        saved.push_to_hub()
        (found,) = search()
        (result,) = saved.manifest.results.measured
        score = result.score
        assert [c.model_dump() for c in found.claims] == [
            {
                "protocol": "quick",
                "network": result.network,
                "mean": score.mean,
                "std": score.std,
                "runs": 2,
                "revision": REVISION,
            }
        ]

    def test_sets_are_ordered_by_one_protocol_and_its_network(self, hub):
        """Figures of others cannot be compared, however high they are, nor those of an older revision."""
        claims = {
            "low": [
                ("dm", "instance", 40.0),
                ("dance", "instance", 90.0),
                ("dm", "batch", 99.0),
                ("dm", "instance,pooling=max", 99.0),
            ],
            "high": [("dm", "instance", 50.0)],
            "none": [("quick", "instance", 95.0), ("dm", "instance", 60.0)],
        }
        for name, results in claims.items():
            rows = [
                {
                    "protocol": protocol,
                    "network": f"convnet:width=128,norm={norm}",
                    "mean": mean,
                    "std": 1.0,
                    "runs": 5,
                    "revision": REVISION if mean != 60 else 1,
                }
                for protocol, norm, mean in results
            ]
            metadata = {"tags": ["atomhub", "dataset-distillation"], "atomhub": {"results": rows}}
            card = f"---\n{yaml.safe_dump(metadata)}---\n"
            hub.add(f"bob/{name}", {"README.md": card.encode()})
        assert [item.name for item in search(sort="accuracy")] == ["bob/high", "bob/low", "bob/none"]
        assert [item.name for item in search(sort="accuracy", protocol="dance")][0] == "bob/low"
        with pytest.raises(UsageError, match="no protocol 'dance2'"):
            search(sort="accuracy", protocol="dance2")
        with pytest.raises(UsageError, match="cannot be ordered by the protocol 'quick'"):
            search(sort="accuracy", protocol="quick")

    def test_a_card_of_nonsense_does_not_stop_the_search(self, hub, saved):
        saved.push_to_hub()
        nonsense = b"---\natomhub: [1]\ntags: [atomhub, dataset-distillation, 'ipc:many', 'source:']\n---\n"
        hub.add("bob/nonsense", {"README.md": nonsense})
        assert {item.name for item in search()} == {f"alice/{saved.name}", "bob/nonsense"}
