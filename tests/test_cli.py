"""The command line: complete help, one-line errors, and exit codes that scripts can rely on."""

import ast
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from typer.main import get_command

import aligngpt
from aligngpt import cli
from aligngpt.data.sources.fields import CAPTION_COLUMNS, ID_COLUMNS, IMAGE_COLUMNS
from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.results import AskedAbout, EvaluationResult, Tally
from aligngpt.inference.engine import EngineError
from aligngpt.levels.making import LevelsSummary
from aligngpt.progress import console, track, warn
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import ScoreSummary

VERBS: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]


PAIRS = SimpleNamespace(kind="parquet")
"""In place of a source of pairs."""


class Ended(NamedTuple):
    code: int
    out: str
    error: str


Command = Callable[..., Ended]


@pytest.fixture
def aligngpt_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Command]:
    """Run the command in this process, in an empty folder, on a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(transformers.logging, "_tqdm_active", True)
    verbosity = transformers.logging.get_verbosity()

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["aligngpt", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as end:
            assert isinstance(end.code, int | None)
            return Ended(end.code or 0, *capsys.readouterr())
        return Ended(0, *capsys.readouterr())

    yield run
    transformers.logging.set_verbosity(verbosity)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list]:
    """Replace a function with one that records its calls and returns a given result.

    The files and folders that the tests name as arguments exist, empty.
    """
    for folder in ("m", "model", "clip", "run", "scores", "adapter", "base"):
        (tmp_path / folder).mkdir(exist_ok=True)
    for file in ("q.json", "questions.json", "p.csv", "pairs.json", "b.json", "captions.json"):
        (tmp_path / file).touch()

    def replace(target: str, result: Any = None) -> list:
        seen: list[tuple[tuple, dict[str, Any]]] = []

        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append((args, kwargs))
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(target, call)
        return seen

    return replace


@pytest.fixture
def model_folder(assembled: Callable, tmp_path: Path) -> Path:
    for part in assembled():
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    record = {"image": "red.png", "question": "what colour is it ?", "answer": "red"}
    lines = [json.dumps({"id": str(index), **record}) + "\n" for index in range(300)]
    (tmp_path / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
    return tmp_path / "questions.jsonl"


def words(text: str) -> str:
    """Help text without box characters and line breaks."""
    return " ".join(text.replace("│", " ").split())


def test_help_names_every_verb_and_what_it_does(aligngpt_command: Command) -> None:
    ended = aligngpt_command("--help")
    assert (ended.code, ended.error) == (0, "")
    assert set(VERBS) == {
        "quickstart",
        "score",
        "judge",
        "derive",
        "levels",
        "train",
        "evaluate",
        "inspect",
        "ask",
        "chat",
        "serve",
        "web",
        "convert",
        "merge",
        "export",
        "doctor",
        "report",
        "check",
        "recipe",
        "init",
        "cache",
        "study",
    }
    for verb, command in VERBS.items():
        assert f" {verb} {words(command.help).split('. ')[0]}" in words(ended.out)
    assert "score → levels → train → evaluate → ask" in words(ended.out)
    assert "--version" in ended.out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_explains_every_argument(aligngpt_command: Command, verb: str) -> None:
    ended = aligngpt_command(verb, "--help")
    assert (ended.code, ended.error) == (0, "")
    shown = words(ended.out)
    assert words(VERBS[verb].help) in shown
    for parameter in VERBS[verb].params:
        if parameter.name != "help":
            name = parameter.name if parameter.param_type_name == "argument" else parameter.opts[0]
            assert name.lower() in shown.lower()
            assert parameter.help and words(parameter.help) in shown


def test_help_says_what_an_option_left_out_comes_to(aligngpt_command: Command) -> None:
    defaults = {
        "quickstart": "runs/quickstart, runs/quickstart-scenes",
        "score": "the folder of SOURCE",
        "evaluate": "the folder of QUESTIONS",
    }
    for verb, default in (defaults | {"report": "report.html in RUN", "levels": "quantile", "train": "all"}).items():
        assert re.search(rf"\[default: \(?{default}\)?\]", words(aligngpt_command(verb, "--help").out))


@pytest.mark.parametrize("verb", ["score", "judge", "levels"])
def test_help_names_the_default_columns(aligngpt_command: Command, verb: str) -> None:
    shown = words(aligngpt_command(verb, "--help").out)
    for names in (CAPTION_COLUMNS, IMAGE_COLUMNS, ID_COLUMNS):
        assert f"[default: ({', '.join(names[:-1])} or {names[-1]})]" in shown


def test_version_is_the_package_s(aligngpt_command: Command) -> None:
    assert aligngpt_command("--version") == (0, f"aligngpt {aligngpt.__version__}\n", "")


def test_the_command_alone_shows_its_help(aligngpt_command: Command) -> None:
    ended = aligngpt_command()
    assert "Usage: " in ended.out + ended.error
    assert "quickstart" in ended.out + ended.error


ERRORS: dict[str, tuple[list[str], str]] = {
    "no pairs": (["score", "none.json", "--model", "none", "--out", "s"], "none.json does not exist; expected a JSON"),
    "no model to score with": (["score", "pairs.csv", "--model", "./none", "--out", "s"], "./none cannot be loaded"),
    "no column of captions": (
        ["score", "pairs.csv", "--model", "clip", "--out", "s", "--caption-column", "c"],
        "pairs.csv",
    ),
    "no share of shards": (["score", "pairs.csv", "--model", "clip", "--out", "s", "--shard", "4/4"], "such as 0/4"),
    "no scores": (["levels", "none", "--source", "none.json", "--out", "l.json"], "none cannot be read"),
    "no column of scores": (
        ["levels", "pairs.csv", "--out", "l.parquet"],
        "no column score; the columns are: image, caption",
    ),
    "no recipe": (["train", "none.yaml"], "recipe none.yaml cannot be read"),
    "recipe is no YAML": (["train", "broken.yaml"], "recipe broken.yaml cannot be read"),
    "recipe is no mapping": (["train", "list.yaml"], "must hold the sections"),
    "recipe misses fields": (["train", "empty.yaml"], "model: Field required"),
    "setting is none": (["train", "empty.yaml", "--set", "seed"], "write section.field=value"),
    "no model to evaluate": (["evaluate", "none/model/x", "questions.jsonl", "--out", "e"], "Give a model folder"),
    "no questions": (["evaluate", "model", "none.json", "--out", "e"], "none.json cannot be read"),
    "out is a file": (["evaluate", "clip", "questions.jsonl", "--out", "questions.jsonl"], "questions.jsonl"),
    "no picture": (["ask", "model", "none.png", "what ?"], "none.png does not exist"),
    "picture is text": (
        ["ask", "model", "questions.jsonl", "what ?"],
        "is not an image in any of the formats",
    ),
    "no model to ask": (["ask", "./none", "red.png", "what ?"], "Give a model folder"),
    "another kind of model": (["ask", "clip", "red.png", "what ?"], "expected an AlignGPT model"),
    "unknown kind of model": (["ask", "unknown", "red.png", "what ?"], "Give a model folder"),
    "no base of an adapter folder": (["ask", "adapter", "red.png", "what ?"], "did you mean clip? If it is stored"),
    "mistyped folder": (["evaluate", "clpi", "questions.jsonl", "--out", "e"], "there is no such folder here"),
    "mistyped name in a folder": (
        ["score", "pairs.csv", "--model", "models/clpi", "--out", "s"],
        "models/clpi cannot be loaded: no such file or folder; did you mean models/clip? Give a model folder",
    ),
    "mistyped folder of a name": (["ask", "modles/clip", "red.png", "what ?"], "; did you mean models/clip?"),
    "mistyped folder of folders": (
        ["check", "questions.jsonl", "--model", "a/b/c"],
        "c cannot be loaded: no such file",
    ),
    "mistyped tower": (["train", "towers.yaml"], "the vision tower models/clpi cannot be loaded: no such file or"),
    "mistyped language model": (["train", "towers.yaml", "--set", "model.vision_tower=clip"], "models/lm cannot be"),
    "mistyped pairs": (["score", "pair.csv", "--model", "models/clpi", "--out", "s"], "did you mean pairs.csv?"),
    "no device": (["ask", "clip", "red.png", "what ?", "--device", "quantum"], "use --device cpu or auto"),
    "no image root to check": (["check", "questions.jsonl", "--image-root", "none"], "image root none is not a folder"),
    "no recipe to check for": (["check", "questions.jsonl", "--recipe", "none.yaml"], "none.yaml cannot be read"),
    "another kind of model to check for": (["check", "questions.jsonl", "--model", "clip"], "of an AlignGPT model"),
    "no model to check for": (["check", "questions.jsonl", "--model", "./none"], "Give a model folder"),
    "no adapter to merge": (["merge", "clip", "out"], "clip is not an adapter folder"),
    "no run": (["report", "none"], "give a run folder"),
    "nothing in the run": (["report", "clip"], "no scores, no training and no evaluation"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_line_and_exit_code_1(
    aligngpt_command: Command, questions: Path, tower_folder: Callable, tmp_path: Path, case: str
) -> None:
    (tmp_path / "broken.yaml").write_text("model: [1, 2\nother: {", encoding="utf-8")
    (tmp_path / "list.yaml").write_text("- model", encoding="utf-8")
    (tmp_path / "pairs.csv").write_text("image,caption\nred.png,red\n", encoding="utf-8")
    (tmp_path / "empty.yaml").write_text("output: here", encoding="utf-8")
    (tmp_path / "clip").symlink_to(tower_folder("clip_full"))
    (tmp_path / "models").symlink_to(".")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "./clpi"}')
    towers = "{model: {vision_tower: models/clpi, language_model: models/lm}, output: here}"
    (tmp_path / "towers.yaml").write_text(towers, encoding="utf-8")
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "config.json").write_text('{"model_type": "something_new"}', encoding="utf-8")
    arguments, said = ERRORS[case]
    ended = aligngpt_command(*arguments)
    assert (ended.code, ended.out) == (1, "")
    assert ended.error.startswith("error: ") and said in ended.error
    assert ended.error.count("\n") == 1 and ended.error.endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dance"], "dance"),
        (["score", "a.json"], "--model"),
        (["ask", "model", "picture.png"], "question"),
        (["ask", "model", "picture.png", "what ?", "--level", "0"], "--level"),
        (["score", "a.json", "--model", "m", "--out", "o", "--precision", "int4"], "--precision"),
        (["score", "a.json", "--model", "m", "--out", "o", "--max-reject-share", "2"], "--max-reject-share"),
        (["levels", "s", "--source", "a", "--out", "b", "--levels", "1"], "--levels"),
        (["levels", "s", "--source", "a", "--out", "b", "--method", "best"], "--method"),
        (["evaluate", "m", "q", "--out", "o", "--batch-size", "0"], "--batch-size"),
        (["train", "recipe.yaml", "--stage", "third"], "--stage"),
        (["quickstart", "--minutes", "0"], "--minutes"),
        (["report", "run", "--colour"], "--colour"),
        (["check"], "data"),
        (["check", "a.json", "--model", "m", "--recipe", "r.yaml"], "not both"),
        (["check", "a.json", "--stage", "third"], "--stage"),
        (["check", "a.json", "--stage", "pretrain"], "--stage requires --recipe"),
    ],
)
def test_wrong_usage_is_exit_code_2(aligngpt_command: Command, arguments: list[str], said: str) -> None:
    ended = aligngpt_command(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.error.lower() and "Usage: " in ended.error


def test_ctrl_c_is_exit_code_130_and_says_how_to_go_on(aligngpt_command: Command, calls: Callable) -> None:
    calls("aligngpt.evaluation.accuracy.evaluate_file", KeyboardInterrupt())
    ended = aligngpt_command("evaluate", "model", "questions.json", "--out", "out")
    assert (ended.code, ended.out) == (130, "")
    assert ended.error.strip() == "stopped; the same command resumes where it stopped"


def test_ctrl_c_promises_nothing_of_a_verb_that_keeps_nothing(aligngpt_command: Command, calls: Callable) -> None:
    calls("aligngpt.checking.files.check_files", KeyboardInterrupt())
    ended = aligngpt_command("check", "questions.json")
    assert (ended.code, ended.out, ended.error.strip()) == (130, "", "stopped; the same command starts over")


def test_a_bug_is_not_taken_for_an_error_of_the_user(aligngpt_command: Command, calls: Callable) -> None:
    calls("aligngpt.evaluation.run_report.write_report", RuntimeError("a bug"))
    ended = aligngpt_command("report", "run")
    assert (ended.code, ended.out) == (1, "")
    assert ended.error.startswith("Traceback (most recent call last):") and "RuntimeError: a bug\n" in ended.error
    assert ended.error.splitlines()[-1].startswith("error: unexpected RuntimeError, a fault of aligngpt; please report")


def test_an_operation_that_an_apple_gpu_lacks_says_what_to_do(aligngpt_command: Command, calls: Callable) -> None:
    lacking = "The operator 'aten::x' is not currently implemented for the MPS device. If you want it, open an issue"
    calls("aligngpt.evaluation.run_report.write_report", NotImplementedError(lacking))
    ended = aligngpt_command("report", "run")
    assert ended.code == 1 and ended.error.startswith(f"error: {lacking.partition('. ')[0]}; set PYTORCH_ENABLE_MPS_")
    assert "ALIGNGPT_DEVICE=cpu" in ended.error


def test_the_traceback_of_an_error_is_shown_if_asked_for(aligngpt_command: Command) -> None:
    short = aligngpt_command("report", "nowhere")
    assert short.code == 1 and "Traceback" not in short.error
    long = aligngpt_command("--traceback", "report", "nowhere")
    assert long.code == 1 and long.error.startswith("Traceback (most recent call last):")
    assert long.error.endswith(short.error)


def test_quiet_shows_results_and_errors_only(aligngpt_command: Command, calls: Callable) -> None:
    def score(*_: Any, **__: Any) -> ScoreSummary:
        warn("a note")
        for _item in track([1, 2], "scoring"):
            pass
        return ScoreSummary(7, 0, {}, True)

    calls("aligngpt.data.records.pairs.open_pairs", PAIRS)
    calls("aligngpt.scoring.encoders.PairScorer.load", PairScorer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aligngpt.scoring.job.score_source", score)
        arguments = ["score", "pairs.json", "--model", "clip", "--out", "scores"]
        loud, quiet = aligngpt_command(*arguments), aligngpt_command("--quiet", *arguments)
    assert "warning: a note" in loud.error and "scoring: 2/2" in loud.error
    assert quiet == (0, loud.out, "")
    ended = aligngpt_command("--quiet", "report", "nowhere")
    assert ended.code == 1 and ended.error.startswith("error: ")
    assert not console.quiet


def rust_error() -> Exception:
    from safetensors import SafetensorError

    return SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def hidden_error() -> Exception:
    error = AlignGPTError("the checkpoint c cannot be saved")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "runs/mine/c/optimizer.pt")
    return error


FULL: dict[str, tuple[Callable[[], Exception], str]] = {
    "a file": (
        lambda: OSError(errno.ENOSPC, "No space left on device", "out/p.jsonl"),
        "the disk of out/p.jsonl; make",
    ),
    "a quota": (lambda: OSError(errno.EDQUOT, "Disk quota exceeded", b"out"), "the disk of out; make room"),
    "weights": (rust_error, "the disk that the command writes to; make room"),
    "a table": (
        lambda: OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),
        "the disk ",
    ),
    "a checkpoint": (
        lambda: RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0"),
        "the disk that the command writes to; make room",
    ),
    "an error that hides it": (hidden_error, "the disk of runs/mine/c/optimizer.pt; make room"),
}


@pytest.mark.parametrize("case", FULL)
def test_a_full_disk_is_said_whichever_library_met_it(aligngpt_command: Command, calls: Callable, case: str) -> None:
    error, place = FULL[case]
    calls("aligngpt.evaluation.run_report.write_report", error())
    ended = aligngpt_command("report", "run")
    assert (ended.code, ended.out, ended.error.count("\n")) == (1, "", 1)
    assert ended.error.startswith(f"error: no space left on {place}")
    assert "make room and run the same command again (" in ended.error


def test_what_was_said_of_a_full_disk_is_said_once(aligngpt_command: Command, calls: Callable) -> None:
    error = AlignGPTError("the cache c cannot be written: No space left on device; make room there")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    calls("aligngpt.evaluation.run_report.write_report", error)
    assert aligngpt_command("report", "run").error == f"error: {error}\n"


def gpu_error() -> Exception:
    error = EngineError("the model m cannot be loaded: CUDA out of memory. One of its files is missing or damaged")
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee documentation")
    return error


@pytest.mark.parametrize(
    ("error", "device"),
    [
        (
            lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee documentation"),
            " on the GPU",
        ),
        (gpu_error, " on the GPU"),
        (MemoryError, ""),
        (lambda: np._core._exceptions._ArrayMemoryError((1 << 50,), np.dtype("u1")), ""),
        (lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), ""),
        (
            lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            " on the GPU",
        ),
        (lambda: OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
    ],
)
def test_too_little_memory_is_one_line_whichever_library_met_it(
    aligngpt_command: Command, calls: Callable, error: Callable, device: str
) -> None:
    calls("aligngpt.evaluation.run_report.write_report", error())
    ended = aligngpt_command("report", "run")
    assert (ended.code, ended.out, ended.error.count("\n")) == (1, "", 1)
    assert ended.error.startswith(f"error: out of memory{device}; use a machine with more memory")


@pytest.mark.parametrize(
    ("verb", "target", "advice"),
    [
        (
            "evaluate m q.json --out o",
            "evaluation.accuracy.evaluate_file",
            "lower --batch-size, or use a smaller model or another --device",
        ),
        ("score p.csv --model m --out o", "scoring.job.score_source", "lower --batch-size or --workers"),
        ("train r.yaml", "training.recipe.load_recipe", "lower micro_batch_size in the recipe"),
        ("ask m p.png what", "inference.ask.ask", "use a smaller model"),
    ],
)
def test_too_little_memory_comes_with_advice(
    aligngpt_command: Command, calls: Callable, verb: str, target: str, advice: str
) -> None:
    calls("aligngpt.data.records.pairs.open_pairs", PAIRS)
    calls("aligngpt.scoring.encoders.PairScorer.load", PairScorer)
    calls(f"aligngpt.{target}", gpu_error())
    ended = aligngpt_command(*verb.split())
    assert (ended.code, ended.out, ended.error.count("\n")) == (1, "", 1)
    assert ended.error.startswith(f"error: out of memory on the GPU; {advice}")


def test_help_has_a_short_name(aligngpt_command: Command) -> None:
    for verb in ([], ["score"]):
        ended = aligngpt_command(*verb, "-h")
        assert ended.code == 0 and ended.out == aligngpt_command(*verb, "--help").out


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "aligngpt", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, f"aligngpt {aligngpt.__version__}\n")


@pytest.mark.medium
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have file names in UTF-8")
def test_a_folder_with_an_accent_is_found_in_a_locale_without(tmp_path: Path, scorer_folder: Callable) -> None:
    folder = tmp_path / "größer"
    shutil.copytree(scorer_folder("clip"), folder / "model")
    Image.new("RGB", (32, 32), "red").save(folder / "é.png")
    (folder / "pairs.csv").write_text("image,caption\né.png,red\n", encoding="utf-8")
    program = [sys.executable, str(Path(sys.executable).with_name("aligngpt"))]
    options = ["--model", folder / "model", "--out", folder / "scores", "--device", "cpu", "--precision", "float32"]
    environment = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run([*program, "score", folder / "pairs.csv", *options], env=environment, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.decode().splitlines()[0] == f"1 pairs scored, 0 rejected: {folder / 'scores'}"


def test_score_and_levels_hand_their_options_on(aligngpt_command: Command, calls: Callable) -> None:
    loaded = calls("aligngpt.scoring.encoders.PairScorer.load", PairScorer)
    opened = calls("aligngpt.data.records.pairs.open_pairs", PAIRS)
    scored = calls("aligngpt.scoring.job.score_source", ScoreSummary(7, 2, {"missing": 1, "empty_text": 1}, True))
    options = ["--image-root", "pictures", "--batch-size", "5", "--device", "cpu", "--precision", "float32"]
    options += ["--workers", "3", "--shard", "1/4", "--embeddings", "--shard-size", "9", "--max-reject-share", "0.5"]
    options += ["--caption-column", "c", "--image-column", "i", "--id-column", "k"]
    ended = aligngpt_command("score", "owner/name", "--model", "clip", "--out", "scores", *options)
    assert (ended.code, ended.error) == (0, "")
    assert ended.out.splitlines() == [
        "7 pairs scored, 2 rejected (missing 1, empty_text 1): scores",
        "next: aligngpt levels scores --out scores-levels.parquet",
    ]
    assert loaded == [(("clip",), {"device": "cpu", "dtype": "float32"})]
    names = {"caption_column": "c", "image_column": "i", "id_column": "k"}
    assert opened == [(("owner/name",), {"image_root": Path("pictures"), "shard_size": 9} | names)]
    expected = {"batch_size": 5, "workers": 3, "embeddings": True, "max_reject_share": 0.5, "shard": (1, 4)}
    expected["others"] = []
    assert scored == [((PAIRS, PairScorer, Path("scores")), expected)]
    calls("aligngpt.scoring.job.score_source", ScoreSummary(7, 0, {}, False))
    ended = aligngpt_command("score", "pairs.json", "--model", "clip", "--out", "scores")
    assert ended.out.splitlines() == [
        "not finished: the other processes have yet to score their shards",
        "7 pairs scored, 0 rejected: scores",
    ]

    levels = SimpleNamespace(rank_error=0.0007)
    made = calls("aligngpt.levels.making.make_levels", LevelsSummary(levels, np.array([3, 40]), 5, Path("b.json")))
    options = ["--levels", "2", "--method", "width", "--borders", "b.json", "--score-column", "s"]
    options += ["--source", "pairs.json", "--out", "levelled.json", "--keep", "2", "--uids", "u.npy"]
    ended = aligngpt_command("levels", "scores", *options)
    assert ended.out.splitlines() == [
        "level 1: 3 pairs",
        "level 2: 40 pairs",
        "skipped, no score: 5 rows",
        "too many scores to sort: borders are approximate (KLL sketch, rank error 0.07%)",
        "borders: b.json",
        "data: levelled.json",
        "uids: u.npy",
        "next: name levelled.json in pretrain.data of a recipe (see `aligngpt recipe`), then aligngpt train RECIPE",
    ]
    assert "warning: level 1: less than a quarter" in ended.error
    paths = {"borders": Path("b.json"), "source": Path("pairs.json"), "out": Path("levelled.json")}
    expected = {
        "num_levels": 2,
        "method": "width",
        "score_column": "s",
        "id_column": None,
        "keep": "2",
        "uids": Path("u.npy"),
    } | paths
    assert made == [((Path("scores"),), expected)]


def test_levels_writes_a_page_of_what_was_scored(aligngpt_command: Command, calls: Callable) -> None:
    looks: list[LevelsSummary] = []
    prepared = calls("aligngpt.levels.page.prepare_look", SimpleNamespace(write=looks.append))
    summary = LevelsSummary(SimpleNamespace(rank_error=0), np.array([30, 40]), 0, Path("b.json"))
    made = calls("aligngpt.levels.making.make_levels", summary)
    options = ["--image-root", "i", "--caption-column", "c", "--image-column", "p", "--score-column", "s"]
    options += ["--source", "pairs.parquet", "--out", "out.parquet"]
    ended = aligngpt_command("levels", "scores", "--report", "page.html", *options)
    assert ended.out.splitlines()[-1] == "report: page.html"
    expected = {"image_root": Path("i"), "caption_column": "c", "image_column": "p", "score_column": "s"}
    expected |= {"source": Path("pairs.parquet"), "written": (Path("out.parquet"), None), "borders": None}
    expected["id_column"] = None
    assert prepared == [((Path("scores"), Path("page.html")), expected)]
    assert looks == [summary]
    assert made[0][1]["source"] is None, "a table takes no records from its source"
    aligngpt_command("levels", "scores", "--report", "page.html", "--source", "pairs.json", "--out", "out.json")
    assert made[1][1]["source"] == Path("pairs.json")
    assert "require --report" in aligngpt_command("levels", "scores", "--image-root", "i").error


def test_train_and_quickstart_hand_their_options_on(aligngpt_command: Command, calls: Callable) -> None:
    backbones = SimpleNamespace(vision_tower="clip", language_model="model")
    recipe = SimpleNamespace(output="runs/mine", model=backbones, instruct=SimpleNamespace(image_root="my images"))
    read = calls("aligngpt.training.recipe.load_recipe", recipe)
    done = {name: SimpleNamespace(stage=name, steps=3, loss=1.5, seconds=61.2) for name in ("pretrain", "instruct")}
    trained = calls("aligngpt.training.run.train", [done["pretrain"]])
    ended = aligngpt_command("train", "r.yaml", "--stage", "pretrain", "--set", "seed=1", "--set", "output=x")
    following = f"next: aligngpt train {Path('runs/mine/recipe.yaml')} --stage instruct\n"
    assert ended == (0, f"pretrain: 3 steps, loss 1.500, 61 s\n{following}", "")
    assert read[0][0] == (Path("r.yaml"), ["seed=1", "output=x"])
    assert trained[0][0][1] == ("pretrain",)

    rejects = Path("runs/mine/pretrain/rejects.jsonl")
    rejects.parent.mkdir(parents=True)
    rejects.write_text("".join(f'{{"reason": "{reason}"}}\n' for reason in ("no_answer", "missing", "missing")))
    trained = calls("aligngpt.training.run.train", list(done.values()))
    ended = aligngpt_command("train", "r.yaml")
    skipped = f"3 records skipped (missing 2, no_answer 1); {rejects} lists all of them"
    assert ended.out.splitlines()[1] == f"pretrain: {skipped}"
    assert trained[0][0][1] == ("pretrain", "instruct")
    model = Path("runs/mine/model")
    assert ended.out.splitlines()[-4:] == [
        f"model: {model}",
        f'ask: aligngpt ask {model} IMAGE "QUESTION" --show-alignment',
        f"measure: aligngpt evaluate {model} QUESTIONS.json --image-root 'my images' "
        f"--out {Path('runs/mine/evaluation/test')}",
        "then: aligngpt report runs/mine",
    ]

    plans = [SimpleNamespace(text=lambda: "a plan", problems=())]
    calls("aligngpt.training.dry_run.plan", plans)
    assert aligngpt_command("train", "r.yaml", "--dry-run") == (0, "a plan\n", "")
    plans[0].problems = ("the files look swapped",)
    assert aligngpt_command("train", "r.yaml", "--dry-run") == (3, "a plan\n", "")

    calls("aligngpt.training.feed.source_checks.source_problems", [])
    prepared = calls("aligngpt.training.feed.datasets.prepare_data", 12_000)
    recipe.stage = lambda name: name == "pretrain" or None
    assert aligngpt_command("train", "r.yaml", "--prepare") == (0, "pretrain: 12,000 samples are prepared\n", "")
    assert prepared == [((recipe, "pretrain"), {})]

    ran = calls("aligngpt.quickstart.pipeline.run_quickstart")
    assert aligngpt_command("quickstart", "--minutes", "2.5", "--out", "here", "--seed", "4").code == 0
    assert ran.pop() == ((Path("here"),), {"minutes": 2.5, "seed": 4, "data": "easy-vqa", "material": None})
    assert aligngpt_command("quickstart", "--data", "scenes", "--material", "pypi").code == 0
    assert ran.pop() == ((None,), {"minutes": None, "seed": 0, "data": "scenes", "material": "pypi"})
    assert aligngpt_command("quickstart", "--data", "coco").code == 2 and not ran


def test_check_tells_by_its_exit_code_whether_records_would_be_rejected(
    aligngpt_command: Command, questions: Path, tmp_path: Path
) -> None:
    ended = aligngpt_command("check", questions, "--json", "found.json")
    assert ended.code == 0
    assert ended.out.startswith(f"{questions}: all 300 records can be used\n")
    assert ended.out.endswith("\nproblems: found.json\n")
    assert json.loads(Path("found.json").read_text(encoding="utf-8"))["files"][0]["samples"] == 300
    (tmp_path / "red.png").rename(tmp_path / "red.PNG")
    ended = aligngpt_command("check", questions, questions)
    assert ended.code == 3 and "error" not in ended.error
    assert ended.out.count(f"{questions}: 300 of 300 records would be rejected\n") == 2
    assert "red.png does not exist, but found red.PNG" in ended.out


def test_check_hands_its_options_on(aligngpt_command: Command, calls: Callable) -> None:
    found = [SimpleNamespace(text=lambda: "looked at", good=True)]
    plain = calls("aligngpt.checking.files.check_files", found)
    options = ["--image-root", "i", "--levels", "4", "--full"]
    expected = {"image_root": Path("i"), "levels": 4, "full": True}
    assert aligngpt_command("check", "a.json", "b.json", *options).out == "looked at\n"
    assert plain == [(([Path("a.json"), Path("b.json")],), expected)]
    by_model = calls("aligngpt.checking.for_training.check_for_model", found)
    assert aligngpt_command("check", "a.json", "--model", "m", *options).code == 0
    assert by_model == [(([Path("a.json")], "m"), expected)]
    read = calls("aligngpt.training.recipe.load_recipe", "a recipe")
    by_recipe = calls("aligngpt.checking.for_training.check_for_recipe", found)
    assert aligngpt_command("check", "a.json", "--recipe", "r.yaml", "--stage", "pretrain", *options).code == 0
    assert read == [((Path("r.yaml"),), {})]
    assert by_recipe == [(([Path("a.json")], "a recipe", "pretrain"), expected)]


def test_merge_hands_its_options_on(aligngpt_command: Command, calls: Callable) -> None:
    merged = calls("aligngpt.model.adapters.merge_adapter", 1234)
    assert aligngpt_command("merge", "adapter", "out") == (0, "1,234 parameters: out\n", "")
    assert aligngpt_command("merge", "adapter", "out", "--base", "owner/name").code == 0
    assert merged == [((Path("adapter"), Path("out")), {"base": base}) for base in (None, "owner/name")]


def test_evaluate_hands_its_options_on(aligngpt_command: Command, calls: Callable) -> None:
    asked = calls("aligngpt.evaluation.accuracy.evaluate_file", EvaluationResult(Tally(3, 4)))
    options = ["--limit", "4", "--shuffle-images", "--batch-size", "2", "--seed", "9", "--device", "cpu"]
    options += ["--base", "b", "--precision", "float32"]
    ended = aligngpt_command("evaluate", "m", "q.json", "--out", "o", "--image-root", "i", *options)
    assert "75.0%  (3/4" in ended.out and f"results: {Path('o/results.json')}" in ended.out
    expected = {"limit": 4, "shuffle_images": True, "batch_size": 2, "seed": 9, "device": "cpu"}
    expected |= {"base": "b", "precision": "float32"}
    assert asked == [(("m", Path("q.json")), expected | {"out": Path("o"), "image_root": Path("i")})]


def test_evaluate_warns_of_the_questions_of_the_training(aligngpt_command: Command, calls: Callable) -> None:
    for trained_on in (False, True):
        asked = AskedAbout("m", "q.json", ".", False, trained_on=trained_on)
        calls("aligngpt.evaluation.accuracy.evaluate_file", EvaluationResult(Tally(3, 4), asked=asked))
        ended = aligngpt_command("evaluate", "m", "q.json", "--out", "o")
        warned = "warning: these are the questions that the model was trained on" in ended.error
        assert ended.code == 0 and warned == trained_on


def test_evaluate_refuses_a_seed_that_does_nothing(aligngpt_command: Command, calls: Callable) -> None:
    asked = calls("aligngpt.evaluation.accuracy.evaluate_file", EvaluationResult(Tally(3, 4)))
    ended = aligngpt_command("evaluate", "m", "q.json", "--out", "o", "--seed", "9")
    assert ended.code == 2 and "--seed does nothing without --limit" in " ".join(ended.error.split())
    assert not asked
    assert aligngpt_command("evaluate", "m", "q.json", "--out", "o").code == 0
    assert asked[0][1]["seed"] == 0


def test_evaluate_says_how_it_judges_and_shows_wrong_answers(
    aligngpt_command: Command, model_folder: Path, questions: Path
) -> None:
    Path("run/pretrain").mkdir(parents=True)
    ended = aligngpt_command("evaluate", "model", questions, "--out", "run/evaluation/test", "--device", "cpu")
    assert ended.code == 0 and "judged by comparison: an answer is right if it equals an accepted answer" in ended.out
    assert ended.out.count("  expected “") == 3 and ", given " in ended.out
    assert ended.out.endswith("\nnext: aligngpt report run\n")


def test_ask_hands_its_options_on(aligngpt_command: Command, calls: Callable) -> None:
    asked = calls("aligngpt.inference.ask.ask", iter(["re", "d"]))
    options = ["--base", "b", "--show-alignment", "--level", "2", "--max-new-tokens", "5", "--device", "cpu"]
    options += ["--precision", "float32"]
    assert aligngpt_command("ask", "m", "p.png", "what ?", *options) == (0, "red\n", "")
    expected = {"base": "b", "show_alignment": True, "level": 2, "max_new_tokens": 5, "device": "cpu"}
    expected["precision"] = "float32"
    assert asked == [(("m", Path("p.png"), "what ?"), expected)]


def test_a_model_is_asked_evaluated_and_reported(
    aligngpt_command: Command, model_folder: Path, questions: Path, tmp_path: Path
) -> None:
    options = ["--max-new-tokens", "6", "--device", "cpu"]
    plain = aligngpt_command("ask", "model", "red.png", "what colour is it ?", *options)
    assert plain.code == 0 and plain.out.strip()
    assert plain.error == "\ncut off after 6 tokens; --max-new-tokens sets the limit\n"
    shown = aligngpt_command("ask", "model", "red.png", "what colour is it ?", "--show-alignment", *options)
    assert shown.out.startswith(plain.out + "alignment: level 8 (the whole image) and a mix of")
    forced = aligngpt_command("ask", "model", "red.png", "what ?", "--show-alignment", "--level", "9", *options)
    assert forced.code == 1 and forced.out == "" and "1…8" in forced.error

    out = Path("run/evaluation/test")
    ended = aligngpt_command("evaluate", "model", questions, "--out", out, "--limit", "3", "--device", "cpu")
    assert ended.code == 0 and "all questions" in ended.out and "/3, 95 % interval" in ended.out
    assert f"predictions: {out / 'predictions.jsonl'}\nresults: {out / 'results.json'}\n" in ended.out
    assert aligngpt_command("report", "run") == (0, f"{Path('run/report.html')}\n", "")
    assert "AlignGPT: run" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


HEAVY = ("torch", "transformers", "datasets", "pyarrow", "peft", "matplotlib", "ray")

RIGHT_AWAY: dict[str, tuple[list[str], str]] = {
    "help": (["--help"], ""),
    "help of a verb": (["train", "--help"], ""),
    "version": (["--version"], ""),
    "no recipe": (["train", "resipe.yaml"], "did you mean recipe.yaml?"),
    "misspelt key": (["train", "recipe.yaml"], "instruct.epoch: unknown; did you mean epochs?"),
    "misspelt value": (["train", "recipe.yaml"], "instruct.schedule: Input should be 'cosine', 'linear' or 'constant'"),
    "misspelt setting": (["train", "recipe.yaml", "--set", "seeds=1"], "seeds: unknown; did you mean seed?"),
    "tower": (["train", "good.yaml"], "the vision tower none/tower/x cannot be loaded: no such file"),
    "recipe to check for": (["check", "a.json", "--recipe", "recipe.yaml"], "did you mean epochs?"),
    "pairs": (["score", "pair.csv", "--model", "m", "--out", "s"], "did you mean pairs.csv?"),
    "scorer": (["score", "pairs.csv", "--model", "./none", "--out", "s"], "./none cannot be loaded"),
    "scores": (["levels", "scors", "--out", "l.parquet"], "the scores scors cannot be read: no such file or folder"),
    "picture": (["ask", "m", "none.png", "what ?"], "none.png does not exist"),
    "model": (["ask", "./none", "red.png", "what ?"], "the model ./none cannot be loaded: no such file or folder"),
    "offline": (["ask", "owner/name", "red.png", "what ?"], "HF_HUB_OFFLINE is set"),
    "questions": (["evaluate", "m", "none.json", "--out", "e"], "the questions none.json cannot be read"),
    "evaluated model": (["evaluate", "./none", "pairs.csv", "--out", "e"], "./none cannot be loaded"),
    "empty data": (["init", ""], "the data '' cannot be read: the path is empty; give a file"),
    "empty captions": (["init", "--captions", ""], "the data '' cannot be read: the path is empty; give a file"),
    "run": (["report", "none"], "the run none cannot be read: no such file or folder; give a run folder"),
    "adapter": (["merge", "none", "out"], "the adapter none cannot be read"),
    "published model": (["convert", "none", "--out", "out"], "the model none cannot be read"),
    "address to write": (
        ["score", "pairs.csv", "--model", "m", "--out", "s3://bucket/s"],
        "s3://… cannot be written to",
    ),
    "address to convert to": (["convert", "m", "gs://bucket/m"], "give a folder or file on this machine, and upload"),
    "address of a run": (
        ["train", "good.yaml", "--set", "output=s3://bucket/run"],
        "output: an address such as s3://…",
    ),
    "address of a page": (["report", "m", "--out", "https://host/p?sign=x"], "https://… cannot be written to"),
    "address of a study": (["study", "report", "plan.yaml", "--out", "s3://b/p"], "s3://… cannot be written to"),
    "two folders": (["merge", "m", "a", "--out", "b"], "given twice"),
    "no shipped recipe": (["recipe", "aligngpt7b"], "did you mean aligngpt-7b?"),
    "list of recipes": (["recipe"], ""),
    "cache": (["cache"], ""),
}


@pytest.mark.parametrize("case", RIGHT_AWAY)
def test_wrong_arguments_are_reported_before_the_heavy_libraries_are_imported(tmp_path: Path, case: str) -> None:
    """They take seconds to import; a mistyped argument must not wait for them."""
    recipe = "{model: {vision_tower: none/tower/x, language_model: m}, output: here, "
    stage = "instruct: {data: d, train: [gate], batch_size: 2, learning_rate: 1"
    (tmp_path / "good.yaml").write_text(recipe + stage + "}}", encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(recipe + stage + ", epoch: 1, schedule: cosin}}", encoding="utf-8")
    (tmp_path / "pairs.csv").write_text("image,caption\nred.png,red\n", encoding="utf-8")
    (tmp_path / "m").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "red.png")
    arguments, said = RIGHT_AWAY[case]
    program = (
        f"import sys; sys.argv = ['aligngpt', *{arguments!r}]\n"
        "from aligngpt.cli import main\n"
        f"try: main()\nfinally: print('imported:', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"ALIGNGPT_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert said in " ".join(ended.stderr.replace("│", " ").split())
    assert bool(said) == (ended.returncode != 0)
    assert ended.stdout.splitlines()[-1] == "imported:"


def test_the_command_line_imports_nothing_heavy_at_the_top() -> None:
    for file in Path(cli.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
        imported |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        ours = {name for name in imported if name.startswith("aligngpt") and not name.startswith("aligngpt.cli")}
        light = {
            f"aligngpt.{name}" for name in ("endings", "errors", "hub_names", "loopback", "printing", "progress")
        } | {"aligngpt"}
        assert ours <= light, file
        assert not imported & {"torch", "transformers", "numpy", "matplotlib"}, file


@pytest.mark.parametrize("names", [("--ray-address", "--ray-actors"), ("--address", "--actors")])
def test_ray_options_are_handed_on_by_their_former_names_too(
    aligngpt_command: Command, calls: Callable, names: tuple[str, str]
) -> None:
    calls("aligngpt.data.records.pairs.open_pairs", PAIRS)
    scored = calls("aligngpt.scoring.ray.engine.score_on_ray", ScoreSummary(7, 0, {}, True))
    command = ["score", "owner/name", "--model", "clip", "--out", "scores"]
    options = [names[0], "10.0.0.1:6379", names[1], "3", "--gpus-per-actor", "0.5"]
    ended = aligngpt_command(*command, "--engine", "ray", *options)
    assert (ended.code, ended.error) == (0, "")
    assert ended.out.startswith("7 pairs scored, 0 rejected: scores\n")
    [(_, handed)] = scored
    assert (handed["address"], handed["actors"], handed["gpus_per_actor"]) == ("10.0.0.1:6379", 3, 0.5)
    ended = aligngpt_command(*command, *options)
    assert ended.code == 2 and "require --engine ray" in ended.error


@pytest.mark.medium
def test_ctrl_c_in_the_middle_loses_nothing(
    aligngpt_command: Command, model_folder: Path, questions: Path, tmp_path: Path
) -> None:
    predictions = tmp_path / "out" / "predictions.jsonl"
    arguments = ["evaluate", model_folder, questions, "--out", tmp_path / "out", "--device", "cpu"]
    code = "from aligngpt.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments), "--batch-size", "1"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        give_up = time.monotonic() + 90
        while not predictions.exists() or predictions.stat().st_size < 1000:
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGINT)
        out, error = child.communicate(timeout=60)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    assert (child.returncode, out) == (130, "")
    assert error.strip() == "stopped; the same command resumes where it stopped"
    answered = predictions.read_bytes().splitlines()
    assert 0 < len(answered) < 300
    assert aligngpt_command(*arguments).code == 0
    assert predictions.read_bytes().splitlines()[: len(answered)] == answered
    assert len(predictions.read_bytes().splitlines()) == 300


def test_a_shipped_recipe_is_listed_printed_and_written(aligngpt_command: Command) -> None:
    listed = aligngpt_command("recipe")
    assert listed.code == 0
    assert re.search(r"^aligngpt-7b +AlignGPT-7B \(arXiv 2405\.14129\)", listed.out, flags=re.MULTILINE)
    printed = aligngpt_command("recipe", "aligngpt-13b")
    assert printed.code == 0 and printed.out.startswith("# AlignGPT-13B")
    assert aligngpt_command("recipe", "aligngpt-13b", "--out", "my.yaml") == (0, "recipe: my.yaml\n", "")
    assert Path("my.yaml").read_text(encoding="utf-8") == printed.out
    again = aligngpt_command("recipe", "aligngpt-7b", "--out", "my.yaml")
    assert again.code == 1 and "my.yaml exists already" in again.error
    assert Path("my.yaml").read_text(encoding="utf-8") == printed.out
    assert aligngpt_command("recipe", "--out", "my.yaml").code == 2


@pytest.mark.parametrize("options", [["out"], ["--out", "out"]])
def test_the_folder_to_write_is_an_argument_or_an_option(
    aligngpt_command: Command, calls: Callable, options: list[str]
) -> None:
    merged = calls("aligngpt.model.adapters.merge_adapter", 1000)
    assert aligngpt_command("merge", "adapter", *options) == (0, "1,000 parameters: out\n", "")
    assert merged == [((Path("adapter"), Path("out")), {"base": None})]
    original = calls("aligngpt.model.foreign.conversion.to_original", 2000)
    ended = aligngpt_command("convert", "model", *options, "--to-original", "--vision-tower", "owner/name")
    assert ended == (0, "2,000 parameters: out\n", "")
    assert original == [((Path("model"), Path("out")), {"vision_tower": "owner/name"})]
    assert aligngpt_command("merge", "adapter").code == 2


def test_the_cache_is_shown_and_cleared_after_a_question(
    aligngpt_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))
    assert aligngpt_command("cache").out == f"cache: {tmp_path / 'cache'}\nempty\n"
    entry = tmp_path / "cache" / "samples" / ("a" * 64) / "samples.arrow"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b"0" * 1500)
    shown = f"cache: {tmp_path / 'cache'}\nsamples: 1 entries, 1.5 KB\n"
    assert aligngpt_command("cache") == (0, shown, "")
    monkeypatch.setattr("typer.confirm", lambda _: False)
    assert aligngpt_command("cache", "--clear").code == 1 and entry.exists()
    monkeypatch.setattr("typer.confirm", lambda _: True)
    ended = aligngpt_command("cache", "--clear")
    assert ended.out == shown + "removed: 1 of 1 entries, 1.5 KB\n" and not entry.parent.exists()
    assert aligngpt_command("cache", "--clear", "--trim", "1GB").code == 2
