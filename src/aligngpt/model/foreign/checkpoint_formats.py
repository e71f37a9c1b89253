"""How others save such a model: names of their weights and fields of their configuration, beside ours."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import CONFIG_MAPPING

from aligngpt.errors import AlignGPTError
from aligngpt.model.backbones import VisionTower
from aligngpt.model.configuration import AlignGPTConfig

TABLE = "model.alignment.levels"
TOWER = "model.vision_tower."
TOWER = "model.vision_tower."
GATE_INPUT = "model.alignment.gate.0.weight"
EMBEDDINGS, HEAD, HEAD_BIAS = "model.language_model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"
BY_TOKEN = (EMBEDDINGS, HEAD, HEAD_BIAS)
"""What has a row for each token of the vocabulary."""

Renamings = Sequence[tuple[str, str]]


class LayoutError(AlignGPTError):
    """A folder is of no known layout, or does not hold what its layout says."""


class Layout(ABC):
    """One foreign way to save a model.

    Args:
        config: its `config.json`.

    Attributes:
        words: what such a folder is called.
        renamings: patterns of their names and what becomes of them in ours; the first that matches counts.
        without_use: patterns of entries that are computed and need no file.
    """

    words: str
    renamings: Renamings = ()
    without_use: Sequence[str] = ()

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.theirs = config

    @classmethod
    @abstractmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """Whether a `config.json` is of this layout; nothing else is looked at, no folder's name above all."""

    @property
    @abstractmethod
    def vision_tower(self) -> str | None:
        """The name of the vision tower, where the configuration has one."""

    @property
    @abstractmethod
    def pads_images(self) -> bool:
        """Whether pictures are padded to a square, rather than cut."""

    @property
    def image_scales(self) -> list[int] | None:
        """Sides at which each picture is read, where there are several; see `AlignGPTConfig`."""
        return None

    @abstractmethod
    def text_config(self) -> dict[str, Any]:
        """The language model's configuration, with its `model_type`."""

    @abstractmethod
    def our_fields(self) -> dict[str, Any]:
        """Fields of our configuration that this one decides."""

    def rename(self, name: str) -> str | None:
        """Our name of one of their weights; None where it is without use."""
        if any(re.search(pattern, name) for pattern in self.without_use):
            return None
        for pattern, replacement in self.renamings:
            if re.match(pattern, name):
                return re.sub(pattern, replacement, name, count=1)
        return name

    def configuration(self, tower: VisionTower, shapes: Mapping[str, Sequence[int]], vocabulary: int) -> AlignGPTConfig:
        """Our configuration.

        Args:
            tower: the vision tower.
            shapes: of all weights, by our names: the table's size tells N, the gate's how many tokens it reads.
            vocabulary: rows of the embedding table that will be there, `<image>` and `<align>` last but for more.
        """
        text = self.text_config()
        if text["model_type"] not in CONFIG_MAPPING:
            raise LayoutError(f"its language model is a {text['model_type']!r}, which transformers does not know")
        language = CONFIG_MAPPING[text["model_type"]].from_dict(text | {"vocab_size": vocabulary})
        levels, gate = shapes.get(TABLE, (8,))[0], shapes.get(GATE_INPUT)
        fields: dict[str, Any] = {
            "vision_config": tower.model.config,
            "text_config": language,
            "image_seq_length": tower.image_tokens,
            "vision_feature_select_strategy": tower.select_strategy,
            "num_alignment_levels": int(levels),
            "lm_head_bias": HEAD_BIAS in shapes,
            "image_scales": self.image_scales,
            "dtype": self.theirs.get("dtype") or self.theirs.get("torch_dtype") or "float32",
            # Where it is not written down, it is the family's own: Gemma's are tied.
            "tie_word_embeddings": bool(language.tie_word_embeddings),
        }
        if gate is not None:
            fields |= {"gate_grid": _side(gate[1]), "gate_hidden_size": int(gate[0])}
        return AlignGPTConfig(**fields | self.our_fields())


