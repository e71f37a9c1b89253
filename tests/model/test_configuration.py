"""The configuration: accepted values, and saving and loading."""

import json
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, LlavaConfig

from aligngpt.alignment.modes import AlignmentMode
from aligngpt.model.configuration import AlignGPTConfig


def test_defaults_are_the_published_models() -> None:
    config = AlignGPTConfig()
    assert isinstance(config, LlavaConfig)
    assert (config.alignment, config.num_alignment_levels, config.gate_grid) == ("adaptive", 8, 24)
    assert config.gate_hidden_size == 256
    assert config.vision_feature_layer == -2


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    config = AlignGPTConfig(
        text_config=LlamaConfig(hidden_size=32, vocab_size=77),
        alignment="local",
        num_alignment_levels=4,
        align_token_index=76,
        image_token_index=75,
        gate_grid=7,
        gate_hidden_size=9,
        text_pooling="all",
        lm_head_bias=True,
        vision_register_tokens=4,
    )
    config.save_pretrained(tmp_path)
    loaded = AlignGPTConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() | {"transformers_version": loaded.to_dict()["transformers_version"]}
    assert (loaded.alignment, loaded.text_pooling, loaded.lm_head_bias) == ("local", "all", True)
    assert (loaded.num_alignment_levels, loaded.gate_grid, loaded.gate_hidden_size) == (4, 7, 9)
    assert (loaded.align_token_index, loaded.image_token_id) == (76, 75)
    assert loaded.get_text_config().vocab_size == 77
    assert (loaded.vision_register_tokens, loaded.leading_tokens) == (4, 5)
    assert loaded.model_type == "aligngpt"


@pytest.mark.parametrize("alignment", ["adaptive", "global", "local", "average", "mean", "none"])
def test_every_alignment_mode_is_accepted(alignment: AlignmentMode) -> None:
    assert AlignGPTConfig(alignment=alignment).alignment == alignment


@pytest.mark.parametrize("field", ["alignment", "text_pooling"])
def test_an_unknown_choice_is_an_error(field: str) -> None:
    with pytest.raises(StrictDataclassError, match=field):
        AlignGPTConfig(**{field: "sideways"})  # type: ignore[arg-type]


@pytest.mark.parametrize("levels", [1, 0, -2])
def test_fewer_than_two_levels_are_an_error(levels: int) -> None:
    with pytest.raises(ValueError, match=f"num_alignment_levels must be at least 2, got {levels}"):
        AlignGPTConfig(num_alignment_levels=levels)


def test_a_checkpoint_that_says_nothing_of_registers_has_none(tmp_path: Path) -> None:
    AlignGPTConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved.pop("vision_register_tokens", None)
    (tmp_path / "config.json").write_text(json.dumps(saved))
    loaded = AlignGPTConfig.from_pretrained(tmp_path)
    assert (loaded.vision_register_tokens, loaded.leading_tokens) == (0, 1)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        AlignGPTConfig(vision_register_tokens=-1)
