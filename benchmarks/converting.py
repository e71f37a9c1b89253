"""Measure the memory of a conversion: `python benchmarks/converting.py [--layers 24]`.

Makes a checkpoint of random numbers in the original code's layout, with a 7B model's width and fewer layers, as
several `.bin` files in bfloat16; converts it in a separate process; and prints the peak memory of that process and
the size of the largest file.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, models
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.foreign.checkpoint_formats import OriginalLayout
from aligngpt.model.modeling import AlignGPTForConditionalGeneration

VOCABULARY, WIDTH, LAYERS_A_SHARD = 32_000, 4096, 3
PROGRAM = """
import sys
from pathlib import Path
from aligngpt.device import peak_memory
from aligngpt.model.foreign.conversion import convert
before = peak_memory()
done = convert(Path(sys.argv[1]), Path(sys.argv[2]))
print(done.parameters, before, peak_memory())
"""


def write_checkpoint(folder: Path, layers: int) -> int:
    """Write the checkpoint with its tower and tokenizer; return the size of the largest weight file in bytes."""
    tower = folder / "tower"
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=336, patch_size=14
    )
    CLIPVisionModel(vision).save_pretrained(tower)
    CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}).save_pretrained(tower)
    text = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=11_008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        vocab_size=VOCABULARY,
    )
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2").save_pretrained(folder)
    config = AlignGPTConfig(vision_config=vision, text_config=text, image_token_index=0, align_token_index=1)
    with torch.device("meta"):
        model = AlignGPTForConditionalGeneration(config)
    names = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "vision_tower" not in name}
    shards: dict[int, list[str]] = {}
    for name in names:
        layer = name.partition("language_model.layers.")[2].partition(".")[0]
        shards.setdefault(int(layer) // LAYERS_A_SHARD if layer else -1, []).append(name)
    weight_map, largest = {}, 0
    for number, members in enumerate(shards.values(), start=1):
        file = f"pytorch_model-{number:05}-of-{len(shards):05}.bin"
        tensors = {
            OriginalLayout.rename_back(name): torch.empty(names[name], dtype=torch.bfloat16).normal_(std=0.02)
            for name in members
        }
        torch.save(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
        largest = max(largest, (folder / file).stat().st_size)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    flat = OriginalLayout.their_config(config, VOCABULARY, str(tower), pads=True) | {"torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(flat, default=str))
    return largest


def main() -> None:
    """Make a checkpoint, convert it, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=9, help="number of layers (default: %(default)s)")
    layers = parser.parse_args().layers
    with TemporaryDirectory() as place:
        source = Path(place) / "source"
        source.mkdir()
        largest = write_checkpoint(source, layers)
        size = sum(file.stat().st_size for file in source.glob("*.bin"))
        command = [sys.executable, "-c", PROGRAM, str(source), str(Path(place) / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        parameters, before, peak = map(int, done.stdout.split())
    print(
        f"converting parameters={parameters / 1e9:.2f}e9 checkpoint_gb={size / 1e9:.2f} "
        f"largest_shard_gb={largest / 1e9:.2f} start_gb={before / 1e9:.2f} peak_gb={peak / 1e9:.2f}"
    )


if __name__ == "__main__":
    main()
