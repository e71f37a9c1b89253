"""Two processes with files of their own, as two machines with their own copies of the data."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from aligngpt.training.distributed import agreement
from aligngpt.training.distributed.agreement import check_same
from aligngpt.training.recipe import Recipe, RecipeError

IN_OWN_FOLDER = """
import os
import sys
from aligngpt.cli import main
os.chdir("machine-" + os.environ["RANK"])
sys.argv[1:] = ["train", "recipe.yaml"]
main()
"""


def test_values_that_differ_are_told_with_their_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [("9 samples", "one", 1), ("8 samples", "two", 2), ("8 samples", "two", 3)]
    monkeypatch.setattr(agreement, "gather", lambda values: [*values, *others])
    monkeypatch.setattr(agreement.socket, "gethostname", lambda: "one")
    with pytest.raises(RecipeError) as caught:
        check_same("the samples", "9 samples")
    assert str(caught.value).startswith(
        "the processes differ in the samples: 9 samples in rank 0, 1 (one); 8 samples in rank 2, 3 (two). "
    )
    monkeypatch.setattr(agreement, "gather", lambda values: values * 4)
    check_same("the samples", "9 samples")


@pytest.mark.medium
def test_machines_with_other_pictures_do_not_train_together(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of("shared", instruct=None, pretrain__max_steps=3, pretrain__max_reject_share=0.5)
    assert recipe.pretrain is not None
    data = Path(str(recipe.pretrain.data))
    for rank in range(2):
        shutil.copytree(data.parent, tmp_path / f"machine-{rank}" / "data")
        content = recipe.model_dump(mode="json")
        content["pretrain"]["data"] = f"data/{data.name}"
        (tmp_path / f"machine-{rank}" / "recipe.yaml").write_text(yaml.safe_dump(content))
    lost = sorted((tmp_path / "machine-1" / "data").rglob("*.png"))[0]
    lost.unlink()
    (tmp_path / "train.py").write_text(IN_OWN_FOLDER)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "train.py"]
    ended = subprocess.run(
        [sys.executable, *launch],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert "the processes differ in the usable samples of pretrain.data:" in " ".join(ended.stdout.split()), (
        ended.stdout
    )
    assert not list((Path(recipe.output) / "pretrain").glob("metrics.jsonl"))
