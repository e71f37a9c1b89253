"""The model that a projector and a level table were trained for, kept in their file and compared when they are reused.

Names and shapes of the tensors say little: the features of another layer of the tower, or a language model of the same
width, fit them as well, and the result would only be worse.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from aligngpt.alignment.module import is_as_drawn
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.training.recipe import Recipe, StageName
from aligngpt.training.setup.freezing import LEVEL_TABLE
from aligngpt.training.setup.pretrained_parts import PRETRAINED_FILE, pretrained_parts_of
from aligngpt.training.stage import content_of_backbone, pretrained_file, stage_folder

KEY = "trained_for"
"""Of the entry in the file's metadata."""

BACKBONES = ("vision_tower", "language_model")

SETTINGS = ("vision_feature_layer", "pad_images", "image_size", "image_scales", "merge_image_tokens")
"""Fields of `ModelRecipe` that change the image features or their number without changing a tensor's shape."""

SETTINGS_OF_A_MODEL = ("vision_feature_layer", "image_scales", "merge_image_tokens")
"""Those of the `SETTINGS` that the configuration of a model folder has under the same name."""


def origin_of(recipe: Recipe) -> dict[str, str]:
    """The entry for the metadata of the weights that a recipe's pre-training writes.

    A local backbone is described by the name of its folder and a hash of its files, but not by where it lies.

    Raises:
        SourceError: a file of a backbone cannot be read.
    """
    model = recipe.model.model_dump(mode="json", include={*BACKBONES, *SETTINGS})
    for backbone in BACKBONES:
        name = model[backbone]
        folder = Path(name)
        model[backbone] = {"name": folder.resolve().name if folder.is_dir() else name}
        model[backbone]["content"] = content_of_backbone(name)
    return {KEY: json.dumps(model, sort_keys=True)}


def other_origin(recipe: Recipe, name: StageName) -> str | None:
    """A warning if a stage starts from weights that were trained for another model; None if there is no sign of it.

    Of a model folder it also says if its levels were never trained, or are not used.

    Raises:
        RecipeError: the stage's `pretrained` names no weights.
        AlignGPTError: a file of a backbone or of a model folder cannot be read.
    """
    stage = recipe.stage(name)
    if stage is not None and stage.pretrained is not None:
        path = pretrained_file(stage.pretrained)
    else:
        path = stage_folder(recipe, "pretrain") / PRETRAINED_FILE
        if name == "pretrain" or recipe.pretrain is None or not path.is_file():
            return None
    trains_levels = stage is not None and "level_table" in stage.train
    if stage is not None and stage.fresh_level_table:
        levels = (
            None if trains_levels else "fresh_level_table: the new levels stay as drawn, since level_table is frozen"
        )
    else:
        levels = _unsuited_levels(recipe, path, trains_levels)
    said = (_other_settings(recipe, path), levels)
    return "; ".join(filter(None, said)) or None


def _other_settings(recipe: Recipe, path: Path) -> str | None:
    theirs = _kept_in(path)
    if theirs is None:
        return None
    ours = json.loads(origin_of(recipe)[KEY])
    others = []
    for backbone in BACKBONES:
        was, now = theirs.get(backbone), ours[backbone]
        if isinstance(was, dict) and was.get("content") != now["content"]:
            same = was.get("name") == now["name"]
            others.append(
                f"{backbone} {was.get('name')}"
                + (" with other files than now" if same else f" instead of {now['name']}")
            )
    others += [
        f"{setting} {_said(theirs[setting])} instead of {_said(ours[setting])}"
        for setting in SETTINGS
        if setting in theirs and theirs[setting] != ours[setting]
    ]
    if not others:
        return None
    return (
        f"{path} was trained with {', '.join(others)}: its projector and levels may not suit this model; set the same, "
        "or pre-train again"
    )


def _unsuited_levels(recipe: Recipe, path: Path, trains_levels: bool) -> str | None:
    """Conversion gives a LLaVA a table as well, drawn at random; a file always has the one that was trained."""
    table = pretrained_parts_of(path).get(LEVEL_TABLE) if path.is_dir() else None
    if table is None:
        return None
    if recipe.model.alignment == "none":
        return None if is_as_drawn(table) else f"the levels of {path}, beside which its projector trained, are not used"
    if trains_levels or not is_as_drawn(table):
        return None
    return (
        f"the levels of {path} are as drawn at random and stay so, because level_table does not train; set "
        "model.alignment to none, or pre-train"
    )


def _kept_in(path: Path) -> dict[str, object] | None:
    """The entry of a weights file, or what a model's configuration says of it; None if there is nothing.

    A file that cannot be read is reported when it is loaded.
    """
    if path.is_dir():
        config = AlignGPTConfig.from_pretrained(path, trust_remote_code=False)
        return {setting: getattr(config, setting) for setting in SETTINGS_OF_A_MODEL}
    try:
        with safe_open(path, framework="pt") as file:
            kept = (file.metadata() or {}).get(KEY)
        found = None if kept is None else json.loads(kept)
    except (OSError, SafetensorError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _said(setting: object) -> str:
    return "unset" if setting is None else json.dumps(setting)
