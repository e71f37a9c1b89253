"""Foreign checkpoint formats: how their weight names and configuration fields map to ours."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from transformers import CONFIG_MAPPING

from aligngpt.errors import AlignGPTError
from aligngpt.model.configuration import AlignGPTConfig, TextPooling
from aligngpt.model.foreign.embedding_scale import embedding_scale
from aligngpt.model.vision_towers import VisionTower

TABLE = "model.alignment.levels"
TOWER = "model.vision_tower."
GATE_INPUT = "model.alignment.gate.0.weight"
EMBEDDINGS, HEAD, HEAD_BIAS = "model.language_model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"
BY_TOKEN = (EMBEDDINGS, HEAD, HEAD_BIAS)
"""Tensors with one row per token of the vocabulary."""

PUBLISHED_LEVELS = 8
"""N in the code of the first AlignGPT, which reads no other."""

Renamings = Sequence[tuple[str, str]]


class LayoutError(AlignGPTError):
    """A folder has no known layout, or its contents do not match its layout."""


class Layout(ABC):
    """A foreign checkpoint layout.

    Args:
        config: its `config.json`.

    Attributes:
        words: the layout's name in messages.
        renamings: patterns of their weight names and the replacements that give ours; the first match applies.
        without_use: patterns of entries to ignore, because they are computed rather than loaded.
    """

    words: str
    renamings: Renamings = ()
    without_use: Sequence[str] = ()

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.theirs = config

    @classmethod
    @abstractmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """Whether a `config.json` has this layout; nothing else is considered, least of all the folder's name."""

    @property
    @abstractmethod
    def vision_tower(self) -> str | None:
        """The name of the vision tower; None if the configuration has none."""

    @property
    @abstractmethod
    def pads_images(self) -> bool:
        """Whether images are padded to a square rather than cropped."""

    @property
    def image_scales(self) -> list[int] | None:
        """Sides at which each image is read, if there are several; see `AlignGPTConfig`."""
        return None

    @abstractmethod
    def text_config(self) -> dict[str, Any]:
        """The language model's configuration, with its `model_type`."""

    @property
    def embedding_scale(self) -> float:
        """The factor that its layers multiply image tokens by and ours do not."""
        return embedding_scale(self.text_config())

    @abstractmethod
    def our_fields(self) -> dict[str, Any]:
        """Fields of our configuration that follow from this one."""

    def rename(self, name: str) -> str | None:
        """Our name for one of their weights; None if it is to be ignored."""
        if any(re.search(pattern, name) for pattern in self.without_use):
            return None
        for pattern, replacement in self.renamings:
            if re.match(pattern, name):
                return re.sub(pattern, replacement, name, count=1)
        return name

    def configuration(self, tower: VisionTower, shapes: Mapping[str, Sequence[int]], vocabulary: int) -> AlignGPTConfig:
        """Build our configuration.

        Args:
            tower: the vision tower.
            shapes: shapes of all weights, by our names: that of the level table gives N, that of the gate the number
                of image tokens it reads.
            vocabulary: number of rows that the embedding table will have, including `<image>` and `<align>`.
        """
        text = self.text_config()
        if text["model_type"] not in CONFIG_MAPPING:
            raise LayoutError(f"its language model has type {text['model_type']!r}, which transformers does not know")
        language = CONFIG_MAPPING[text["model_type"]].from_dict(text | {"vocab_size": vocabulary})
        levels, gate = shapes.get(TABLE, (PUBLISHED_LEVELS,))[0], shapes.get(GATE_INPUT)
        fields: dict[str, Any] = {
            "vision_config": tower.model.config,
            "text_config": language,
            "image_seq_length": tower.image_tokens,
            "vision_feature_select_strategy": tower.select_strategy,
            "num_alignment_levels": int(levels),
            "lm_head_bias": HEAD_BIAS in shapes,
            "image_scales": self.image_scales,
            "dtype": self.theirs.get("dtype") or self.theirs.get("torch_dtype") or "float32",
            # If not stated, the default of the model family applies: Gemma's are tied.
            "tie_word_embeddings": bool(language.tie_word_embeddings),
        }
        if gate is not None:
            fields |= {"gate_grid": _side(gate[1]), "gate_hidden_size": int(gate[0])}
        return AlignGPTConfig(**fields | self.our_fields())


