"""The page of the study is made from the results in the repository, to the last byte."""

import re
import shutil
from pathlib import Path

from typer.testing import CliRunner

from aligngpt.cli import app

ROOT = Path(__file__).parents[2]
PLAN, RESULTS = ROOT / "recipes" / "studies" / "levels.yaml", ROOT / "studies" / "levels" / "results.parquet"


def test_the_findings_are_made_anew_from_the_results(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docs" / "findings.md", tmp_path)
    ran = CliRunner().invoke(app, ["study", "report", str(PLAN), "--results", str(RESULTS), "--out", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    made = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*.*")}
    assert len(made) > 3
    for name, path in made.items():
        assert path.read_bytes() == (ROOT / "docs" / name).read_bytes(), (
            f"{name}: run the command that findings.md gives"
        )
    kept = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs" / "images").glob("findings-*")}
    assert kept == {name for name in made if name.parts[0] == "images"}


def test_what_follows_has_the_numbers_of_the_results() -> None:
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    written, results = page.split("## What follows")[1].split("## Results")
    # Bounds and p-values below which something lies stand in the text of the page only.
    numbers = set(re.findall(r"(?<!p < )[−+]?\d+\.\d{2,3}(?!\d)", written)) - {"0.02"}
    assert len(numbers) > 20
    assert not [number for number in sorted(numbers) if number not in results]
