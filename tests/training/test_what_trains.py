"""A stage trains the parameters it reports as trained, in every mode, on one process and on two."""

from collections.abc import Callable
from pathlib import Path

import pytest
from several_processes import losses, run
from tiny_recipes import give_levels
from transformers import Trainer

from aligngpt.training.loop.trainer import StageTrainer
from aligngpt.training.recipe import Recipe
from aligngpt.training.run import train
from aligngpt.training.setup.freezing import freeze_all_but, part_of
from aligngpt.training.setup.parameter_summary import parts_of


def test_levels_in_instruction_data_leave_the_gate_to_train(
    tiny_recipe: Callable[..., Recipe], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"pretrain": None, "instruct__questions_per_prefix": 2}
    without = tiny_recipe(output=str(tmp_path / "without"), **options)
    train(without)
    give_levels(data)
    recipe = tiny_recipe(**options)
    train(recipe)
    assert losses(recipe, "instruct") == losses(without, "instruct")
    lines = (Path(recipe.output) / "instruct" / "metrics.jsonl").read_text()
    assert "gate_1" in lines and "loss_level" not in lines
    assert "the levels in the data are ignored" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("alignment", ["global", "none"])
def test_modes_without_a_mix_train_on_two_processes_with_checkpointing(
    recipe_of: Callable[..., Recipe], tmp_path: Path, data: Path, alignment: str
) -> None:
    give_levels(data)
    options = {"model__alignment": alignment, "instruct__gradient_checkpointing": True, "pretrain": None}
    alone, together = recipe_of("one", **options), recipe_of("two", **options)
    train(alone)
    output = run(together, tmp_path / "two.yaml")
    assert losses(together, "instruct") == pytest.approx(losses(alone, "instruct"), rel=1e-5), output


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [("adaptive", True), ("local", True), ("global", False), ("average", False), ("mean", False)],
)
def test_the_gate_trains_where_a_mix_is_formed(assembled: Callable, alignment: str, expected: bool) -> None:
    model, _ = assembled("qwen2", alignment=alignment)
    freeze_all_but(model, ("language_model", "projector", "gate"))
    assert any(one.requires_grad for name, one in model.named_parameters() if part_of(name) == "gate") is expected


@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2"])
@pytest.mark.parametrize("layer", [-2, -1, [-2, -3]])
def test_whatever_is_shown_as_trained_gets_a_gradient(
    assembled: Callable, batch_of: Callable, tower: str, layer: int | list[int], tiny_recipe: Callable
) -> None:
    model, processor = assembled("qwen2", tower, vision_feature_layer=layer)
    parts = ("vision_tower", "language_model", "projector", "gate")
    freeze_all_but(model, parts)
    batch = batch_of(processor, ["<image> what colour is it ? red", "<image> is it red ? yes"], side="right")
    labels = batch["input_ids"].clone()
    labels[:, :-1] = -100
    model.train()(**batch, labels=labels).loss.backward()
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    idle = [name for name, one in trained.items() if one.grad is None]
    assert not idle
    rows = {row.part: row for row in parts_of(model, tiny_recipe(instruct__train=list(parts)).instruct)}
    tower = dict(model.model.vision_tower.named_parameters())
    # Without the freezing, the same parameters get a gradient.
    model.zero_grad()
    model.requires_grad_(True)
    model(**batch, labels=labels).loss.backward()
    used = [one for one in tower.values() if one.grad is not None]
    assert rows["vision_tower"].parameters == sum(one.numel() for one in tower.values())
    assert rows["vision_tower"].trained == sum(one.numel() for one in used) > 0


def test_what_the_trainer_overrides_is_there_to_be_overridden() -> None:
    """These hooks of transformers' Trainer are not public API: a rename there must not go unnoticed."""
    own = {name for name in vars(StageTrainer) if not name.startswith("__")}
    new = {"agree", "of_main", "resume_figures", "_save_figures", "_with_kept_features", "_stop", "_folder", "_factor"}
    new |= {"check_losses", "_stop_at", "rows_seen"}
    assert {name for name in own - new if not hasattr(Trainer, name)} == set()
