"""Whether samples have more tokens than a stage takes, so that training drops the end of them."""

import random
from collections.abc import Sequence
from sys import maxsize

from aligngpt.data.batches.examples import ExampleError, tokenize
from aligngpt.data.records.sample import Sample
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.model.templates import NAMED_TEMPLATES
from aligngpt.training.recipe import Recipe, StageName

LOOKED_AT = 200
"""Number of samples drawn to count their tokens."""


def cut_off_warning(
    samples: Sequence[Sample], recipe: Recipe, name: StageName, processor: AlignGPTProcessor, longest: int
) -> str | None:
    """A sentence if some of the samples drawn have more than `longest` tokens; None if none has."""
    stage = recipe.stage(name)
    assert stage is not None
    template = NAMED_TEMPLATES[stage.chat_template] if stage.chat_template else None
    places = random.Random(recipe.seed).sample(range(len(samples)), min(LOOKED_AT, len(samples)))
    lengths = [_tokens(samples[place], processor, template) for place in places]
    long = [length for length in lengths if length > longest]
    if not long:
        return None
    advice = f"raise {name}.max_length" if longest == stage.max_length else "the language model has no room for more"
    return (
        f"{len(long)} of {len(lengths)} samples looked at have more than {longest:,} tokens (up to {max(long):,}), so "
        f"they lose turns or the end of an answer; {advice}"
    )


def _tokens(sample: Sample, processor: AlignGPTProcessor, template: str | None) -> int:
    """The number of tokens of a whole sample; 0 if it cannot be trained on."""
    try:
        return len(tokenize(sample.messages(), processor, chat_template=template, max_length=maxsize)[0])
    except ExampleError:
        return 0
