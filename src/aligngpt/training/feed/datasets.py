"""The data of a stage: its training samples, checked against the recipe, and its validation samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from aligngpt.data.batches.budget import TokenBudget
from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.dataset import ConversationDataset
from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejects, TooManyRejects
from aligngpt.data.samples.columns import columns_of
from aligngpt.data.samples.mixtures import Chosen, Mixture, held_out
from aligngpt.data.samples.preparing import prepare_samples
from aligngpt.data.sources.finding import archive_at, name_of_data, root_of_data
from aligngpt.device import resolve_device
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.model.templates import NAMED_TEMPLATES
from aligngpt.progress import say, warn
from aligngpt.training.distributed.processes import is_main_process, main_process_first
from aligngpt.training.feed.cut_off import cut_off_warning
from aligngpt.training.feed.level_checks import check_levels, levels_without_samples, untrained_top_level
from aligngpt.training.feed.skipped import skipped_line
from aligngpt.training.feed.source_checks import needs_level
from aligngpt.training.loop.validation import Validation
from aligngpt.training.recipe import Recipe, RecipeError, SourceRecipe, StageName, StageRecipe


def training_samples(recipe: Recipe, name: StageName, rejects: Rejects) -> Sequence[Sample]:
    """The samples that a stage trains on.

    Raises:
        SourceError, TooManyRejects, CacheError: see `open_sources`.
        RecipeError: a level is above the model's number of levels, or no sample has the highest level; validation
            gets all samples or none, or `group_by_length` or `group_by_modality` is set for images in Parquet
            row groups.
    """
    stage = _stage(recipe, name)
    samples = _with_levels_as_needed(recipe, name, stage.sources, rejects, f"{name}.data", stage.min_ratings)
    if stage.grouping is not None and (columns_of(samples).blocks >= 0).any():
        raise RecipeError(
            f"{name}.{stage.grouping} would read a whole Parquet row group for each row; leave it out, or "
            "keep the images in tar files or as single files"
        )
    if stage.validation is not None and stage.validation.share is not None:
        samples = training_part(samples, stage.validation.share)
    if trouble := untrained_top_level(levels_without_samples(samples, recipe, name), recipe, name):
        raise RecipeError(trouble)
    return samples


def prepare_data(recipe: Recipe, name: StageName) -> int:
    """Read and check the data of a stage, and keep the result in the cache, from where training takes it.

    Returns:
        The number of training samples.

    Raises:
        SourceError, TooManyRejects, CacheError, RecipeError: see `training_samples`.
    """
    stage = _stage(recipe, name)
    samples = training_samples(recipe, name, Rejects(None, max_share=stage.max_reject_share))
    if stage.validation is not None and stage.validation.share is None:
        _validation_samples(recipe, name, Rejects(None, max_share=stage.max_reject_share))
    return len(samples)


def open_sources(
    sources: Sequence[SourceRecipe],
    rejects: Rejects,
    *,
    require_level: bool = False,
    check_images: bool = True,
    min_ratings: Mapping[str, float] | None = None,
) -> Sequence[Sample]:
    """The samples of all sources, one source after the other. All processes that train together must call it.

    Of a source without lowest ratings of its own, answers rated lower than `min_ratings` are not learned from; its
    records without these ratings are kept as they are.

    Raises:
        SourceError, TooManyRejects, CacheError: see `prepare_samples`; the share of rejects is over all sources.
    """
    # Sources that are not prepared yet are prepared by one process, while the others wait.
    with main_process_first(cpu=resolve_device().type == "cpu"):
        found = [
            prepare_samples(
                Path(source.data),
                image_root=Path(source.image_root) if source.image_root else None,
                require_level=require_level,
                rejects=rejects,
                check_images=check_images,
                among_others=len(sources) > 1,
                min_ratings=min_ratings if source.min_ratings is None else source.min_ratings,
                ratings_needed=source.min_ratings is not None,
                levels=Path(source.levels) if source.levels else None,
            )
            for source in sources
        ]
    if len(found) == 1:
        return found[0]
    mixture = Mixture(found, _roots(sources))
    rejects.check(len(mixture) + rejects.count)
    return mixture


def _with_levels_as_needed(
    recipe: Recipe,
    name: StageName,
    sources: Sequence[SourceRecipe],
    rejects: Rejects,
    field: str,
    min_ratings: Mapping[str, float] | None = None,
) -> Sequence[Sample]:
    """The samples of sources that the recipe names in `field`; each with an image has a level if the stage needs it.

    Raises:
        SourceError, TooManyRejects, CacheError: see `open_sources`.
        RecipeError: a level is above the model's number of levels.
    """
    try:
        samples = open_sources(sources, rejects, require_level=needs_level(recipe, name), min_ratings=min_ratings)
    except TooManyRejects as error:
        if 2 * rejects.by_reason["no_level"] <= rejects.count:
            raise
        # The general message would send the reader to the image root.
        place = f"; {rejects.path} lists them" if rejects.path is not None else ""
        raise TooManyRejects(
            f"{rejects.by_reason['no_level']} records of {field} have an image but no level in "
            f"{_places_of_levels(sources)}{place}. Score all records with `aligngpt score`, without --limit; then "
            + _how_to_add_levels(sources, field)
        ) from error
    check_levels(samples, recipe, name, field)
    if rejects.count and is_main_process():
        lists = "`aligngpt check`" if rejects.path is None else str(rejects.path)
        line = f"{field}: {skipped_line(rejects.by_reason, lists)}"
        say(line)
    return samples


def _places_of_levels(sources: Sequence[SourceRecipe]) -> str:
    return " or ".join(dict.fromkeys(source.levels or "the field `similarity`" for source in sources))


def _how_to_add_levels(sources: Sequence[SourceRecipe], field: str) -> str:
    """What to do with the scores of the sources: only those that hold no images can be written with levels."""
    in_tables = {source.levels is not None or archive_at(Path(source.data)) is not None for source in sources}
    ways = []
    if False in in_tables:
        ways.append(f"add levels with `aligngpt levels SCORES --source … --out …`, and name that file in {field}")
    if True in in_tables:
        ways.append(
            "write a table of levels with `aligngpt levels SCORES --out levels.parquet`, and name it in "
            f"{field} as the `levels` of its source"
        )
    return "; for Parquet and tar files, ".join(ways)


def training_part(samples: Sequence[Sample], share: float) -> Chosen:
    """The samples that are not held out; its `others()` are the held-out ones.

    Raises:
        RecipeError: all samples are held out, or none.
    """
    is_held_out = held_out(samples, share)
    if is_held_out.all() or not is_held_out.any():
        which = "all" if is_held_out.all() else "none"
        raise RecipeError(
            f"validation.share {share} holds out {which} of {len(samples)} samples: there are too few distinct images; "
            "choose another share, or set validation.data"
        )
    return Chosen(samples, np.flatnonzero(~is_held_out))


def training_data(
    samples: Sequence[Sample],
    recipe: Recipe,
    name: StageName,
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
) -> ConversationDataset:
    """The samples of a stage as a data set for its model; prints a warning if some are too long for it.

    Raises:
        RecipeError: the tokens of one image already fill a sample.
    """
    stage = _stage(recipe, name)
    longest = usable_length(model, stage)
    if is_main_process() and (warning := cut_off_warning(samples, recipe, name, processor, longest)):
        warn(f"{name}: {warning}")
    return ConversationDataset(
        samples,
        processor,
        _roots(stage.sources),
        chat_template=NAMED_TEMPLATES[stage.chat_template] if stage.chat_template else None,
        max_length=longest,
        questions_per_prefix=stage.questions_per_prefix,
        pad_images=stage.pad_images,
        # A given level would bypass the gate when it trains, so the stage decides, not the records.
        with_levels=needs_level(recipe, name),
    )


def validation_of(
    recipe: Recipe,
    name: StageName,
    training: ConversationDataset,
    collator: Collator,
    budget: TokenBudget | None = None,
) -> Validation | None:
    """The stage's validation data, read like its training data; unusable samples are skipped.

    Raises:
        SourceError, TooManyRejects, CacheError: see `open_sources`.
        RecipeError: a level is above the model's number of levels.
    """
    stage = _stage(recipe, name)
    if stage.validation is None:
        return None
    rejects = Rejects(None, max_share=stage.max_reject_share)
    most = stage.validation.samples
    samples: Sequence[Sample]
    if stage.validation.share is not None:
        assert isinstance(training.samples, Chosen)
        sources = stage.sources
        samples = _evenly(training.samples.others(), most)
    else:
        sources, samples = _validation_samples(recipe, name, rejects)
        first = Chosen(samples, np.arange(min(most, len(samples))))
        samples = first if isinstance(stage.validation.data, str) else _evenly(samples, most)
    dataset = ConversationDataset(
        samples,
        training.processor,
        _roots(sources),
        chat_template=training.chat_template,
        max_length=training.max_length,
        questions_per_prefix=stage.questions_per_prefix,
        pad_images=stage.pad_images,
        with_levels=training.with_levels,
    )
    return Validation(
        dataset,
        collator,
        stage.micro_batch_size or stage.batch_size,
        _names(sources),
        max_reject_share=stage.max_reject_share,
        budget=budget,
    )


def _validation_samples(
    recipe: Recipe, name: StageName, rejects: Rejects
) -> tuple[list[SourceRecipe], Sequence[Sample]]:
    """The sources of a stage's validation data, and their samples."""
    stage = _stage(recipe, name)
    assert stage.validation is not None
    sources = stage.validation.sources(_validation_root(stage))
    return sources, _with_levels_as_needed(recipe, name, sources, rejects, f"{name}.validation.data")


