"""Recipes: presets as data, TOML, overrides, and errors that name the field and its range."""

import pytest

from atomhub import Recipe
from atomhub.errors import UsageError
from atomhub.presets import PRESETS


def test_presets_are_the_mixes_of_the_literature():
    mixes = {name: (r.spatial > 0, r.channel > 0, r.feature > 0) for name in PRESETS for r in [Recipe.named(name)]}
    assert mixes == {
        "dm": (False, False, True),
        "datadam": (True, False, True),
        "channel": (False, True, True),
        "atom": (True, True, True),
        "dance": (False, False, True),
        "idc": (False, False, False),  # gradients of weights
        "probe": (False, False, False),  # a linear layer, tried on real features
        "atom-photo": (True, True, True),
        "rded": (False, False, True),  # for none of its 0 iterations
    }


def test_a_description_leaves_out_what_has_no_effect():
    assert Recipe.named("dance", {"statistics": "real"}).describe() == "dance"  # only batch norm has them
    assert (
        Recipe.named("atom", {"statistics": "real", "bank_epochs": 7, "bank_reach": 0.5}).describe()
        == "atom with statistics=real"
    )


def test_a_recipe_that_its_preset_could_not_be_is_described():
    fields = {"layer": 0, "feature": 1, "matcher": "convnet", "statistics": "own", "image_pyramid": False}
    described = Recipe.named("probe", fields).resolved(1, 32).describe()
    assert described.startswith("probe with ")
    assert "matcher=convnet" in described


def test_a_description_names_a_rate_of_the_images_unless_it_follows_from_their_number():
    assert Recipe.named("atom", {"image_lr": 0.5}).resolved(10, 32).describe() == "atom with image_lr=0.5"
    assert Recipe.named("atom-photo", {"image_lr": 0.1}).resolved(1, 64).describe() == "atom-photo with image_lr=0.1"
    assert [Recipe.named(name).resolved(60, 64).describe() for name in ("atom", "atom-photo")] == ["atom", "atom-photo"]


def test_the_rate_of_the_images_may_grow_with_their_number():
    assert [Recipe.named("dance").resolved(ipc, 32).image_lr for ipc in (1, 10, 100)] == [1, 10, 100]
    resolved = Recipe.named("dance", {"image_lr": 0.5}).resolved(10, 32)
    assert resolved.image_lr == resolved.resolved(10, 32).image_lr == 5
    assert resolved.describe() == "dance"
    assert [Recipe.named("atom").resolved(ipc, 32).image_lr for ipc in (1, 50, 51)] == [1, 1, 10]


def test_normalized_steps_have_a_rate_of_their_own_for_any_number_of_images():
    recipe = Recipe.named("atom", {"image_step": "normalized"})
    assert [recipe.resolved(ipc, 32).image_lr for ipc in (1, 60)] == [0.05, 0.05]
    with pytest.raises(UsageError, match="normalized steps are as long for any number of images"):
        Recipe.named("dance", {"image_step": "normalized"})


@pytest.mark.parametrize(
    ("name", "fields", "step", "described"),
    [
        ("atom", {}, None, "atom"),
        ("atom", {"matcher": "vgg11"}, "normalized", "atom with matcher=vgg11"),
        ("atom", {"matcher": "vgg11", "image_lr": 0.1}, "normalized", "atom with matcher=vgg11, image_lr=0.1"),
        ("dm", {"matcher": "mlp", "image_step": "gradient"}, "gradient", "dm with matcher=mlp, image_step=gradient"),
        ("atom-photo", {"image_step": "gradient"}, "gradient", "atom-photo with image_step=gradient"),
        ("dance", {"matcher": "vgg11"}, "gradient", "dance with matcher=vgg11"),  # whose rate grows with the images
        ("atom", {"image_step": "normalized"}, "normalized", "atom with image_step=normalized"),
        ("rded", {}, "normalized", "rded"),
        ("probe", {}, "adam", "probe"),
    ],
)  # fmt: skip
def test_steps_are_normalized_under_networks_for_which_nobody_has_found_a_rate(name, fields, step, described):
    resolved = Recipe.named(name, fields).resolved(1, 32)
    assert resolved.image_step == step
    assert resolved == resolved.resolved(1, 32) == Recipe.checked(resolved.model_dump())
    assert resolved.describe() == described
    preset = Recipe.named(name)
    assert preset.replace(**resolved.settings(preset)) == resolved  # as recorded commands have it


