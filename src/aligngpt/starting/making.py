"""Make a recipe for data, backbones and a machine: ask for what is missing, choose settings that fit, write it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, get_args

from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

from aligngpt.data.sources.levels_file import levels_file
from aligngpt.device import DEVICE_VARIABLE
from aligngpt.files import atomic_write
from aligngpt.model.backbones import load_config
from aligngpt.progress import say
from aligngpt.starting.asking import Asker
from aligngpt.starting.backbones import Backbone, Part, UnknownSizes, check_like, find_backbone, like_unused
from aligngpt.starting.data_look import DataLook, Kind, look_at
from aligngpt.starting.fitting import USABLE, Fitted, Wanted, fit
from aligngpt.starting.machine import GIGABYTE, Device, Machine, this_machine
from aligngpt.starting.output import StartError, check_can_write, check_run
from aligngpt.starting.settings import recipe_text
from aligngpt.training.recipe import make_recipe

DEFAULT_LEVELS = 8
"""Number of levels if the captions have none yet, as in the paper."""

SUGGESTED: tuple[tuple[int, str, str], ...] = (
    (22 * GIGABYTE, "openai/clip-vit-large-patch14-336", "lmsys/vicuna-7b-v1.5"),
    (7 * GIGABYTE, "google/siglip-base-patch16-224", "Qwen/Qwen2.5-1.5B-Instruct"),
    (0, "openai/clip-vit-base-patch32", "HuggingFaceTB/SmolLM2-135M-Instruct"),
)
"""Default tower and language model by the least memory of a GPU; on a CPU the last."""

SCORERS = {"cpu": "openai/clip-vit-base-patch32"}
"""CLIP that scores the pairs on a device; the paper's elsewhere."""

PAPER_SCORER = "openai/clip-vit-large-patch14-336"


class Given(NamedTuple):
    """The flags of `aligngpt init`; None for those that were not given.

    Attributes:
        data: files of either kind, which is detected.
        captions, questions: the data of stage 1 and of stage 2.
        image_root: folder that the image paths of both are relative to.
        tower, language: folders or hub names of the backbones.
        tower_like, language_like: listed backbones of about their size, for names whose sizes are unknown.
        device: `cpu`, `cuda` or `mps`.
        memory: of the device, in GB.
        run: folder of the run.
    """

    data: Sequence[Path] = ()
    captions: Path | None = None
    questions: Path | None = None
    image_root: Path | None = None
    tower: str | None = None
    language: str | None = None
    tower_like: str | None = None
    language_like: str | None = None
    device: str | None = None
    memory: float | None = None
    run: str = "runs/mine"


@dataclass(frozen=True)
class Made:
    """A recipe that was written.

    Attributes:
        path: the file.
        fitted: its settings and their estimates.
        notes: what the user should know.
        commands: what to run next, in order.
    """

    path: Path
    fitted: Fitted
    notes: tuple[str, ...]
    commands: tuple[str, ...]


def make_new_recipe(given: Given, asker: Asker, out: Path, *, force: bool = False) -> Made:
    """Look at data and machine, choose settings that fit, and write a recipe.

    The network is not used. An error or an interruption leaves no file.

    Raises:
        StartError: a value is missing or cannot be used, or nothing fits the memory.
        BackboneError: a backbone is of an unsupported kind.
        SourceError: data cannot be read.
    """
    check_can_write(out, force=force)
    check_run(given.run)
    check_like(given.tower_like, "vision tower")
    check_like(given.language_like, "language model")
    captions, questions = _data(given, asker)
    for look in (captions, questions):
        if out.exists() and look.path.exists() and look.path.samefile(out):
            raise StartError(f"{out} is the file of {look.kind}; name another file for the recipe with --out")
    machine = _machine(given, asker)
    tower_name, language_name = suggested(machine)
    tower = _backbone("vision tower", given.tower, given.tower_like, tower_name, asker)
    language = _backbone("language model", given.language, given.language_like, language_name, asker)
    levels = captions.num_levels
    if levels == 1:
        raise StartError(f"all captions of {captions.path} have level 1; `aligngpt levels` gives them 2 levels or more")
    data, table, steps = _level_commands(captions, _scorer(tower, machine), given.run)
    fitted = fit(
        Wanted(captions, questions, data, table, tower, language, machine, given.run, levels or DEFAULT_LEVELS),
    )
    notes = [
        *like_unused(tower, "vision tower", given.tower_like),
        *like_unused(language, "language model", given.language_like),
        *_notes(captions, tower, language, machine, fitted, given.run),
    ]
    fitted = replace(fitted, settings=replace(fitted.settings, about=_about(machine, fitted)))
    text = recipe_text(fitted.settings)
    # Validated once more as written, with the names that it will be trained with.
    make_recipe(_parsed(text), str(out))
    check_can_write(out, force=force)
    with atomic_write(out) as file:
        file.write(text)
    name = shlex.quote(str(out))
    commands = [*steps, f"aligngpt train {name} --dry-run", f"aligngpt train {name}"]
    if fitted.settings.instruct.bits is not None and not _has_bits():
        commands.insert(0, "pip install 'aligngpt[bits]'")
    return Made(out, fitted, tuple(notes), tuple(commands))