class OriginalLayout(Layout):
    """The authors' code and its family: a flat configuration of the language model with `mm_…` fields."""

    words = "original AlignGPT"
    renamings = (
        (r"^(?:model\.)?vision_tower\.vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
        (r"^(?:model\.)?mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
        (r"^(?:model\.)?mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
        (r"^(?:model\.)?align_indicators\.indicator_embs(?:\.weight)?$", TABLE),
        (r"^(?:model\.)?gated_weight_layer\.mlp\.", "model.alignment.gate."),
        (r"^model\.", "model.language_model."),
    )
    without_use = (r"rotary_emb\.inv_freq$", r"embeddings\.position_ids$")

    # The way back.
    their_names = (
        ("model.vision_tower.", "vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.linear_1.", "mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "mm_projector.2."),
        (TABLE, "align_indicators.indicator_embs"),
        ("model.alignment.gate.", "gated_weight_layer.mlp."),
        ("model.language_model.", "model."),
    )

    # What the language models of the family are called, by a word in the class that was saved.
    families = ("mistral", "gemma", "phi", "qwen2", "llama")

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        return "mm_vision_tower" in config and "text_config" not in config

    @property
    def vision_tower(self) -> str | None:
        return self.theirs.get("mm_vision_tower")

    @property
    def pads_images(self) -> bool:
        return self.theirs.get("image_aspect_ratio", "square") == "pad"

    @property
    def image_scales(self) -> list[int] | None:
        if not (self.theirs.get("use_s2") or self.theirs.get("s2")):
            return None
        # LLaVA's own default.
        sides = self.theirs.get("s2_scales") or "336,672,1008"
        try:
            named = sides if isinstance(sides, list) else str(sides).split(",")
            return sorted(int(side) for side in named)
        except (TypeError, ValueError) as error:
            raise LayoutError(f"its s2_scales are {sides!r}, expected sides in pixels as in 336,672") from error

    def text_config(self) -> dict[str, Any]:
        named = " ".join([str(self.theirs.get("model_type")), *self.theirs.get("architectures", [])]).lower()
        family = next((one for one in self.families if one in named), "llama")
        # What transformers has turned into one `rope_parameters` is in the files as it always was.
        known = CONFIG_MAPPING[family]().to_dict().keys() | _ROPE
        kept = {name: value for name, value in self.theirs.items() if name in known and name not in _NOT_OF_THE_TEXT}
        return kept | {"model_type": family}

    @classmethod
    def rename_back(cls, name: str) -> str:
        """Their name of one of our weights."""
        for ours, theirs in cls.their_names:
            if name.startswith(ours):
                return name.replace(ours, theirs, 1)
        return name

    @classmethod
    def their_config(cls, config: AlignGPTConfig, vocabulary: int, vision_tower: str, pads: bool) -> dict[str, Any]:
        """Their `config.json` of one of our models.

        Raises:
            LayoutError: the model has something that the original code does not know.
        """
        text = config.get_text_config().to_dict()
        family = text.pop("model_type")
        if family not in cls.families or config.alignment != "adaptive" or config.projector_hidden_act != "gelu":
            raise LayoutError(
                f"a model with {family}, alignment {config.alignment!r} and a projector with "
                f"{config.projector_hidden_act} is not one of the original code's"
            )
        if not config.multimodal_projector_bias or not isinstance(config.vision_feature_layer, int):
            raise LayoutError(
                f"a model with multimodal_projector_bias {config.multimodal_projector_bias} and vision_feature_layer "
                f"{config.vision_feature_layer} is not one of the original code's, which has a bias and one layer"
            )
        if not config.multimodal_projector_bias or not isinstance(config.vision_feature_layer, int):
            raise LayoutError(
                f"a model with multimodal_projector_bias {config.multimodal_projector_bias} and vision_feature_layer "
                f"{config.vision_feature_layer} is not one of the original code's, which has a bias and one layer"
            )
        plain = {name: value for name, value in text.items() if name not in _NOT_OF_THE_TEXT}
        plain |= _rope_as_it_was(plain.get("rope_parameters") or {})
        plain |= _rope_as_it_was(plain.get("rope_parameters") or {})
        scales = config.image_scales or []
        if scales:
            plain |= {"use_s2": True, "s2_scales": ",".join(map(str, scales))}
        return plain | {
            "model_type": "aligngpt" if family == "llama" else f"aligngpt_{family}",
            "architectures": [f"AlignGPT{'' if family == 'llama' else family.title()}ForCausalLM"],
            "vocab_size": vocabulary,
            "mm_vision_tower": vision_tower,
            "mm_hidden_size": config.vision_config.hidden_size * max(1, len(scales)),
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": config.vision_feature_layer,
            "mm_vision_select_feature": "patch",
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "use_mm_proj": True,
            "image_aspect_ratio": "pad" if pads else "square",
            "torch_dtype": str(config.dtype).removeprefix("torch."),
        }

    def our_fields(self) -> dict[str, Any]:
        if (projector := self.theirs.get("mm_projector_type", "linear")) != "mlp2x_gelu":
            raise LayoutError(f"its projector is {projector!r}; only mlp2x_gelu can be converted")
        if self.theirs.get("mm_use_im_start_end"):
            raise LayoutError("it marks images with start and end tokens (mm_use_im_start_end), which is not supported")
        # As the original averages, so that its weights give its numbers.
        return {"vision_feature_layer": self.theirs.get("mm_vision_select_layer", -2), "text_pooling": "all"}


class LlavaLayout(Layout):
    """transformers' own LLaVA, in the names of old versions and of new ones."""

    words = "LLaVA of transformers"
    renamings = (
        (r"^(?:model\.)?language_model\.lm_head\.", "lm_head."),
        (r"^(?:model\.)?language_model\.(?:model\.)?", "model.language_model."),
        (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
        (r"^(?:model\.)?multi_modal_projector\.", "model.multi_modal_projector."),
    )
    without_use = OriginalLayout.without_use

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "llava" and "text_config" in config

    @property
    def vision_tower(self) -> str | None:
        return None

    @property
    def pads_images(self) -> bool:
        return True

    def text_config(self) -> dict[str, Any]:
        return {"model_type": "llama", **self.theirs["text_config"]}

    def our_fields(self) -> dict[str, Any]:
        names = ("vision_feature_layer", "projector_hidden_act", "multimodal_projector_bias")
        return {name: self.theirs[name] for name in names if name in self.theirs}


LAYOUTS: tuple[type[Layout], ...] = (OriginalLayout, LlavaLayout)
_ROPE = {"rope_theta", "rope_scaling", "partial_rotary_factor"}
_ROPE = {"rope_theta", "rope_scaling", "partial_rotary_factor"}
_NOT_OF_THE_TEXT = {"architectures", "transformers_version", "torch_dtype", "dtype", "model_type", "_name_or_path"}


def layout_of(config: Mapping[str, Any]) -> Layout:
    """The layout that a `config.json` is of.

    Raises:
        LayoutError: none of the known ones.
    """
    for layout in LAYOUTS:
        if layout.recognises(config):
            return layout(config)
    raise LayoutError(
        f"a configuration of type {config.get('model_type')!r} is neither that of the original AlignGPT (with "
        "mm_vision_tower) nor that of a LLaVA (model_type llava)"
    )


def _rope_as_it_was(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of rotary embeddings by the names that the original code reads."""
    settings = dict(rope)
    kind = settings.pop("rope_type", "default")
    plain = {name: settings.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in settings}
    return plain | {"rope_scaling": None if kind == "default" else {"type": kind, **settings}}


def _side(tokens: int) -> int:
    side = round(tokens**0.5)
    if side * side != tokens:
        raise LayoutError(f"its gate reads {tokens} image tokens, which is no square number")
    return side
