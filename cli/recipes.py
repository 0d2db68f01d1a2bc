"""``atomhub recipes``."""

import click

from . import complete, options
from .output import print_json, print_table


@click.command()
@click.argument("name", required=False, shell_complete=complete.recipes)
@click.option("--toml", "as_toml", is_flag=True, help="Print the recipe as TOML, as a start for your own.")
@options.as_json
def recipes(name: str | None, as_toml: bool, as_json: bool) -> None:
    """List the recipes and their purposes, or all fields of one.

    Each field is shown with its value, unit, range, meaning and source.

    \b
    Examples:
      atomhub recipes atom
      atomhub recipes atom --toml > my.toml
    """
    from atomhub.presets import PRESETS, PURPOSES, TUNED
    from atomhub.recipe import Recipe
    from atomhub.values import allowed_values

    if name is None:
        presets = {preset: Recipe.named(preset) for preset in PRESETS}
        if as_json:
            print_json({"recipes": {k: r.model_dump(mode="json") for k, r in presets.items()}, "tuned": TUNED})
            return
        columns = ("spatial", "channel", "feature", "iterations")
        rows = []
        for preset, r in presets.items():
            more = ", ".join(f"{k}={v}" for k, v in PRESETS[preset].items() if k not in columns)
            rows.append([preset, PURPOSES[preset], *(f"{getattr(r, key):g}" for key in columns), more])
        print_table(["recipe", "what for", *columns, "other fields"], rows)
        for source, fields in TUNED.items():
            click.echo(f"For {source}, unless you set them: " + ", ".join(f"{k}={v}" for k, v in fields.items()))
        return
    recipe = Recipe.named(name)
    if as_json:
        print_json(recipe.model_dump(mode="json"))
    elif as_toml:
        click.echo(recipe.to_toml(), nl=False)
    else:
        rows = []
        for key, field in Recipe.model_fields.items():
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            value = getattr(recipe, key)
            shown = "unset" if value is None else ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            rows.append(
                [
                    key,
                    shown,
                    str(extra["unit"]),
                    allowed_values(Recipe, key),
                    field.description or "",
                    str(extra["source"]),
                ]
            )
        print_table(["field", "value", "unit", "allowed", "meaning", "source"], rows, f"recipe {recipe.name}")