def test_calibration_and_banks_name_what_they_need():
    with pytest.raises(UsageError, match="calibration needs trained networks: set bank above 0"):
        Recipe.named("atom", {"calibration": 0.1})
    with pytest.raises(UsageError, match="one width and depth"):
        Recipe.named("dance", {"widths": "32,64"})


def test_every_field_says_its_unit_and_source():
    for name, field in Recipe.model_fields.items():
        assert field.description, name
        assert set(field.json_schema_extra) == {"unit", "source"}, name


def test_toml_round_trip(tmp_path):
    recipe = Recipe.named(
        "atom", {"power": "2", "augmentation": "crop,flip", "image_lr": "0.5", "zca": "true", "widths": "32,64"}
    )
    path = tmp_path / "mine.toml"
    path.write_text(recipe.to_toml())
    assert Recipe.named(path) == recipe
    assert recipe.augmentation == ("crop", "flip")


def test_names_of_any_script_survive_toml(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(Recipe.named("atom", {"name": "猫😀"}).to_toml(), encoding="utf-8")
    assert Recipe.named(path).name == "猫😀"


def test_a_changed_preset_says_what_was_changed():
    assert Recipe.named("atom").resolved(ipc=1, size=32, flip=False).describe() == "atom"
    assert (
        Recipe.named("atom", {"power": 2, "augmentation": "crop"}).describe()
        == "atom with power=2.0, augmentation=crop"
    )
    assert Recipe.named("atom", {"name": "mine", "power": 1}).describe() == "mine"


def test_replacing_reads_values_as_overrides_do():
    assert Recipe.named("atom").replace(augmentation="crop", power="2").power == 2


def test_text_overrides_are_read_as_values():
    recipe = Recipe.named("dm", {"width": "64", "norm": "batch", "depth": "auto", "augmentation": "none"})
    assert (recipe.width, recipe.norm, recipe.depth, recipe.augmentation) == (64, "batch", None, ())


def test_what_follows_from_the_data_is_filled_in():
    recipe = Recipe.named("atom")
    assert recipe.resolved(ipc=50, size=32).image_lr == 1.0
    assert recipe.resolved(ipc=51, size=32).image_lr == 10.0
    assert recipe.resolved(ipc=1, size=64).depth == 4
    assert "flip" not in recipe.resolved(ipc=1, size=32, flip=False).augmentation


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("atmo", {}, "(?s)no recipe 'atmo'.*'atom'"),
        ("atom", {"powr": 2}, "(?s)no field 'powr'.*'power'"),
        ("atom", {"power": "9"}, "(?s)'power' cannot be 9.*a number >= 1 and <= 8"),
        ("atom", {"width": "wide"}, "(?s)'width' cannot be 'wide'.*a whole number >= 1"),
        ("atom", {"norm": "layer"}, "(?s)'norm' cannot be 'layer'.*one of instance, batch, none"),
        ("atom", {"augmentation": "mirror"}, "(?s)'augmentation' cannot be .*a list of color, crop"),
        ("atom", {"zca": "maybe"}, "(?s)'zca' cannot be 'maybe': use true or false"),
        ("atom", {"widths": "64,0"}, r"(?s)'widths' cannot be \(64, 0\).*a list of whole numbers >= 1"),
        ("atom", {"power": True}, "(?s)'power' cannot be True.*not numbers"),
        ("atom", {"power": float("nan")}, "'power' cannot be nan"),
        ("atom", {"iterations": -1}, "(?s)'iterations' cannot be -1.*>= 0"),
        ("dm", {"feature": 0}, "nothing would be matched"),
        ("atom", {"gradient": 1}, "statistics=real, or norm=instance"),
        ("idc", {"bank": 0, "widths": "64,32"}, "gradients are matched under networks of one width and depth"),
        ("missing.toml", {}, "does not exist"),
    ],
)
def test_impossible_recipes_are_refused_in_a_sentence(name, overrides, message):
    with pytest.raises(UsageError, match=message):
        Recipe.named(name, overrides)


def test_a_broken_toml_file_is_refused(tmp_path):
    (tmp_path / "bad.toml").write_text("power = = 2")
    with pytest.raises(UsageError, match=r"bad.toml' cannot be read"):
        Recipe.named(tmp_path / "bad.toml")


def test_a_depth_that_does_not_fit_the_resolution_is_refused():
    with pytest.raises(UsageError, match=r"(?s)'depth' cannot be 5 at 16x16.*depth 2"):
        Recipe.named("atom", {"depth": 5}).resolved(ipc=1, size=16)
