"""Distinguishes names of local files and folders from names on the Hugging Face hub, and from addresses."""

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from aligngpt.errors import AlignGPTError
from aligngpt.progress import say

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# At least two letters, so that a Windows drive letter does not match; `Path` turns `//` into `/`.
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/{1,3}(?P<rest>.*)", re.DOTALL)
_NEAR_NAMES = 3
_SECONDS_TO_ANSWER = 10.0
_ADVICE = "Give a model folder (with config.json) or a hub name, owner/name"


def written_locally(path: str | Path) -> str | None:
    """Why nothing can be written to a path: it is an address, such as `s3://bucket/folder`; None if it is not.

    Without this check, a local folder named `s3:` would be made.
    """
    found = _ADDRESS.fullmatch(str(path))
    if found is None or Path(found["scheme"] + ":").is_dir():
        return None
    # A signature or a password in the rest must not be shown.
    return (
        f"an address such as {found['scheme']}://… cannot be written to; give a folder or file on this machine, and "
        "upload it when the command has finished"
    )


def output_trouble(path: str | Path) -> str | None:
    """Why a path cannot be written to: it is an address, or begins with `~`; None if it can."""
    if (trouble := written_locally(path)) is not None:
        return trouble
    if (whole := os.path.expanduser(path)) != str(path):
        return f"the ~ in {path} is not replaced, so a folder of that name would be made; write the whole path, {whole}"
    return None


def local_or_hub(
    name: str | Path,
    what: str,
    error: type[AlignGPTError],
    *,
    whose: str = "",
    advice: str = _ADVICE,
    with_owner: bool = False,
) -> str:
    """Return `name` unchanged if it exists locally or on the hub; call this before loading anything.

    A name is a path if it begins with `.`, `~` or `/`, has more than one slash or a backslash, if its first part is a
    local folder, or if it looks like a mistyped local folder. Any other name of the form `owner/name` (or `name`) is
    taken for a hub name. Unless it is in the hub's local cache, the hub is asked for it once: loading libraries ask
    several times, for more than a minute if there is no network.

    Args:
        name: path, or `owner/name`.
        what: what the name stands for, for the message, as in `the model`.
        error: exception class to raise.
        whose: what it belongs to, for the message, as in `of the adapter runs/lora`.
        advice: end of the message, what to do.
        with_owner: whether a hub name must have the form `owner/name`, so that any other name is a path.

    Raises:
        AlignGPTError: of the class `error`: the name is a path that does not exist, a run folder instead of its
            `model`, or unknown to the hub, or the hub cannot be reached. Suggests similar names.
    """
    text = str(name)
    path = Path(text)
    shown = " ".join(filter(None, (what, text or repr(text), whose)))
    if text and path.exists():
        if model := _model_of_run(path):
            raise error(f"{shown} cannot be loaded: it is a run folder; did you mean {model}?")
        return text
    near = near_paths(path)
    slip = [one for one in near if "/" in text and len(Path(one).parts) == len(path.parts)]
    said = f"; did you mean {' or '.join(slip or near)}?" if near else "."
    is_name = _HUB_NAME.fullmatch(text) and not slip and ("/" not in text or not Path(text.split("/")[0]).exists())
    if not is_name:
        raise error(f"{shown} cannot be loaded: no such file or folder{said} {advice}")
    if with_owner and "/" not in text:
        raise error(f"{shown} cannot be loaded: there is no such folder here{said} {advice}")
    if why := _why_not_on_hub(text):
        raise error(f"{shown} cannot be loaded: there is no such folder here, and {why}{said} {advice}")
    return text


def _model_of_run(path: Path) -> Path | None:
    """The model in a run folder of `aligngpt train`; None if `path` is not such a folder."""
    configs = ("config.json", "adapter_config.json")
    if not path.is_dir() or any((path / name).exists() for name in configs):
        return None
    model = path / "model"
    return model if any((model / name).exists() for name in configs) else None


def _why_not_on_hub(name: str) -> str | None:
    """Why a model cannot be downloaded from the hub, by one short request; None if it can, or is in the local cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    if (Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "snapshots").is_dir():
        return None
    try:
        found = HfApi().model_info(name, timeout=_SECONDS_TO_ANSWER, files_metadata=True)
    except RepositoryNotFoundError:
        return "the Hugging Face hub has no model of this name (for a private one, log in with `hf auth login`)"
    except HFValidationError:
        return "it is not a valid name on the Hugging Face hub"
    except OfflineModeIsEnabled:
        return "it is not in the local cache of the Hugging Face hub, which is not asked because HF_HUB_OFFLINE is set"
    except HfHubHTTPError:
        # The hub answers, but not as expected: a mirror may lack this request and still have the model.
        return None
    except Exception as error:
        # The HTTP library's errors for a lost network, a proxy or a certificate have no common base with others.
        return f"the Hugging Face hub cannot be asked for it ({error})"
    # Its download shows no progress of its own.
    say(f"{name} is not in the local cache of the Hugging Face hub: loading it downloads it{_size_of(found)}")
    return None


def _size_of(model: "ModelInfo") -> str:
    """The size of the weights that are downloaded, for a message; empty if the hub does not tell it."""
    for suffix in (".safetensors", ".bin"):
        sizes = [file.size or 0 for file in model.siblings or () if file.rfilename.endswith(suffix)]
        if sum(sizes):
            return f" ({sum(sizes) / 1e9:.1f} GB of weights)"
    return ""


def near_paths(path: Path) -> list[str]:
    """Existing paths with a similar name in place of the first missing part of `path`, and the rest if that exists."""
    if path.parts[:1] == ("~",):
        return [str(path.expanduser())] if path.expanduser().exists() else []
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    try:
        there = {entry.name.casefold(): entry.name for entry in os.scandir(missing.parent)}
    except OSError:
        return []
    near = difflib.get_close_matches(missing.name.casefold(), list(there), n=_NEAR_NAMES)
    rest = path.parts[len(missing.parts) :]
    found = [missing.with_name(there[name]) for name in near]
    return [str(one.joinpath(*rest) if one.joinpath(*rest).exists() else one) for one in found]