def suggested(machine: Machine) -> tuple[str, str]:
    """The default vision tower and language model for a machine; names on the hub."""
    memory = 0 if machine.device == "cpu" else machine.memory or 0
    return next((tower, language) for least, tower, language in SUGGESTED if memory >= least)


def _data(given: Given, asker: Asker) -> tuple[DataLook, DataLook]:
    found: dict[Kind, DataLook] = {}
    for one in given.data:
        look = _shown(look_at(one, given.image_root))
        if look.kind in found:
            raise StartError(
                f"{found[look.kind].path} and {one} both look like {look.kind}; name one file with --captions and one "
                "with --questions (a recipe can mix several sources, see docs/recipes.md)"
            )
        found[look.kind] = look
    _from_flag("captions", given.captions, given, asker, found)
    _from_flag("questions", given.questions, given, asker, found)
    return found["captions"], found["questions"]


def _from_flag(kind: Kind, path: Path | None, given: Given, asker: Asker, found: dict[Kind, DataLook]) -> None:
    """Add the data of one kind from its flag, or from an answer if it was not found yet."""
    if kind in found:
        if path is not None:
            raise StartError(f"{found[kind].path} looks like {kind}, and --{kind} names {path}; give one of the two")
        return
    name = None if path is None else str(path)
    look = asker.value(f"file of {kind}", f"--{kind}", name, lambda text: look_at(Path(text), given.image_root))
    found[kind] = _shown(look)
    if look.kind != kind and look.check.images:
        say(f"note: {look.path} looks like {look.kind}, but is used as {kind}")


def _shown(look: DataLook) -> DataLook:
    say(look.text())
    return look


def _machine(given: Given, asker: Asker) -> Machine:
    here = this_machine(Path(given.run))
    say(f"this machine: {here.text()}")
    device = asker.value("device to plan for", "--device", given.device, _device, default=here.device, needed=False)
    if device == "cpu" != here.device:
        say(f"to train on the CPU of this machine, set {DEVICE_VARIABLE}=cpu: `aligngpt train` would use {here.name}")
    known = here.memory if device == here.device else here.main_memory if device == "cpu" else None
    memory = asker.value(
        "memory of the device in GB",
        "--memory",
        None if given.memory is None else str(given.memory),
        _gigabytes,
        default=None if known is None else f"{known / GIGABYTE:.1f}",
        needed=known is None,
    )
    name = here.name if device == here.device else {"cuda": "a GPU", "mps": "an Apple GPU", "cpu": "a CPU"}[device]
    # What another machine has besides is not known.
    main = here.main_memory if device == here.device else None
    return here._replace(device=device, name=name, memory=memory, main_memory=main)


def _device(text: str) -> Device:
    for one in get_args(Device):
        if text.strip().lower() == one:
            return one
    from aligngpt.training.recipe_problems import closest

    meant = closest(text, get_args(Device))
    said = f"did you mean {meant}?" if meant else f"give one of {', '.join(get_args(Device))}"
    raise StartError(f"there is no device {text!r}; {said}")


def _gigabytes(text: str) -> int:
    try:
        number = float(text.strip().removesuffix("GB"))
    except ValueError:
        number = -1.0
    if not 0.1 <= number < 10_000:
        raise StartError(f"{text!r} is not a number of gigabytes from 0.1 to 10000; give one, such as 24")
    return round(number * GIGABYTE)


