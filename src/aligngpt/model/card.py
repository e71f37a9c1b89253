"""The model card of a folder: what the model is, what it was made of, and how to load it."""

from pathlib import Path

from aligngpt.model.configuration import AlignGPTConfig


def write_card(folder: Path, name: str, config: AlignGPTConfig, made_from: str) -> None:
    """Write `README.md` into a model folder.

    Args:
        folder: of the model.
        name: what the model is called.
        config: its configuration.
        made_from: goes on "An AlignGPT with so many levels, …", a sentence or more with their full stops.
    """
    (folder / "README.md").write_text(
        "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags: [aligngpt, llava]\n---\n\n"
        f"# {name}\n\n"
        f"An AlignGPT (arXiv 2405.14129) with {config.num_alignment_levels} alignment levels, {made_from} Its licences "
        "are those of what it was made of.\n\n"
        "```python\nimport aligngpt\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n```\n",
        encoding="utf-8",
    )
