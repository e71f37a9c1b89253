"""`aligngpt init`: over a pipe and on a terminal, it writes a recipe that loads and can be planned, or nothing."""

import json
import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from aligngpt.starting.asking import Asker
from aligngpt.starting.machine import this_machine
from aligngpt.starting.making import Given, make_new_recipe
from aligngpt.starting.output import StartError
from aligngpt.training.dry_run import plan
from aligngpt.training.recipe import load_recipe

COMMAND = [sys.executable, "-m", "aligngpt", "init"]


def given(data: Path, **changes: object) -> Given:
    values = {"captions": data / "captions.json", "questions": data / "questions.json", "device": "cpu", "memory": 8.0}
    return Given(**values | changes)  # type: ignore[arg-type]


def asker() -> Asker:
    return Asker(interactive=False, defaults=True)


@pytest.fixture
def tiny(language_folder: Callable[[str], Path], tower_folder: Callable[[str], Path]) -> dict[str, str]:
    return {"tower": str(tower_folder("clip")), "language": str(language_folder("llama_wide"))}


def commented(text: str) -> bool:
    return all("  # " in line for line in text.splitlines() if line and not line.startswith("#"))


@pytest.mark.medium
def test_the_recipe_loads_and_its_plan_is_the_estimate(data: Path, tmp_path: Path, tiny: dict[str, str]) -> None:
    out = tmp_path / "mine.yaml"
    made = make_new_recipe(given(data, **tiny), asker(), out)
    recipe = load_recipe(out)
    plans = plan(recipe)
    assert not any(one.problems for one in plans)
    # The estimate is made with the longest samples, of which a different share counts in the loss.
    assert {one.stage: sum(one.memory) for one in plans} == pytest.approx(made.fitted.memory, rel=1e-3)
    assert recipe.model.num_levels == 8 and recipe.pretrain is not None
    assert recipe.pretrain.data == str(data / "captions.json")
    assert commented(out.read_text())
    assert made.commands == (f"aligngpt train {out} --dry-run", f"aligngpt train {out}")


