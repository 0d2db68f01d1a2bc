"""Cards: what was measured in tables of comparable results, no more claimed than that, and the papers behind it."""

import pytest

from atomhub.recipe import Recipe
from atomhub.results import Measurement, Score
from atomhub.storage.cards import dataset_card


def test_a_card_says_where_a_set_is_no_better_than_random_images(digits1):
    def card(distilled, random):
        scores = [Score(mean=m, std=1.0, runs=4, accuracies=(m,) * 4, seconds=1.0) for m in (distilled, random)]
        result = Measurement(
            protocol="dm", network="vit", score=scores[0], baseline={"random": scores[1]}, seed=0, revision=2,
            test_images=360, device="cpu",
        )  # fmt: skip
        return dataset_card(digits1.manifest.with_result(result))

    words = "With vit these images are no better than as many random real ones."
    assert words in card(50.0, 49.0)
    assert words in card(40.0, 49.0)
    assert words not in card(50.0, 45.0)


@pytest.mark.parametrize(
    ("recipe", "cited"),
    [
        ("dm", {"DM"}),
        ("datadam", {"DataDAM"}),
        ("atom", {"ATOM"}),
        ("dance", {"DM", "DANCE", "IDC"}),
        ("idc", {"DC", "DANCE", "IDC"}),
        ("probe", {"DD"}),
    ],  # fmt: skip
)
def test_a_card_cites_the_papers_of_its_own_method(digits1, recipe, cited):
    titles = {
        "DM": "Condensation with Distribution Matching", "DataDAM": "DataDAM: Efficient", "ATOM": "Attention Mixer",
        "DANCE": "DANCE: Dual-View", "IDC": "Efficient Synthetic-Data Parameterization",
        "DC": "Condensation with Gradient Matching", "DD": 'Efros, "Dataset Distillation", 2018',
    }  # fmt: skip
    card = dataset_card(digits1.manifest.replace(provenance={"recipe": Recipe.named(recipe)}))
    assert {name for name, title in titles.items() if title in card} == cited


def test_norms_and_protocols_have_tables_of_their_own(digits1):
    manifest = digits1.manifest
    for network in ("convnet:width=128,norm=instance", "resnet18:norm=instance", "convnet:width=128,norm=batch"):
        score = Score(mean=50.0, std=1.0, runs=3, accuracies=(49.0, 50.0, 51.0), seconds=1.0)
        manifest = manifest.with_result(
            Measurement(protocol="dm", network=network, score=score, seed=0, revision=2, test_images=360, device="cpu")
        )
    card = dataset_card(manifest)
    one, two = card.index("Protocol dm, instance norm:"), card.index("Protocol dm, batch norm:")
    assert one < card.index("| resnet18:norm=instance | 3 | **50.0 ± 1.0** |") < two
