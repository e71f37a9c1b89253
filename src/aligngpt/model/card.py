"""The model card of a folder: what the model is, what it was built from, and how to load it."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from aligngpt.files import atomic_write
from aligngpt.model.configuration import AlignGPTConfig

CARD_FILE = "README.md"
PAPER = "2405.14129"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)

_USE = """\
## How to use it

Run this inside the folder; elsewhere, replace `.` by its path or its name on the hub.

```python
import aligngpt  # registers the model with transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(".")
processor = AutoProcessor.from_pretrained(".")
image = {"type": "image", "image": Image.open("photo.jpg")}
question = {"type": "text", "text": "What is in the picture?"}
inputs = processor.apply_chat_template(
    [{"role": "user", "content": [image, question]}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=128)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

```bash
aligngpt ask . photo.jpg "What is in the picture?" --show-alignment
```
"""


def card_text(
    name: str,
    introduction: str,
    *,
    base_models: Sequence[str] = (),
    sections: Sequence[str] = (),
) -> str:
    """A model card: front matter for the Hugging Face hub, an introduction, how to use the model, and more sections.

    The front matter names no licence: for a model derived from others and from data, that is for people to decide.

    Args:
        name: name of the model.
        introduction: one or more sentences in Markdown.
        base_models: hub names of the models it was built from.
        sections: Markdown sections, each with its heading.
    """
    facts: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if base_models:
        facts["base_model"] = list(base_models)
    facts["tags"] = ["aligngpt", "llava", f"arxiv:{PAPER}"]
    front = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    return "\n\n".join([f"---\n{front}---", f"# {name}", introduction, _USE.strip(), *map(str.strip, sections)]) + "\n"


def write_card(folder: Path, name: str, config: AlignGPTConfig, made_from: str) -> None:
    """Write the card of a model folder that was made from other models.

    Args:
        folder: the model folder.
        name: name of the model.
        config: its configuration.
        made_from: continues "An AlignGPT with N alignment levels, …": one or more sentences with full stops.
    """
    introduction = (
        f"An AlignGPT ([arXiv {PAPER}](https://arxiv.org/abs/{PAPER})) with {config.num_alignment_levels} alignment "
        f"levels, {made_from} It is subject to the licences of the models it was made from."
    )
    with atomic_write(folder / CARD_FILE) as file:
        file.write(card_text(name, introduction))


def is_hub_name(name: str) -> bool:
    """Whether this looks like `owner/name` on the Hugging Face hub and no file or folder has that name."""
    return _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def licence_of(backbone: str) -> str | None:
    """The licence stated in a backbone folder's card, configuration or manifest; None if there is none."""
    folder = Path(backbone)
    if not folder.is_dir():
        return None
    card = _FRONT_MATTER.match(_text(folder / CARD_FILE))
    for facts, name in (
        (_mapping(yaml.safe_load, card[1] if card else ""), "license"),
        (_mapping(json.loads, _text(folder / "config.json")), "license"),
        # Written by the quickstart for its backbones.
        (_mapping(json.loads, _text(folder / "manifest.json")).get("made_from"), "licence"),
    ):
        if isinstance(facts, dict) and isinstance(facts.get(name), str):
            return str(facts[name])
    return None


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all but its first column right-aligned; the text of the rows is escaped."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *([escaped(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Third-party text on one line, with Markdown and HTML escaped."""
    return re.sub(r"([\\`*_\[\]<>|&])", r"\\\1", " ".join(text.split()))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _mapping(parse: Callable[[str], Any], text: str) -> dict[str, Any]:
    """The mapping in a YAML or JSON text; empty if it cannot be parsed or is not a mapping."""
    try:
        content = parse(text)
    except (ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
