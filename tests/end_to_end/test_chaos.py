"""A command that is killed anywhere and run again ends as one that nothing happened to.

Each sequence of kills is drawn from a seed, which its name and its output tell. `CHAOS_KILLS=500` makes it that many
kills a kind of run, and `CHAOS_SEED=7` others.
"""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chaos_tools import ACTIONS, LONGEST, Ended, Run, Server, run_alone
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_scorers import CAPTION_WORDS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux"),
]

KILLS = int(os.environ.get("CHAOS_KILLS", "6"))
"""Of a kind of run."""
SEED = int(os.environ.get("CHAOS_SEED", "0"))
MOST_IN_A_ROW = 3
SAID = {1, 130, 143}
"""Exit codes of a command that says why it ends, in a line."""
KILLED = {-signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM}
"""The signals that end a program have no one to hear them while it starts."""
TIMED = (
    "seconds",
    "tokens_per_second",
    "waiting",
    "peak_device_gb",
    "peak_device_memory",
    "tflops_per_second",
    "mfu",
    "peak_memory",
)

KINDS: dict[str, dict[str, Any]] = {
    "padded": {"packing": "padded", "micro_batch_size": 2},
    "packed-workers": {"packing": "packed", "workers": 2},
    "merged": {"lora": {"rank": 2}, "cache_features": True, "questions_per_prefix": 2},
    "adapters": {"lora": {"rank": 2, "merge": False}, "packing": "packed"},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, one of them cut short and one missing, with captions, levels and questions."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    captions, questions = [], []
    for place in range(12):
        name = f"{place}.png"
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
        caption = " ".join(generator.choice(CAPTION_WORDS, size=generator.integers(1, 8)))
        captions.append({"id": str(place), "image": name, "caption": caption, "similarity": place % 8})
        questions.append({"id": str(place), "image": name, "question": "what colour is it ?", "answer": "red"})
        questions.append({"id": f"{place}b", "image": name, "question": "is it red ?", "answer": "no"})
    questions.append({"question": "describe a circle please", "answer": "it is big"})
    # Its header can be read, so that it is found only by what decodes it.
    cut = (folder / "9.png").read_bytes()
    (folder / "9.png").write_bytes(cut[: len(cut) // 2])
    (folder / "11.png").unlink()
    for name, records in (("captions", captions), ("questions", questions)):
        (folder / f"{name}.json").write_text(json.dumps(records))
    return folder


def recipe_of(kind: str, data: Path, language: Path, tower: Path) -> dict[str, Any]:
    common = {"max_steps": 7, "batch_size": 4, "learning_rate": 0.01, "precision": "float32", "log_steps": 3}
    common |= {"checkpoint_minutes": 1e-9, "max_reject_share": 0.5}
    changes = KINDS[kind]
    of_pretraining = {name: value for name, value in changes.items() if name != "lora"}
    return {
        "model": {"vision_tower": str(tower), "language_model": str(language)},
        "pretrain": common
        | of_pretraining
        | {"data": str(data / "captions.json"), "train": ["projector", "level_table"], "chat_template": "plain"},
        "instruct": common
        | changes
        | {"data": str(data / "questions.json"), "train": ["language_model", "projector", "gate"]},
        "output": "run",
    }


def left_in(folder: Path) -> dict[str, Any]:
    """What is in a folder, by path: JSON without what is measured in time, other files as they are."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name == "printed.txt" or path.name.startswith(".lock"):
            continue
        content = path.read_bytes()
        if path.name in ("metrics.jsonl", "stage.json"):
            lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
            found[name] = [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]
        elif path.name == "rejects.jsonl":
            found[name] = sorted(content.decode().splitlines())
        elif path.name == "README.md":
            # The card says how long training took.
            found[name] = None
        elif path.suffix == ".safetensors":
            # The header has its entries in any order.
            with safe_open(path, "numpy") as file:
                found[name] = {key: file.get_tensor(key).tobytes() for key in file.keys()} | (file.metadata() or {})  # noqa: SIM118
        else:
            # An adapter names its base by the whole path.
            found[name] = content.replace(str(folder).encode(), b"")
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    lost = [f"{name} is missing" for name in theirs.keys() - ours.keys()]
    lost += [f"{name} is left behind" for name in ours.keys() - theirs.keys()]
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            is_text = isinstance(ours[name], list)
            lost.append(f"{name} differs" + (f": {ours[name]} and not {theirs[name]}" if is_text else ""))
    return sorted(lost)


def assert_a_model(folder: Path) -> None:
    """A model folder is whole: every file can be read and the weights are there."""
    assert (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file(), folder
    weights = list(folder.glob("*.safetensors"))
    assert weights, folder
    for path in weights:
        assert load_file(path)
    for path in folder.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


class Chaos:
    """Kills of one command, and what must be so after each.

    Args:
        server: runs the command.
        root: folder of all its runs.
        arguments: of the command, which writes below the folder it runs in.
        prepare: makes that folder what it is before the command.
        workers: the command has worker processes.
        afterwards: another command, which reads what this one left.
    """

    def __init__(
        self,
        server: Server,
        root: Path,
        arguments: list[str],
        prepare: Callable[[Path], None] = lambda folder: None,
        *,
        workers: bool = False,
        afterwards: list[str] | None = None,
    ) -> None:
        self.server, self.root, self.arguments, self.prepare, self.workers = server, root, arguments, prepare, workers
        self.afterwards = afterwards
        self.whole_folder = self.new_folder("whole")
        self.steps, self.seconds = 0, float("inf")
        ended = self.run_whole(self.whole_folder)
        assert ended.code == 0, ended.printed
        self.steps = ended.steps
        self.whole = left_in(self.whole_folder)
        self.done = 0

    def run_whole(self, folder: Path) -> Ended:
        """Run the command undisturbed, and what follows it."""
        ended = self.run(folder)
        # The first run finds nothing in the memory of the system.
        self.seconds = min(self.seconds, ended.seconds)
        if ended.code == 0 and self.afterwards is not None:
            ended = replace(self.server.run(Run(self.afterwards, str(folder))), steps=ended.steps)
        return ended

    def new_folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True)
        self.prepare(folder)
        return folder

    def run(self, folder: Path, **changes: Any) -> Ended:
        return self.server.run(self.described(folder, **changes))

    def described(self, folder: Path, **changes: Any) -> Run:
        environment = {"ALIGNGPT_CACHE": str(folder / "cache")}
        return Run(self.arguments, str(folder), environment=environment, **changes)

    def draw(self, dice: random.Random) -> dict[str, Any]:
        """What happens to a run: at a step of the disk mostly, else at a moment."""
        kind = dice.random()
        if self.workers and kind < 0.2:
            return {"worker": dice.uniform(0, self.seconds)}
        if kind < 0.4:
            return {"after": dice.uniform(0, 1) * self.seconds, "action": dice.choice(ACTIONS[:3])}
        action = dice.choices(ACTIONS, (5, 1, 1, 1))[0]
        # The last steps are those that leave the result.
        last = self.steps + 1
        return {"at": dice.randint(1 if dice.random() < 0.7 else last * 4 // 5, last), "action": action}

    def sequence(self, seed: str) -> list[str]:
        """Run the command, killed several times in a row and then not, and compare; returns what is wrong."""
        dice = random.Random(seed)
        folder = self.new_folder(seed.replace(" ", "-"))
        log, found = [f"seed {seed}"], []
        for _ in range(dice.randint(1, MOST_IN_A_ROW)):
            drawn = self.draw(dice)
            had = {name for name in ("model", "base") if (folder / "run" / name).exists()}
            ended = self.run(folder, **drawn)
            self.done += 1
            log.append(f"{drawn}: exit code {ended.code} after {ended.steps} steps, the last {ended.last}")
            for name in ("model", "base"):
                place = folder / "run" / name
                if name in had or place.exists():
                    assert place.is_dir(), f"{log}: {name} is gone"
                    assert_a_model(place)
            if (ended.code in SAID and "Traceback" in ended.printed) or ended.code not in SAID | KILLED | {0}:
                found.append(f"it ended with {ended.printed[-1000:]}")
            if ended.seconds > LONGEST:
                found.append(f"it hung: {ended.printed[-1000:]}")
        ended = self.run_whole(folder)
        if ended.code != 0:
            found.append(f"exit code {ended.code}: {ended.printed[-3000:]}")
        found += differences(left_in(folder), self.whole)
        print("\n  ".join(log))
        if not found:
            shutil.rmtree(folder)
        return [*log, *found] if found else []

    def check(self, name: str, kills: int) -> None:
        """Do as many sequences as `kills` fill.

        Raises:
            AssertionError: a run that was killed left something else; names the seeds.
        """
        wrong, number = [], 0
        while self.done < kills:
            if found := self.sequence(f"{name} {SEED} {number}"):
                wrong.append("\n  ".join(found))
            number += 1
        assert not wrong, "\n\n".join(wrong)


@pytest.fixture
def chaos_of_training(
    server: Server, data: Path, tmp_path: Path, language_folder: Callable[[str], Path], tower_folder: Callable
) -> Callable[..., Chaos]:
    def make(kind: str, prepare: Callable[[Path], None] = lambda folder: None) -> Chaos:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(json.dumps(recipe_of(kind, data, language_folder("qwen2"), tower_folder("clip"))))
        return Chaos(server, tmp_path, ["train", str(recipe)], prepare, workers="workers" in KINDS[kind])

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_training_that_is_killed_anywhere_ends_as_if_nothing_was(
    chaos_of_training: Callable[..., Chaos], kind: str
) -> None:
    chaos_of_training(kind).check(kind, KILLS)


@pytest.mark.parametrize("kind", ["padded", "adapters"])
def test_a_model_that_is_trained_again_is_there_at_every_moment(
    chaos_of_training: Callable[..., Chaos], tmp_path: Path, kind: str
) -> None:
    """The stage's folder is removed, as the command advises whoever wants to train again; the model stays."""
    older = chaos_of_training(kind).whole_folder

    def trained(folder: Path) -> None:
        shutil.copytree(older, folder, dirs_exist_ok=True)
        shutil.rmtree(folder / "run" / "instruct")

    shutil.move(older, tmp_path / "older")
    older = tmp_path / "older"
    chaos_of_training(kind, trained).check(f"again {kind}", KILLS)


def test_scores_that_are_killed_anywhere_end_as_if_nothing_was(
    server: Server, data: Path, tmp_path: Path, scorer_folder: Callable[[str], Path]
) -> None:
    """Three pairs a shard, and a batch that shards share nothing of; the levels are those of the same borders."""
    arguments = ["score", str(data / "captions.json"), "--model", str(scorer_folder("clip")), "--out", "scores"]
    arguments += ["--shard-size", "3", "--workers", "0", "--device", "cpu", "--precision", "float32"]
    arguments += ["--max-reject-share", "0.5", "--batch-size", "2", "--embeddings"]
    afterwards = ["levels", "scores", "--source", str(data / "captions.json"), "--levels", "3", "--out", "levels.json"]
    chaos = Chaos(server, tmp_path, arguments, afterwards=afterwards)
    assert sum(name.startswith("scores/part-") for name in chaos.whole) == 4 and "levels.json" in chaos.whole
    chaos.check("score", 3 * KILLS)


def test_a_command_of_its_own_is_killed_like_a_forked_one(
    server: Server, data: Path, tmp_path: Path, language_folder: Callable[[str], Path], tower_folder: Callable
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_of("packed-workers", data, language_folder("qwen2"), tower_folder("clip"))))
    chaos = Chaos(server, tmp_path, ["train", str(recipe)])
    folder = chaos.new_folder("alone")
    dice = random.Random(f"alone {SEED}")
    for _ in range(2):
        at = dice.randint(chaos.steps // 4, chaos.steps // 2)
        print(f"seed alone {SEED}: killed at step {at}")
        assert run_alone(chaos.described(folder, at=at)).code == -signal.SIGKILL
    ended = run_alone(chaos.described(folder))
    assert ended.code == 0, ended.printed
    assert differences(left_in(folder), chaos.whole) == []