def _validation_root(stage: StageRecipe) -> str | None:
    """The image root of the validation data: for a single file, that of the training data."""
    assert stage.validation is not None
    if stage.image_root is None and isinstance(stage.data, str) and isinstance(stage.validation.data, str):
        return str(root_of_data(Path(stage.data), None))
    return stage.image_root


def _evenly(samples: Sequence[Sample], most: int) -> Sequence[Sample]:
    """At most `most` of the samples, evenly spaced."""
    count = min(most, len(samples))
    return Chosen(samples, np.arange(count) * len(samples) // count)


def _roots(sources: Sequence[SourceRecipe]) -> list[Path]:
    return [
        root_of_data(Path(source.data), Path(source.image_root) if source.image_root else None) for source in sources
    ]


def _names(sources: Sequence[SourceRecipe]) -> tuple[str, ...]:
    """Names of the sources: their file names without extension, numbered if they would be equal."""
    names: list[str] = []
    for source in sources:
        stem = name_of_data(Path(source.data))
        same = sum(name_of_data(Path(other.data)) == stem for other in sources[: len(names)])
        names.append(f"{stem}_{same + 1}" if same else stem)
    return tuple(names)


def _stage(recipe: Recipe, name: StageName) -> StageRecipe:
    stage = recipe.stage(name)
    assert stage is not None
    return stage


def usable_length(model: AlignGPTForConditionalGeneration, stage: StageRecipe) -> int:
    """Maximum tokens per sample: the stage's limit, or the language model's context length if that is smaller.

    Raises:
        RecipeError: an image alone takes that many tokens.
    """
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or stage.max_length
    length = min(stage.max_length, int(context))
    if model.config.image_seq_length >= length:
        raise RecipeError(
            f"an image takes {model.config.image_seq_length} tokens, but a sample may have only {length} (max_length "
            f"{stage.max_length}, context length of the language model {config.model_type} {context}); raise "
            "max_length, or use a vision tower with fewer patches or a smaller model.image_size"
        )
    return length
