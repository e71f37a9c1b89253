"""What `aligngpt init` has to know about a file of data: its kind, size, images, levels and longest texts."""

import heapq
import shlex
from collections import defaultdict
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from aligngpt.checking.files import check_files
from aligngpt.checking.result import FileCheck
from aligngpt.data.images.opening import ImageError, resolve_image
from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import mostly_questions, readable_samples
from aligngpt.data.sources.finding import archive_at, root_of_data
from aligngpt.data.sources.remote import RemotePath, located
from aligngpt.hub_names import near_paths
from aligngpt.starting.output import StartError
from aligngpt.training.feed.source_checks import is_there

Kind = Literal["captions", "questions"]

FIRST = 100
"""Number of leading samples with an image by which captions and questions are told apart, as in training."""

LONGEST = 20
"""Number of the longest samples with each number of images, in characters and in bytes, whose tokens are counted."""

NAMES_TRIED, FOLDERS_TRIED = 20, 50
"""Images and subfolders that are tried to find the image root."""


class DataLook(NamedTuple):
    """A file of data.

    Attributes:
        path: as given.
        kind: of its samples: captions for stage 1, questions with answers for stage 2.
        format: for people, such as JSON.
        is_archive: whether it is Parquet or tar files, whose images may be inside.
        image_root: folder that its image paths are relative to; None for an archive that holds its images.
        check: the results of `aligngpt check`.
        longest: see `longest_samples`.
    """

    path: Path
    kind: Kind
    format: str
    is_archive: bool
    image_root: Path | None
    check: FileCheck
    longest: tuple[Sample, ...]

    @property
    def num_levels(self) -> int | None:
        """The highest level in the data; None if no sample has a level."""
        return max(self.check.levels, default=None)

    @property
    def characters(self) -> int:
        """Length of the longest sample's texts."""
        return _characters(self.longest[0])

    def text(self) -> str:
        """The file in one line."""
        check = self.check
        images = f"{check.images - check.broken_images:,} of {check.images:,} images found"
        root = f" below {self.image_root}" if self.image_root is not None and check.images else ""
        levels = f"levels 1 to {self.num_levels}" if check.levels else "no levels"
        rejected = f", {check.rejected:,} of them unusable" if check.rejected else ""
        return (
            f"{self.path}: {self.kind}, {self.format}; {check.records:,} records{rejected}; {images}{root}; "
            + (f"{levels}; " if self.kind == "captions" else "")
            + f"longest text {self.characters:,} characters"
        )


def look_at(path: Path, image_root: Path | None = None) -> DataLook:
    """Look at a file of data; all its records are read, and the header of each image.

    Args:
        path: a file or folder that training reads.
        image_root: folder that image paths are relative to; looked for near the file when None.

    Raises:
        StartError: the file does not exist or cannot be used, none of its images is found, or too many records are
            unusable for training to go on.
        SourceError: the image root is not a folder.
    """
    path = located(path)
    if not is_there(path):
        near = [] if isinstance(path, RemotePath) else near_paths(path)
        said = f"did you mean {' or '.join(near)}?" if near else "give a file of captions or questions"
        raise StartError(f"the data {path} does not exist; {said}")
    archive = archive_at(path)
    root = image_root if image_root is not None else _guessed_root(path)
    [check] = check_files([path], image_root=root)
    if check.error is not None and not check.problems:
        raise StartError(f"the data {path} cannot be used: {check.error}")
    if 0 < check.images == check.broken_images:
        where = root_of_data(path, root)
        raise StartError(
            f"none of the {check.images:,} images of {path} is found below {where}; give their folder with --image-root"
        )
    allowed = Rejects(None).max_share
    if check.error is not None or check.rejected > allowed * check.records:
        raise StartError(
            f"{check.rejected:,} of the {check.records:,} records of {path} cannot be used, more than the "
            f"{allowed:.0%} that training accepts; `{_check_command(path, image_root)}` lists them"
        )
    first = list(islice((sample for sample in readable_samples(path) if sample.images), FIRST))
    longest = longest_samples(readable_samples(path))
    return DataLook(
        path=path,
        kind="questions" if not first or mostly_questions(first) else "captions",
        format=_format(path, None if archive is None else archive.kind),
        is_archive=archive is not None,
        image_root=None if archive is not None and image_root is None else root_of_data(path, root),
        check=check,
        longest=longest,
    )


def longest_samples(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """The longest samples with each number of images in characters, and those in bytes of UTF-8; by characters.

    An image takes a fixed number of tokens, up to several hundred, which depends on the vision tower: samples with
    different numbers of images cannot be compared by their texts. A character of another script may take several
    tokens, as it takes several bytes.
    """
    kept: dict[tuple[int, int], list[tuple[int, int, Sample]]] = defaultdict(list)
    for place, sample in enumerate(samples):
        for measure, length in enumerate((_characters(sample), _bytes(sample))):
            # The place keeps two samples of the same length from being compared themselves.
            one, same = (length, -place, sample), kept[measure, len(sample.images)]
            if len(same) < LONGEST:
                heapq.heappush(same, one)
            else:
                heapq.heappushpop(same, one)
    found = {-place: sample for same in kept.values() for _, place, sample in same}
    return tuple(sorted((found[place] for place in sorted(found)), key=_characters, reverse=True))


def _check_command(path: Path, image_root: Path | None) -> str:
    root = [] if image_root is None else ["--image-root", str(image_root)]
    return shlex.join(["aligngpt", "check", str(path), *root])


def _characters(sample: Sample) -> int:
    return sum(map(len, _texts(sample)))


def _bytes(sample: Sample) -> int:
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in _texts(sample))


def _texts(sample: Sample) -> list[str]:
    return [sample.system or "", *(turn.text for turn in sample.turns)]


def _format(path: Path, archive: str | None) -> str:
    if archive is not None:
        return {"parquet": "Parquet", "webdataset": "tar files"}.get(archive, archive)
    if located(path).is_dir():
        return "a folder of images with texts"
    return "".join(path.suffixes[-2:]).removeprefix(".").upper() or "a file"


def _guessed_root(path: Path) -> Path | None:
    """The folder near the file in which its first images exist; None for the file's own, or if none has them.

    Raises:
        StartError: several have them, such as masks with the names of their images.
    """
    place = located(path)
    if isinstance(place, RemotePath) or place.is_dir() or archive_at(path) is not None:
        return None
    names = [name for sample in islice(readable_samples(path), NAMES_TRIED) for name in sample.images][:NAMES_TRIED]
    if not names or _all_in(place.parent, names):
        return None
    below = sorted(one for one in place.parent.iterdir() if one.is_dir() and not one.name.startswith("."))
    tried = (*below[:FOLDERS_TRIED], Path("."), Path("images"), place.parent.parent)
    # The same folder may be tried under two paths.
    found = {folder.resolve(): folder for folder in reversed(tried) if _all_in(folder, names)}
    if len(found) > 1:
        folders = " and in ".join(sorted(map(str, found.values())))
        raise StartError(
            f"the images of {path} are found in {folders}; name the folder of the right ones with --image-root"
        )
    return next(iter(found.values()), None)


def _all_in(folder: Path, names: list[str]) -> bool:
    try:
        return all(resolve_image(name, folder).is_file() for name in names)
    except ImageError:
        return False
