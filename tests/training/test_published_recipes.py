"""The published recipes, at their full size (shapes only) and run from end to end at a tiny one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from full_size import LANGUAGE_MODELS

from aligngpt.training.dry_run import CAPTION_TOKENS, plan
from aligngpt.training.recipe import Recipe, load_recipe, recipe_path
from aligngpt.training.run import train
from aligngpt.training.stage import model_folder

CLIP, SIGLIP = 303_507_456, 428_225_600
"""Number of parameters of the two vision towers."""


def projector(tower: int, hidden: int) -> int:
    return tower * hidden + hidden + hidden * hidden + hidden


# Sizes of language model, tower and projector input: as published, or computed from published sizes.
RECIPES = {
    "aligngpt-7b": (6_738_415_616, CLIP, projector(1024, 4096), 576),
    "aligngpt-13b": (13_015_864_320, CLIP, projector(1024, 5120), 576),
    "aligngpt-llama3-8b": (8_030_261_248, CLIP, projector(1024, 4096), 576),
    "aligngpt-llama3-8b-instruct": (8_030_261_248, CLIP, projector(1024, 4096), 576),
    "aligngpt-phi2": (2_779_683_840, CLIP, projector(1024, 2560), 576),
    "aligngpt-gemma-7b": (8_537_680_896, CLIP, projector(1024, 3072), 576),
    "aligngpt-mistral-7b": (7_241_732_096, CLIP, projector(1024, 4096), 576),
    "aligngpt-7b-siglip": (6_738_415_616, SIGLIP, projector(1152, 4096), 729),
    "aligngpt-7b-s2": (6_738_415_616, CLIP, projector(3 * 1024, 4096), 576),
    "aligngpt-7b-siglip-s2": (6_738_415_616, SIGLIP, projector(2 * 1152, 4096), 729),
}
OTHERS = {"quickstart", "quickstart-scenes", "laptop", "small-gpu"}
"""Recipes that are not of the paper."""
TINY = {
    "llama": "llama",
    "phi": "phi",
    "gemma": "gemma",
    "mistral": "mistral",
}


def test_every_published_recipe_is_here() -> None:
    shipped = {path.stem for path in recipe_path("quickstart").parent.glob("*.yaml")}
    assert shipped - OTHERS == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_it_carries_the_numbers_of_the_paper(name: str) -> None:
    recipe = load_recipe(recipe_path(name))
    pretrain, instruct = recipe.pretrain, recipe.instruct
    assert pretrain is not None and instruct is not None
    for stage in (pretrain, instruct):
        assert (stage.epochs, stage.schedule, stage.warmup_ratio) == (1, "cosine", 0.03)
        assert (stage.weight_decay, stage.max_length, stage.precision) == (0, 2048, "bfloat16")
        assert stage.max_grad_norm is None
        assert (stage.warm_start, stage.lora, stage.questions_per_prefix) == (None, None, 1)
        # On the eight devices of the paper.
        assert stage.batch_size % (8 * (stage.micro_batch_size or 0)) == 0
    assert (pretrain.train, instruct.train) == (
        ("projector", "level_table"),
        ("language_model", "projector", "gate"),
    )
    assert (pretrain.learning_rate, pretrain.batch_size, pretrain.chat_template) == (1e-3, 256, "plain")
    assert (instruct.learning_rate, instruct.batch_size, instruct.grouping) == (2e-5, 128, "group_by_modality")
    assert (recipe.model.num_levels, recipe.model.alignment) == (8, "adaptive")
    assert (recipe.model.vision_feature_layer, recipe.model.pad_images) == (-2, True)
    framing, gate_grid = ("stretch", 27) if "siglip" in name else (False, None)
    assert (pretrain.pad_images, instruct.pad_images, recipe.model.gate_grid) == (framing, None, gate_grid)


@pytest.mark.medium
@pytest.mark.parametrize("name", RECIPES)
def test_it_is_built_at_full_size(name: str, full_size_folder: Callable[[str], Path]) -> None:
    published = load_recipe(recipe_path(name))
    recipe = load_recipe(
        recipe_path(name),
        [
            f"model.vision_tower={full_size_folder(published.model.vision_tower)}",
            f"model.language_model={full_size_folder(published.model.language_model)}",
        ],
    )
    language, tower, of_projector, image_tokens = RECIPES[name]
    hidden = LANGUAGE_MODELS[published.model.language_model]().hidden_size
    pretrain, instruct = plan(recipe)
    sizes = {row.part: row.parameters for row in instruct.parts}
    assert sizes["language_model"] == language
    assert sizes["vision_tower"] == tower
    assert sizes["projector"] == of_projector
    assert sizes["level_table"] == 8 * hidden
    assert sizes["gate"] == image_tokens * 256 + 256 + 256 * 7 + 7
    assert {row.part for row in pretrain.parts if row.trained} == {"projector", "level_table"}
    assert {row.part for row in instruct.parts if row.trained} == {"language_model", "projector", "gate"}
    # Stage 2 trains in float32 with AdamW: 16 bytes per parameter, plus autocast's copies.
    assert instruct.memory.weights + instruct.memory.training > 18 * language
    assert pretrain.memory.weights < 3 * (language + tower)
    # There is no data, so the plan assumes rows of an image and a caption.
    assert f"assuming rows of {image_tokens + CAPTION_TOKENS} tokens" in pretrain.notes[0]


@pytest.mark.medium
@pytest.mark.parametrize("name", RECIPES)
def test_it_runs_from_end_to_end(
    name: str, data: Path, tmp_path: Path, language_folder: Callable, tower_folder: Callable
) -> None:
    """The recipe's own settings, except for backbones, data, number of steps and batch sizes."""
    published = load_recipe(recipe_path(name))
    kind = LANGUAGE_MODELS[published.model.language_model]().model_type
    tower = "siglip" if "siglip" in published.model.vision_tower else "clip"
    scales = [32 * (place + 1) for place, _ in enumerate(published.model.image_scales or [])]
    overrides = [
        f"model.vision_tower={tower_folder(tower)}",
        f"model.language_model={language_folder(TINY[kind])}",
        f"model.image_scales={scales or 'null'}",
        f"pretrain.data={data / 'captions.json'}",
        f"instruct.data={data / 'questions.json'}",
        f"output={tmp_path / 'run'}",
    ]
    for stage in ("pretrain", "instruct"):
        overrides += [f"{stage}.image_root={data}", f"{stage}.batch_size=4", f"{stage}.micro_batch_size=2"]
        overrides += [f"{stage}.max_steps=2", f"{stage}.workers=0"]
    recipe: Recipe = load_recipe(recipe_path(name), overrides)
    assert [(result.stage, result.steps) for result in train(recipe)] == [("pretrain", 2), ("instruct", 2)]
    assert (model_folder(recipe) / "model.safetensors").is_file()