class OriginalLayout(Layout):
    """The layout of the AlignGPT authors' code and its relatives: a flat language model config with `mm_…` fields."""

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

    # The reverse mapping.
    their_names = (
        ("model.vision_tower.", "vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.linear_1.", "mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "mm_projector.2."),
        (TABLE, "align_indicators.indicator_embs"),
        ("model.alignment.gate.", "gated_weight_layer.mlp."),
        ("model.language_model.", "model."),
    )

    # Language model families, recognised by a word in the saved class name.
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
        kind = str(self.theirs.get("model_type", "llava"))
        named = " ".join([kind, *self.theirs.get("architectures", [])]).lower()
        family = next((one for one in self.families if one in named), None)
        if family is None and kind in ("aligngpt", "llava"):
            family = "llama"  # What the first models of the two codes are, without saying so.
        if family is None:
            # Others, such as Granite, have the same tensors as Llama and compute something else with them.
            raise LayoutError(
                f"its language model (model_type {kind!r}) is none of those supported in this layout: "
                f"{', '.join(self.families)}"
            )
        # Files have the old settings that transformers has since merged into `rope_parameters`.
        known = CONFIG_MAPPING[family]().to_dict().keys() | _ROPE
        kept = {name: value for name, value in self.theirs.items() if name in known and name not in _NOT_OF_THE_TEXT}
        return kept | {"model_type": family}

    @classmethod
    def rename_back(cls, name: str) -> str:
        """Their name for one of our weights."""
        for ours, theirs in cls.their_names:
            if name.startswith(ours):
                return name.replace(ours, theirs, 1)
        return name

    @classmethod
    def check(cls, config: AlignGPTConfig) -> None:
        """Check that one of our models can be written in this layout.

        Raises:
            LayoutError: the model has a feature that the original code does not support.
        """
        family = config.get_text_config().model_type
        if family not in cls.families or config.alignment != "adaptive" or config.projector_hidden_act != "gelu":
            raise LayoutError(
                f"the original code has no model with {family}, alignment {config.alignment!r} and a projector with "
                f"{config.projector_hidden_act}"
            )
        if not config.multimodal_projector_bias or not isinstance(config.vision_feature_layer, int):
            raise LayoutError(
                f"a model with multimodal_projector_bias {config.multimodal_projector_bias} and vision_feature_layer "
                f"{config.vision_feature_layer} does not fit the original code, which has a bias and one layer"
            )
        if config.merge_image_tokens > 1:
            raise LayoutError(
                f"a model with merge_image_tokens {config.merge_image_tokens} does not fit the original code, in which "
                "every patch is an image token"
            )
        if config.gate_grid**2 != config.image_seq_length:
            raise LayoutError(
                f"the gate of this model reads {config.gate_grid} × {config.gate_grid} values, to which it resamples "
                f"the similarities of its {config.image_seq_length} image tokens; the gate of the original code reads "
                "one value for each image token"
            )

    @classmethod
    def their_config(cls, config: AlignGPTConfig, vocabulary: int, vision_tower: str, pads: bool) -> dict[str, Any]:
        """Their `config.json` for one of our models that passes `check`."""
        text = config.get_text_config().to_dict()
        family = text.pop("model_type")
        plain = {name: value for name, value in text.items() if name not in _NOT_OF_THE_TEXT}
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
            # Read by the code of the later models of the family.
            "n_indicators": config.num_alignment_levels,
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "use_mm_proj": True,
            "image_aspect_ratio": "pad" if pads else "square",
            "torch_dtype": str(config.dtype).removeprefix("torch."),
            # Of no meaning to the original code, whose gate always averages all text; read again by `our_fields`.
            **({} if config.text_pooling == "all" else {"text_pooling": config.text_pooling}),
        }

    def our_fields(self) -> dict[str, Any]:
        if (projector := self.theirs.get("mm_projector_type", "linear")) != "mlp2x_gelu":
            raise LayoutError(f"its projector is {projector!r}; only mlp2x_gelu can be converted")
        if self.theirs.get("mm_use_im_start_end"):
            raise LayoutError("it marks images with start and end tokens (mm_use_im_start_end), which is not supported")
        # The original averages over all text, so its weights give its results only with `all`. Only a model that came
        # from ours states another.
        if (pooling := self.theirs.get("text_pooling", "all")) not in get_args(TextPooling):
            raise LayoutError(f"its text_pooling is {pooling!r}; expected {' or '.join(get_args(TextPooling))}")
        return {
            "vision_feature_layer": self.theirs.get("mm_vision_select_layer", -2),
            "text_pooling": pooling,
        }


class LlavaLayout(Layout):
    """transformers' own LLaVA, with the weight names of old and new versions."""

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

    @property
    def embedding_scale(self) -> float:
        return embedding_scale(self.text_config(), self.theirs.get("transformers_version"))

    def our_fields(self) -> dict[str, Any]:
        names = ("vision_feature_layer", "projector_hidden_act", "multimodal_projector_bias")
        return {name: self.theirs[name] for name in names if name in self.theirs}


LAYOUTS: tuple[type[Layout], ...] = (OriginalLayout, LlavaLayout)
_ROPE = {"rope_theta", "rope_scaling", "partial_rotary_factor"}
_NOT_OF_THE_TEXT = {"architectures", "transformers_version", "torch_dtype", "dtype", "model_type", "_name_or_path"}


def layout_of(config: Mapping[str, Any]) -> Layout:
    """The layout of a `config.json`.

    Raises:
        LayoutError: it has none of the known layouts.
    """
    for layout in LAYOUTS:
        if layout.recognises(config):
            return layout(config)
    raise LayoutError(
        f"a configuration of type {config.get('model_type')!r} is neither that of the original AlignGPT (with "
        "mm_vision_tower) nor that of a LLaVA (model_type llava)"
    )


def _rope_as_it_was(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of rotary embeddings under the names that the original code reads."""
    settings = dict(rope)
    kind = settings.pop("rope_type", "default")
    plain = {name: settings.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in settings}
    return plain | {"rope_scaling": None if kind == "default" else {"type": kind, **settings}}


def _side(tokens: int) -> int:
    side = round(tokens**0.5)
    if side * side != tokens:
        raise LayoutError(f"its gate reads {tokens} image tokens, which is not a square number")
    return side
