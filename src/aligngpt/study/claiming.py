"""An output folder belongs to one study: the same data, model and settings of both stages in all of its runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligngpt.files import atomic_write, sha256_of
from aligngpt.study.pairs import StudyError
from aligngpt.study.plan import Plan
from aligngpt.study.results import settings_in

SETTINGS_FILE = "settings.json"
CONTENTS = "contents"
MAY_CHANGE = {"output", "cells", "primary", "commit"}
"""Keys of a plan that do not change what a run gives: a grid may grow."""


def claim_folder(plan: Plan, folder: Path) -> None:
    """Write the settings of a study into its folder, or compare them with those that are there.

    Raises:
        StudyError: the folder has results or data of other settings, or a file that the plan names is missing.
    """
    settings = settings_of(plan)
    if check_settings(settings, folder):
        return
    with atomic_write(folder / SETTINGS_FILE) as file:
        json.dump(settings, file, indent=2)


def check_settings(settings: dict[str, Any], folder: Path) -> bool:
    """Compare the settings of a plan with those in a folder; returns whether there are any.

    Args:
        settings: of `settings_of`.
        folder: of a study.

    Raises:
        StudyError: see `claim_folder`.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read ({error}); choose another output, or remove {folder}") from error
    if changed := differences(found, settings):
        raise StudyError(
            f"{folder} holds a study with other settings ({', '.join(changed[:5])}); its runs are not those of this "
            "plan and could not be compared with them. Restore the plan, choose another output, or remove that folder"
        )
    return True


def check_file(plan: Plan, path: Path) -> None:
    """Compare the settings of a plan with those in a file of all results; a folder of results has none.

    The files that the plan names are not looked at: the analysis does not need them.

    Raises:
        StudyError: the results were made with other settings, or the file is not one of results.
    """
    if path.is_dir():
        return
    found = {key: value for key, value in settings_in(path).items() if key != CONTENTS}
    if changed := differences(found, _named_in(plan)):
        raise StudyError(
            f"{path} holds results of a study with other settings than those of the plan ({', '.join(changed[:5])}); "
            "give the plan that they were made with"
        )


def settings_of(plan: Plan) -> dict[str, Any]:
    """Everything in a plan that changes what a run gives, as JSON values.

    Raises:
        StudyError: a file that the plan names is missing.
    """
    return _named_in(plan) | {CONTENTS: dict(_contents(plan))}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The places at which the settings of two studies differ, such as `pretrain.learning_rate`."""
    return sorted(_differences(one, other))


def _named_in(plan: Plan) -> dict[str, Any]:
    settings: dict[str, Any] = plan.model_dump(mode="json", exclude=MAY_CHANGE)
    return settings


def _contents(plan: Plan) -> Iterator[tuple[str, str]]:
    """The SHA-256 of each file of questions, captions and weights that a plan names.

    That of the captions of pre-training is in their scores.
    """
    named: dict[str, str] = {}
    for part in ("vision_tower", "language_model"):
        weights = sorted(Path(str(plan.model.get(part, ""))).glob("*.safetensors")) if plan.model.get(part) else []
        named |= {f"{part} {number}": str(path) for number, path in enumerate(weights)}
    if plan.files is not None:
        named |= {"questions": plan.files.questions, **plan.files.tests}
        if plan.files.probe is not None:
            named["probe"] = plan.files.probe
    for name, path in named.items():
        try:
            with Path(path).open("rb") as file:
                yield f"{name} {path}", sha256_of(file)
        except OSError as error:
            raise StudyError(f"{path}, which the plan names, cannot be read: {error.strerror or error}") from error


def _differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from _differences(one.get(key), other.get(key), f"{place}.{key}" if place else str(key))
    elif one != other:
        yield place
