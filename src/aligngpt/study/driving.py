"""A whole study: what its runs share is made once, then the runs go to worker processes; all of it resumes."""

import os
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

import aligngpt
from aligngpt.data.sources.json import read_records
from aligngpt.hub_names import local_or_hub
from aligngpt.locks import owned_folder
from aligngpt.progress import Meter, say
from aligngpt.study.analysis.questions import ProbeCaptions, Questions, Split
from aligngpt.study.claiming import check_settings, claim_folder, differences, settings_of
from aligngpt.study.clipart_data import prepare_clipart_data
from aligngpt.study.data import StudyData
from aligngpt.study.features import keep_features
from aligngpt.study.files_data import read_files
from aligngpt.study.order import in_turn
from aligngpt.study.pairs import StudyError
from aligngpt.study.plan import Plan, PlanError, Run
from aligngpt.study.results import merge_files, settings_in, take_over
from aligngpt.study.running import Runner
from aligngpt.study.scenes_data import prepare_scenes_data
from aligngpt.worker_processes import end_with_parent

RESULTS_FILE = "results.parquet"
DEFAULT_WORKERS = 2


def run_study(plan: Plan, *, workers: int = DEFAULT_WORKERS, done: Path | None = None) -> Path:
    """Do every run of a plan that is not done yet.

    Args:
        plan: the study.
        workers: processes that run at once, with one thread each.
        done: results of the same study from another machine; their runs are not done again.

    Returns:
        The file of all results.

    Raises:
        PlanError: the plan names another commit than that of the code.
        FolderInUse: another process works on this study.
        StudyError: a backbone is not there, the folder or `done` has a study with other settings, or a worker ended.
        AlignGPTError: the data cannot be prepared.
    """
    code = code_version()
    if plan.commit is not None and not code.startswith(plan.commit):
        raise PlanError(
            f"the plan is for commit {plan.commit} of the code and this is {code}; check that commit out in a clone of "
            "its own, or remove commit from the plan"
        )
    for part in ("vision_tower", "language_model"):
        if part in plan.model:
            local_or_hub(str(plan.model[part]), f"the {part.replace('_', ' ')}", StudyError, whose="of the plan")
    folder = Path(plan.output)
    with owned_folder(folder, "study"):
        claim_folder(plan, folder)
        if done is not None:
            _check_settings_of(plan, done)
        data = prepare_data(plan, folder)
        if done is not None:
            _check_questions_of(data, done, folder)
            say(f"{take_over(done, folder / 'results')} results taken over from {done}")
        if areas := data.facts.get("auc"):
            found = ", ".join(f"{kind} {area:.3f}" for kind, area in areas.items())
            say(f"dual encoder, AUC of exact against bad captions: {found}")
        questions_of(data).save(folder / RESULTS_FILE)
        runner = Runner(plan, data, folder, code)
        todo = [run for run in plan.runs() if not runner.is_done(run)]
        if todo:
            keep_features(plan, data, folder)
            _run_all(runner, todo, len(plan.runs()), workers)
        return collect(plan, folder)


def _check_settings_of(plan: Plan, done: Path) -> None:
    if changed := differences(settings_in(done), settings_of(plan)):
        raise StudyError(
            f"{done} holds results of a study with other settings ({', '.join(changed[:5])}); its runs cannot be "
            "compared with those of this plan"
        )


def _check_questions_of(data: StudyData, done: Path, folder: Path) -> None:
    """Check that results of elsewhere are of the same questions, captions and scores as the data made here.

    On another processor, the same code and seed may give another dual encoder, and so other levels.
    """
    if Questions.load(done) != questions_of(data):
        raise StudyError(
            f"the questions or the scores of the captions that were made here are not those of {done}; copy the folder "
            f"data of the study that made these results into {folder}, and remove the results there that were made "
            "with others"
        )


def prepare_data(plan: Plan, folder: Path) -> StudyData:
    """The data of a plan, made or read.

    Raises:
        AlignGPTError: see `prepare_scenes_data`, `prepare_clipart_data` and `read_files`.
    """
    if plan.scenes is not None:
        return prepare_scenes_data(plan.scenes, plan.model, folder / "data")
    if plan.clipart is not None:
        return prepare_clipart_data(plan.clipart, plan.model, folder / "data")
    assert plan.files is not None
    return read_files(plan.files, plan.model, folder / "data")


def collect(plan: Plan, folder: Path) -> Path:
    """Write the results of all runs of the plan that are done, and of their pre-trainings, into one file.

    Raises:
        StudyError: no run is done, or the runs were done with other settings than those of the plan.
    """
    settings = settings_of(plan)
    check_settings(settings, folder)
    names = dict.fromkeys(name for run in plan.runs() for name in (run.pretraining_id, run.id))
    files = [path for name in names if (path := folder / "results" / f"{name}.parquet").is_file()]
    if not files:
        raise StudyError(f"no run of the study in {folder} is done yet")
    merge_files(files, folder / RESULTS_FILE, settings)
    return folder / RESULTS_FILE


def code_version() -> str:
    """The commit of the code if it is a git checkout, marked where it was changed; else the version of the package."""
    source = Path(aligngpt.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(source), *words], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-changed" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return f"version {aligngpt.__version__}"


def _run_all(runner: Runner, todo: Sequence[Run], total: int, workers: int) -> None:
    # Read by the workers as they start, before they import torch.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    logs = runner.folder / "work"
    logs.mkdir(parents=True, exist_ok=True)
    say(f"{len(todo)} runs with {workers} workers; their output: {logs}/worker-*.log")
    # Without the data, which is sent to each worker once.
    bare = replace(runner, data=None)  # type: ignore[arg-type]
    with (
        Meter("study", total, initial=total - len(todo), unit="runs") as meter,
        ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(runner.data, logs)
        ) as pool,
    ):
        try:
            for run in in_turn(partial(_submitted, pool, bare), runner.forget, todo, workers):
                meter.advance(1, run.id)
        except BrokenProcessPool as error:
            raise StudyError(
                f"a worker process ended, perhaps because memory ran out; see {logs}/worker-*.log, then run the same "
                "command again, with fewer --workers if need be"
            ) from error
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_data: StudyData


def _begin(data: StudyData, logs: Path) -> None:
    """Prepare a worker process: its data, one thread, and its output into a file."""
    global _data
    _data = data
    end_with_parent()
    # Ctrl-C reaches the whole group; the main process ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = os.open(logs / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)


def _submitted(pool: ProcessPoolExecutor, bare: Runner, run: Run) -> Future[None]:
    return pool.submit(_do, bare, run)


def _do(bare: Runner, run: Run) -> None:
    replace(bare, data=_data).do(run)


def questions_of(data: StudyData) -> Questions:
    """What the analysis needs to know about the questions and the probe captions."""
    probe = data.probe
    return Questions(
        {name: _split(path) for name, path in data.tests.items()},
        None if probe is None else ProbeCaptions(probe.kinds, probe.right_scores, probe.wrong_scores),
    )


def _split(path: Path) -> Split:
    records = [record for _, record in read_records(path) if isinstance(record, dict)]
    images: dict[str, int] = {}
    return Split(
        kind=tuple(str(record.get("question_type", "")) for record in records),
        scope=tuple(str(record.get("scope", "")) for record in records),
        image=tuple(images.setdefault(str(record.get("image")), len(images)) for record in records),
    )