def _backbone(part: Part, given: str | None, like: str | None, default: str, asker: Asker) -> Backbone:
    flag = f"--{part.replace(' ', '-')}"
    asked_like = like

    def read(text: str) -> Backbone:
        try:
            return find_backbone(text, part, asked_like)
        except UnknownSizes as error:
            if not asker.interactive or asker.defaults or asked_like is not None:
                raise
            say(str(error))
            # An empty answer goes back to the name.
            return asker.value(
                f"listed {part} of the size of {text} or larger (- for another name)",
                f"{flag}-like",
                None,
                lambda other: find_backbone(text, part, other) if other != "-" else _again(part),
            )

    while True:
        try:
            return asker.value(part, flag, given, read, default=default)
        except _OtherName:
            if given is not None:
                raise


class _OtherName(StartError):
    """The user wants to give another name."""


def _again(part: Part) -> Backbone:
    raise _OtherName(f"give another {part}")


def _scorer(tower: Backbone, machine: Machine) -> str:
    """The model that scores the pairs: the folder of the tower if that has the text tower too, else a listed CLIP."""
    listed = SCORERS.get(machine.device, PAPER_SCORER)
    if tower.folder is None or tower.folder != Path(tower.name):
        return listed
    kind = load_config(tower.name, "vision tower").model_type
    # Models that tell classes by their names have both towers.
    return tower.name if kind in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES else listed


def _level_commands(captions: DataLook, scorer: str, run: str) -> tuple[str, str | None, list[str]]:
    """The data that the recipe names for stage 1, a table of their levels if they are an archive, and the commands that
    write either; none if the captions have levels."""
    path = captions.path
    if captions.check.levels:
        return str(path), None, []
    scores = shlex.quote(str(Path(run) / "scores"))
    root = "" if captions.image_root is None else f" --image-root {shlex.quote(str(captions.image_root))}"
    score = f"aligngpt score {shlex.quote(str(path))}{root} --model {shlex.quote(scorer)} --out {scores}"
    if captions.is_archive:
        table = str(Path(run) / "levels.parquet")
        levels = f"aligngpt levels {scores} --levels {DEFAULT_LEVELS} --out {shlex.quote(table)}"
        return str(path), table, [score, levels]
    out = levels_file(path)
    files = f"--source {shlex.quote(str(path))} --out {shlex.quote(str(out))}"
    return str(out), None, [score, f"aligngpt levels {scores} --levels {DEFAULT_LEVELS} {files}"]


def _notes(
    captions: DataLook, tower: Backbone, language: Backbone, machine: Machine, fitted: Fitted, run: str
) -> list[str]:
    notes = []
    for one, part in ((tower, "vision tower"), (language, "language model")):
        if one.like is not None and one.like != one.name:
            notes.append(f"the sizes of {one.name} are not known here; those of {one.like} are used for this {part}")
    if language.like is not None:
        notes.append(
            "the language model's tokenizer is not here: lengths assume three characters per token; check them with "
            "--dry-run once it is downloaded"
        )
    if captions.check.levels and captions.check.without_level:
        notes.append(f"{captions.check.without_level:,} captions have no level; training rejects them")
    for name, tokens in fitted.cut.items():
        longest = getattr(fitted.settings, name).max_length
        notes.append(f"the longest sample of {name} has {tokens:,} tokens; more than {longest:,} are cut off")
    main = machine.main_memory
    if machine.device == "cuda" and main is not None and fitted.assembling > USABLE * main:
        notes.append(
            f"the model takes {fitted.assembling / GIGABYTE:.1f} GB of main memory while it is assembled, and "
            f"{main / GIGABYTE:.1f} GB are available"
        )
    if fitted.disk > machine.disk:
        notes.append(
            f"the run takes up to {fitted.disk / GIGABYTE:.1f} GB of disk, and {machine.disk / GIGABYTE:.1f} GB are "
            f"free at {run}"
        )
    return notes


def _about(machine: Machine, fitted: Fitted) -> tuple[str, ...]:
    memory = ", ".join(f"{held / GIGABYTE:.1f} GB in {name}" for name, held in fitted.memory.items())
    assert machine.memory is not None
    return (
        f"Written by `aligngpt init` for {machine.name} with {machine.memory / GIGABYTE:.1f} GB of memory.",
        f"Estimated memory on the device: {memory}.",
        "All keys are listed in docs/recipes.md.",
    )


def _parsed(text: str) -> dict[str, object]:
    import yaml

    content: dict[str, object] = yaml.safe_load(text)
    return content


def _has_bits() -> bool:
    from importlib.util import find_spec

    return find_spec("bitsandbytes") is not None
