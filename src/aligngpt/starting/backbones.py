"""Where the configuration of a backbone comes from, without asking the network."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from aligngpt.hub_names import local_or_hub, near_paths
from aligngpt.model.backbones import load_config
from aligngpt.starting.known_backbones import LANGUAGE_MODELS, VISION_TOWERS, Known, near_name, write_stand_in
from aligngpt.starting.output import StartError

Part = Literal["vision tower", "language model"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Backbone(NamedTuple):
    """A backbone as named in the recipe, and what stands for it in the estimates.

    Attributes:
        name: folder or hub name.
        folder: with its configuration; None if the sizes of `like` are used.
        like: the listed backbone whose sizes are used; None if it has a folder.
    """

    name: str
    folder: Path | None
    like: str | None

    def source(self, scratch: Path) -> Path:
        """A local folder with the configuration; a stand-in is written below `scratch`."""
        if self.folder is not None:
            return self.folder
        assert self.like is not None
        place = scratch / self.like.replace("/", "--")
        return place if place.exists() else write_stand_in(place, self.like)


class UnknownSizes(StartError):
    """A hub name is neither in the local cache nor listed."""


def find_backbone(name: str, part: Part, like: str | None = None) -> Backbone:
    """A backbone by its folder or hub name.

    Args:
        name: folder or hub name.
        part: what it is for.
        like: a listed backbone of about its size or larger, for a hub name whose sizes are unknown.

    Raises:
        UnknownSizes: the sizes of a hub name are not known here, and `like` is not given.
        StartError: there is no such folder, or `like` is not listed. Suggests similar names.
        BackboneError: a folder has no configuration that transformers reads.
    """
    flag = part.replace(" ", "-")
    known, others = _listed(part), _listed("language model" if part == "vision tower" else "vision tower")
    name = name.strip()
    path = Path(name).expanduser()
    if name and path.exists():
        local_or_hub(path, f"the {part}", StartError)
        load_config(path, part)
        return Backbone(str(path), path, None)
    if not _HUB_NAME.fullmatch(name) or Path(name.partition("/")[0]).is_dir():
        near = near_paths(path) if name else []
        if meant := near_name(name, known):
            near.append(meant)
        said = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"give a folder or a hub name, such as {next(iter(known))}"
        )
        raise StartError(f"the {part} {name!r} is not a folder, nor a hub name owner/name; {said}")
    if (cached := _cached(name)) is not None:
        return Backbone(name, cached, None)
    if name in known:
        return Backbone(name, None, name)
    if name in others:
        raise StartError(f"{name} is not a {part}; give one, such as {next(iter(known))}")
    if like is not None:
        check_like(like, part)
        return Backbone(name, None, like)
    meant = near_name(name, known)
    raise UnknownSizes(
        f"the sizes of the {part} {name} are not known without the network"
        + (f"; did you mean {meant}?" if meant else "")
        + f" If the name is right, name a listed {part} of its size or larger with --{flag}-like: {', '.join(known)}"
    )


def check_like(like: str | None, part: Part) -> None:
    """Check the name of a listed backbone whose sizes are to be used.

    Raises:
        StartError: it is not listed. Suggests a similar name.
    """
    known = _listed(part)
    if like is None or like in known:
        return
    meant = near_name(like, known)
    said = f"did you mean {meant}?" if meant else f"give one of {', '.join(known)}"
    raise StartError(f"--{part.replace(' ', '-')}-like {like!r} is not a listed {part}; {said}")


def like_unused(found: Backbone, part: Part, like: str | None) -> list[str]:
    """A note if a listed backbone was named and the sizes of the backbone itself are known."""
    if like is None or found.like == like:
        return []
    return [f"--{part.replace(' ', '-')}-like {like} is not used, because the sizes of {found.name} are known here"]


def _listed(part: Part) -> Mapping[str, Known]:
    return VISION_TOWERS if part == "vision tower" else LANGUAGE_MODELS


def _cached(name: str) -> Path | None:
    """The newest snapshot of a hub name in the local cache that has what a plan reads; None if there is none."""
    snapshots = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "snapshots"
    if not snapshots.is_dir():
        return None
    needed = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
    found = [
        one for one in snapshots.iterdir() if (one / "config.json").exists() and any((one / n).exists() for n in needed)
    ]
    return max(found, key=lambda one: one.stat().st_mtime, default=None)
