"""The data sections of a recipe: files of samples, sources to be mixed, and validation data."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from aligngpt.hub_names import output_trouble


class RecipeSection(BaseModel):
    """Base of all sections of a recipe: unknown keys, `.nan` and `.inf` are refused, and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _on_this_machine(path: str) -> str:
    if (trouble := output_trouble(path)) is not None:
        raise ValueError(trouble)
    return path


OutputFolder = Annotated[str, AfterValidator(_on_this_machine)]
"""A folder to write, see `output_trouble`."""


class SourceRecipe(RecipeSection):
    """One of several sources of samples.

    Attributes:
        data: LLaVA-format JSON or JSON lines; or Parquet or tar files that also hold the images: a file, a folder or a
            pattern, such as `shards/{00000..00099}.tar` or `pairs/*.parquet`; or a data set
            saved by `save_to_disk`.
        image_root: folder that image paths are relative to; when None, the stage's, or else the file's own folder.
        weight: how often each sample occurs per epoch: 0.5 uses half of them, a different half in the next epoch; 2
            uses each of them twice.
        min_ratings: the lowest rating of an answer that is learned from, for data whose answers are rated as in
            FineVision: `{relevance: 3}` reads `relevance_ratings`. Answers rated lower are read as context; records
            with no other answer, or without these ratings, are rejected (`low_rating`, `no_rating`). When None, the
            stage's; `{}` for none.
        levels: the levels of Parquet or tar files, in a table that `aligngpt levels SCORES --out levels.parquet` wrote
            for them; in place of the levels in their records.
    """

    data: str
    image_root: str | None = None
    weight: float = Field(1.0, gt=0)
    min_ratings: dict[str, float] | None = None
    levels: str | None = None


def _kind_of_data(value: object) -> str:
    return "sources" if isinstance(value, list) else "file"


# A discriminated union, so that an error is about the kind of data that was meant.
DataRecipe = Annotated[
    Annotated[str, Tag("file")] | Annotated[list[SourceRecipe], Field(min_length=1), Tag("sources")],
    Discriminator(_kind_of_data),
]
"""A file of samples, or a list of sources that are mixed."""


def mixed_sources(data: str | list[SourceRecipe], image_root: str | None) -> list[SourceRecipe]:
    """The sources that `data` names; `image_root` is for those without one of their own."""
    if isinstance(data, str):
        return [SourceRecipe(data=data, image_root=image_root, weight=1.0)]
    return [one if one.image_root is not None else one.model_copy(update={"image_root": image_root}) for one in data]


class ValidationRecipe(RecipeSection):
    """Validation data, and how often to validate. Set either `data`, or a `share` of the training data.

    Attributes:
        data: as for a stage, or a list of sources (whose weights are ignored here). Image paths are relative to the
            stage's image root if a source has none of its own.
        share: fraction of the training samples that is held out; no image is on both sides.
        samples: maximum number of samples: the first of a single file, evenly spaced ones of several files or a share.
        minutes: training time between validations.
        until_accuracy: fraction of answers that must be right when the stage ends. Below it, the schedule starts
            another round of the same minutes and steps, including warm-up; None never does.
        rounds: maximum number of rounds of the schedule.
    """

    data: DataRecipe | None = None
    share: float | None = Field(None, gt=0, lt=1)
    samples: int = Field(256, ge=1)
    minutes: float = Field(10.0, gt=0)
    until_accuracy: float | None = Field(None, gt=0, le=1)
    rounds: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> "ValidationRecipe":
        if (self.data is None) == (self.share is None):
            raise ValueError("name data or share, one of the two")
        return self

    def sources(self, image_root: str | None) -> list[SourceRecipe]:
        """The sources in `data`, none if it is not set; `image_root` is for sources without one of their own."""
        return [] if self.data is None else mixed_sources(self.data, image_root)
