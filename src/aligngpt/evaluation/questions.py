"""The questions of an evaluation and their images, from JSON or from Parquet or tar files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from aligngpt.data.images.keys import image_key
from aligngpt.data.images.opening import open_image, resolve_image
from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.index import PreparedSamples
from aligngpt.data.samples.preparing import prepare_samples, state_of_archive
from aligngpt.data.samples.reading import load_samples
from aligngpt.data.samples.sequence import picture_of, stored_picture
from aligngpt.data.sources.finding import archive_at, root_of_data
from aligngpt.data.sources.remote import located


@dataclass(frozen=True)
class Questions:
    """Questions with answers, and access to their images.

    Attributes:
        samples: the usable questions. Two have an image of the same name only if it is the same image.
        root: folder that image paths are relative to.
        state: hash of the archive's state; None for JSON.
        stored: the samples of the archive as prepared; None for JSON.
        place_of: by the name of an image, the index in `stored` of a sample that has it, and its number there.
    """

    samples: list[Sample]
    root: Path
    state: str | None = None
    stored: PreparedSamples | None = None
    place_of: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def has_stored_images(self) -> bool:
        """Whether images are stored in the archive itself, so that their names are not of files."""
        stored = self.stored
        return stored is not None and any(
            stored_picture(stored, *place) is not None for place in self.place_of.values()
        )

    def open_image(self, name: str) -> Image.Image:
        """Decode the image with this name.

        Raises:
            ImageError: it is unusable.
        """
        if self.stored is not None and (place := self.place_of.get(name)) is not None:
            return picture_of(self.stored, *place, self.root).open()
        return open_image(resolve_image(name, self.root))


def read_questions(path: Path, *, image_root: Path | None, rejects: Rejects) -> Questions:
    """Read all usable questions; the others go to `rejects`.

    Args:
        path: JSON array or JSON lines; or Parquet or tar files, a folder of them or a pattern.
        image_root: folder that image paths are relative to; the source's own when None.
        rejects: receives the unusable records.

    Raises:
        SourceError: the source cannot be read, or contains no usable question.
        TooManyRejects: too large a share of the records is unusable.
        CacheError: the cache of the archive's samples cannot be written.
    """
    path = located(path)
    root = root_of_data(path, image_root)
    if (archive := archive_at(path)) is None:
        return Questions(load_samples(path, image_root=root, rejects=rejects), root)
    stored = prepare_samples(path, image_root=image_root, rejects=rejects)
    samples, places = _named_by_content(stored, stored.columns.keys.tolist())
    return Questions(samples, root, state_of_archive(archive), stored, places)


def _named_by_content(stored: Sequence[Sample], keys: Sequence[int]) -> tuple[list[Sample], dict[str, tuple[int, int]]]:
    """The samples with one name for each image, and where it is: the index of a sample, and its number there.

    Each question of a Parquet file embeds a copy of its image under a name of its own; equal images get the name of the
    first copy, so that shuffling and intervals by image treat them as one. Different images of one name, as in
    concatenated tar files, get different names.

    Args:
        stored: samples of an archive.
        keys: for each, a hash that is equal for equal images; used for samples with one image.
    """
    names: dict[int, str] = {}
    owners: dict[str, int] = {}
    places: dict[str, tuple[int, int]] = {}
    samples = []
    for place, (sample, key) in enumerate(zip(stored, keys, strict=True)):
        # Several images are files, which their names identify.
        keyed = [key] if len(sample.images) == 1 else [image_key([name]) for name in sample.images]
        for number, (own, name) in enumerate(zip(keyed, sample.images, strict=True)):
            if own not in names:
                while owners.setdefault(name, own) != own:
                    name = f"{name}#{place}"
                names[own] = name
                places[name] = place, number
        samples.append(replace(sample, images=tuple(names[own] for own in keyed)))
    return samples, places