@pytest.mark.medium
def test_features_are_cached_where_their_disk_has_room(
    data: Path, tmp_path: Path, tiny: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 pictures of 17 tokens of 32 values: 4 × 52 kB in float32 must be free."""
    machine = this_machine(tmp_path)
    assert machine.cache_disk is None or machine.cache_disk > 0
    taken = {}
    for free in (250_000, 150_000, None):
        own = machine._replace(device="cpu", disk=10**12, cache_disk=free)
        monkeypatch.setattr("aligngpt.starting.making.this_machine", lambda _, own=own: own)
        made = make_new_recipe(given(data, **tiny), asker(), tmp_path / "mine.yaml", force=True)
        assert made.fitted.settings.pretrain.cache_features == (free != 150_000)
        taken[free] = made.fitted.disk
    assert taken[250_000] == taken[150_000] < taken[None]


@pytest.mark.medium
def test_captions_without_levels_are_scored_first(data: Path, tmp_path: Path, tiny: dict[str, str]) -> None:
    records = [
        {"image": one["image"], "caption": one["caption"]} for one in json.loads((data / "captions.json").read_text())
    ]
    (data / "captions.json").write_text(json.dumps(records))
    made = make_new_recipe(given(data, **tiny), asker(), tmp_path / "r.yaml")
    levels = data / "captions-levels.json"
    assert yaml.safe_load((tmp_path / "r.yaml").read_text())["pretrain"]["data"] == str(levels)
    verbs = [command.split()[1] for command in made.commands]
    assert verbs == ["score", "levels", "train", "train"]
    assert f"--out {levels}" in made.commands[1]


@pytest.mark.medium
def test_a_local_tower_with_its_text_tower_scores_the_captions(
    data: Path, tmp_path: Path, tiny: dict[str, str], scorer_folder: Callable[[str], Path]
) -> None:
    records = json.loads((data / "captions.json").read_text())
    for record in records:
        del record["similarity"]
    (data / "my.captions.json").write_text(json.dumps(records))
    for tower, scorer in (
        (str(scorer_folder("clip")), str(scorer_folder("clip"))),
        (tiny["tower"], "openai/clip-vit-base-patch32"),
    ):
        changes = tiny | {"tower": tower, "captions": data / "my.captions.json"}
        made = make_new_recipe(given(data, **changes), asker(), tmp_path / "r.yaml", force=True)
        assert f"--model {scorer} --out" in made.commands[0]
        assert made.commands[1].endswith(f"--out {data / 'my.captions-levels.json'}")


@pytest.mark.slow
def test_less_memory_gives_smaller_steps_and_too_little_is_refused(data: Path, tmp_path: Path) -> None:
    """With listed names and no network."""
    names = {"tower": "google/siglip-base-patch16-224", "language": "Qwen/Qwen2.5-1.5B-Instruct", "device": "cuda"}
    ways = {}
    for memory in (80.0, 6.0):
        out = tmp_path / f"{memory}.yaml"
        made = make_new_recipe(given(data, **names | {"memory": memory}), asker(), out)
        assert max(made.fitted.memory.values()) <= 0.8 * memory * 1e9
        instruct = load_recipe(out).instruct
        assert instruct is not None
        ways[memory] = instruct
    assert ways[80.0].lora is None
    assert ways[6.0].lora is not None and (ways[6.0].lora.bits == 4 or ways[6.0].gradient_checkpointing)
    with pytest.raises(StartError, match=r"needs at least \d+\.\d GB .* smaller language model"):
        make_new_recipe(given(data, **names | {"memory": 1.0}), asker(), tmp_path / "none.yaml")
    assert not (tmp_path / "none.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"language": "Qwen/Qwen2.5-1.5B-Instuct"}, "did you mean Qwen/Qwen2.5-1.5B-Instruct?"),
        ({"language": "nobody/unheard-of-9b"}, "--language-model-like"),
        ({"language": "nobody/unheard-of-9b", "language_like": "vicuna-7b-v1.6"}, "did you mean lmsys/vicuna-7b-v1.5?"),
        ({"tower": "lmsys/vicuna-7b-v1.5"}, "is not a vision tower"),
        ({"memory": -3.0}, "not a number of gigabytes"),
        ({"device": "cdua"}, "did you mean cuda?"),
    ],
)
def test_a_wrong_value_is_a_sentence(data: Path, tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(StartError) as caught:
        make_new_recipe(given(data, **changes), asker(), tmp_path / "r.yaml")
    assert said in str(caught.value)
    assert not (tmp_path / "r.yaml").exists()


def test_files_of_one_kind_and_images_elsewhere_are_refused(data: Path, tmp_path: Path) -> None:
    both = Given(data=(data / "captions.json", data / "captions.json"))
    with pytest.raises(StartError, match="both look like captions"):
        make_new_recipe(both, asker(), tmp_path / "r.yaml")
    for picture in data.glob("*.png"):
        picture.unlink()
    with pytest.raises(StartError, match=r"none of the 12 images .* --image-root"):
        make_new_recipe(given(data), asker(), tmp_path / "r.yaml")


def test_over_a_pipe_a_missing_flag_is_named(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.yaml"
    piped = Asker(interactive=False, defaults=False)
    with pytest.raises(StartError, match=r"file of questions is missing .* no terminal; give --questions"):
        make_new_recipe(Given(captions=data / "captions.json"), piped, out)
    with pytest.raises(StartError, match="--vision-tower, or --yes for the default openai/clip-vit-base-patch32"):
        make_new_recipe(given(data), piped, out)


@pytest.mark.slow
def test_over_a_pipe_a_file_is_replaced_only_with_force(data: Path, tmp_path: Path, tiny: dict[str, str]) -> None:
    out = tmp_path / "r.yaml"
    out.write_text("mine")
    flags = [data / "captions.json", data / "questions.json", "--out", out, "--device", "cpu", "--memory", "8"]
    flags += ["--vision-tower", tiny["tower"], "--language-model", tiny["language"]]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        arguments = [*COMMAND, *map(str, flags), *more]
        return subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=tmp_path)

    refused = run()
    assert (refused.returncode, out.read_text()) == (1, "mine") and "--force" in refused.stderr
    ended = run("--force")
    assert ended.returncode == 0, ended.stderr
    assert f"aligngpt train {out} --dry-run" in ended.stdout
    assert load_recipe(out).model.language_model == tiny["language"]


class Terminal:
    """The command on a pseudo-terminal."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
        self._own, other = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=folder,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(other)
        self.seen, self._passed = "", 0

    def until(self, text: str, seconds: float = 60.0) -> None:
        """Read until a text appears after what was waited for before."""
        ends = time.monotonic() + seconds
        while (place := self.seen.find(text, self._passed)) < 0:
            assert time.monotonic() < ends, self.seen
            if select.select([self._own], [], [], 0.2)[0]:
                try:
                    heard = os.read(self._own, 4096).decode(errors="replace")
                except OSError:
                    heard = ""
                assert heard, f"ended before {text!r}: {self.seen}"
                self.seen += heard
        self._passed = place + len(text)

    def say(self, text: str) -> None:
        os.write(self._own, text.encode())


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_on_a_terminal_it_asks_until_the_answer_is_usable(data: Path, tmp_path: Path, tiny: dict[str, str]) -> None:
    terminal = Terminal(tmp_path, data / "captions.json", "--device", "cpu", "--memory", "8")
    terminal.until("file of questions: ")
    terminal.say(f"{data / 'question.json'}\n")
    terminal.until(f"did you mean {data / 'questions.json'}")
    terminal.until("file of questions: ")
    terminal.say(f"{data / 'questions.json'}\n")
    terminal.until("vision tower [openai/clip-vit-base-patch32]: ")
    terminal.say(f"{tiny['tower']}\n")
    terminal.until("language model [HuggingFaceTB/SmolLM2-135M-Instruct]: ")
    terminal.say(f"{tiny['language']}\n")
    terminal.until("aligngpt train recipe.yaml --dry-run")
    assert terminal.process.wait(60) == 0
    assert load_recipe(tmp_path / "recipe.yaml").model.vision_tower == tiny["tower"]


@pytest.mark.medium
def test_ctrl_c_at_a_question_leaves_nothing(data: Path, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, data / "captions.json")
    terminal.until("file of questions: ")
    before = sorted(tmp_path.rglob("*"))
    terminal.say("\x03")
    terminal.until("the same command starts over")
    assert terminal.process.wait(60) == 130
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.medium
def test_an_archive_of_captions_gets_its_levels_from_a_table(data: Path, tmp_path: Path, tiny: dict[str, str]) -> None:
    """The commands that are printed write what the recipe reads."""
    rows = [
        {"image": (data / record["image"]).read_bytes(), "caption": record["caption"]}
        for record in json.loads((data / "captions.json").read_text())
    ]
    archive = data / "captions.parquet"
    pq.write_table(pa.Table.from_pylist(rows), archive)
    run = str(tmp_path / "run")
    made = make_new_recipe(given(data, **tiny, captions=archive, run=run), asker(), tmp_path / "r.yaml")
    table = str(Path(run) / "levels.parquet")
    score, levels = (shlex.split(command) for command in made.commands[:2])
    assert score[:3] == ["aligngpt", "score", str(archive)]
    assert levels == ["aligngpt", "levels", f"{run}/scores", "--levels", "8", "--out", table]
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.pretrain is not None
    (source,) = recipe.pretrain.sources
    assert (source.data, source.levels) == (str(archive), table)
