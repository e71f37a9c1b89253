"""A training run: the stages of a recipe, each run once and resumed where it was interrupted."""

from collections.abc import Sequence
from contextlib import nullcontext

from aligngpt.device import resolve_device
from aligngpt.leftovers import remove_leftovers
from aligngpt.locks import owned_folder
from aligngpt.progress import say, warn
from aligngpt.training.distributed.agreement import check_same
from aligngpt.training.distributed.processes import choose_own_gpu, is_main_process, join_processes
from aligngpt.training.feed.source_checks import source_problems, swapped_warning
from aligngpt.training.finished import (
    check_output,
    check_pretrained,
    check_start,
    other_settings,
    without_pretraining,
)
from aligngpt.training.loop.checkpoints import remove_checkpoints
from aligngpt.training.origin import other_origin
from aligngpt.training.recipe import STAGES, Recipe, RecipeError, StageName, StageRecipe
from aligngpt.training.run_card import write_run_card
from aligngpt.training.run_folder import check_run_folder
from aligngpt.training.stage import (
    DESCRIPTIONS,
    StageResult,
    fingerprint_of,
    model_folder,
    result_folders,
    stage_folder,
    stage_result,
)
from aligngpt.training.stage_run import run_stage


def train(recipe: Recipe, stages: Sequence[StageName] = STAGES) -> list[StageResult]:
    """Run the unfinished stages of a recipe; an interrupted stage resumes at its last checkpoint.

    Writes `pretrain/aligned.safetensors` (projector and level table), `model/` (a complete model folder) and
    `recipe.yaml` (the recipe with all defaults) under the recipe's output, and `metrics.jsonl` and `stage.json` for
    each stage. Data and earlier stages are checked before the first stage runs.

    Returns:
        The result of each stage, including those finished earlier.

    Raises:
        RecipeError: the recipe has none of the `stages`, the output holds a run of another recipe, data files are
            missing, swapped or have no levels, stage 2 is to run before stage 1 or had started from an earlier result
            of it, or its own result would replace a backbone or files of something else.
        FolderInUse: another process is training in the output folder.
        AlignGPTError: a backbone, the data or a checkpoint cannot be used.
    """
    wanted = [(name, stage) for name in STAGES if name in stages and (stage := recipe.stage(name)) is not None]
    if not wanted:
        raise RecipeError(f"the recipe has no section {' or '.join(stages)}")
    choose_own_gpu()
    # The other processes of the launch wait for the main one and end with it, so only that one takes the lock.
    with owned_folder(recipe.output, "train") if is_main_process() else nullcontext():
        return _train(recipe, wanted)


def _train(recipe: Recipe, wanted: Sequence[tuple[StageName, StageRecipe]]) -> list[StageResult]:
    fingerprints = _check_before(recipe, wanted)
    join_processes(cpu=resolve_device().type == "cpu")
    for name, fingerprint in fingerprints.items():
        check_same(f"the settings and data files of {name}", f"fingerprint {fingerprint[:12]}")
    finished = [name for name in STAGES if stage_result(recipe, name) is not None]
    check_same(f"the finished stages in {recipe.output}", " and ".join(finished) or "none")
    if is_main_process():
        for folder in result_folders(recipe):
            # Of a job that was killed in another container; a model is too large to keep several of them.
            remove_leftovers(folder, owned=True)
    results = []
    for name, stage in wanted:
        if name == "instruct":
            check_start(recipe)
        done = stage_result(recipe, name)
        if done is None:
            done = run_stage(recipe, name, stage, fingerprints[name])
        else:
            check_output(recipe, name)
            if is_main_process():
                # The run may have been killed after writing the result and before removing the checkpoints.
                remove_checkpoints(stage_folder(recipe, name) / "checkpoints", keep=None)
                say(f"{DESCRIPTIONS[name]}: already done ({done.steps} steps, loss {done.loss:.3f})")
        results.append(done)
    every = [one for name in STAGES if (one := stage_result(recipe, name)) is not None]
    if is_main_process() and stage_result(recipe, "instruct") is not None:
        write_run_card(model_folder(recipe), recipe, every)
    return results


def _check_before(recipe: Recipe, wanted: Sequence[tuple[StageName, StageRecipe]]) -> dict[StageName, str]:
    """Check everything that can be checked before the first stage runs; returns the fingerprint of each stage."""
    check_run_folder(recipe)
    unfinished = [name for name, _ in wanted if stage_result(recipe, name) is None]
    if problems := source_problems(recipe, unfinished):
        raise RecipeError("; ".join(problems))
    fingerprints = {name: fingerprint_of(recipe, name, stage) for name, stage in wanted}
    for name, fingerprint in fingerprints.items():
        done = stage_result(recipe, name)
        if done is not None and done.fingerprint != fingerprint:
            raise other_settings(recipe, name)
    if "instruct" in unfinished and "pretrain" not in fingerprints and recipe.pretrain is not None:
        check_pretrained(recipe)
    if unfinished and is_main_process():
        warnings = [swapped_warning(recipe), *(other_origin(recipe, name) for name in unfinished)]
        warnings += [without_pretraining(recipe)] if "instruct" in unfinished else []
        for warning in filter(None, warnings):
            warn(warning)
    return fingerprints
