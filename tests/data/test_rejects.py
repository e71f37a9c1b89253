"""Unusable records are counted and written to a file, and end the job only above a maximum share."""

import json
from pathlib import Path

import pytest

from aligngpt.data.rejects import Rejects, TooManyRejects
from aligngpt.errors import AlignGPTError


def test_rejects_are_counted_by_reason() -> None:
    with Rejects(None) as rejects:
        assert rejects.count == 0
        for number, reason in enumerate(["missing", "level", "missing"]):
            rejects.add(number, None, reason, "")
    assert rejects.count == 3
    assert rejects.by_reason == {"missing": 2, "level": 1}


def test_each_reject_is_a_line_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rejects.jsonl"
    rejects = Rejects(path)
    expected = []
    for number, id in enumerate(["ü猫", None, "\ud83d"]):
        rejects.add(number, id, "missing", f"a.jpg\nof {id} is gone")
        expected.append({"record": number, "id": id, "reason": "missing", "detail": f"a.jpg\nof {id} is gone"})
        assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == expected
    assert "ü猫" in path.read_text(encoding="utf-8")


def test_a_job_without_rejects_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "rejects.jsonl"
    path.write_text("of an older job")
    with Rejects(path) as rejects:
        rejects.check(100)
    assert not path.exists()


def test_an_older_file_is_replaced_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "rejects.jsonl"
    for id in ("old", "new"):
        with Rejects(path) as rejects:
            rejects.add(0, id, "missing", "")
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["new"]


def test_rejects_without_a_file_write_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Rejects(None) as rejects:
        rejects.add(0, None, "missing", "")
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_job_passes_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Rejects(tmp_path / "rejects.jsonl") as rejects:
        rejects.add(0, None, "missing", "")
        raise KeyError
    assert (tmp_path / "rejects.jsonl").is_file()


@pytest.mark.parametrize(
    ("bad", "total", "limit", "too_many"),
    [(5, 100, 0.05, False), (6, 100, 0.05, True), (0, 10, 0.0, False), (1, 10, 0.0, True), (10, 10, 1.0, False)],
)
def test_a_share_above_the_limit_ends_the_job(bad: int, total: int, limit: float, too_many: bool) -> None:
    rejects = Rejects(None, max_share=limit)
    for number in range(bad):
        rejects.add(number, None, "missing", "")
    if too_many:
        with pytest.raises(TooManyRejects, match=f"^{bad} of {total} records cannot be used"):
            rejects.check(total)
    else:
        rejects.check(total)


def test_the_default_limit_is_one_record_in_twenty() -> None:
    rejects = Rejects(None)
    rejects.add(0, None, "missing", "")
    rejects.check(20)
    with pytest.raises(TooManyRejects):
        rejects.check(19)


def test_no_records_at_all_are_not_too_many_rejects() -> None:
    Rejects(None, max_share=0.0).check(0)


def test_the_error_names_shares_reasons_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rejects.jsonl"
    with Rejects(path) as rejects:
        for reason, count in {"missing": 1, "level": 4, "empty": 3, "truncated": 2}.items():
            for number in range(count):
                rejects.add(number, None, reason, "")
        with pytest.raises(AlignGPTError) as caught:
            rejects.check(40)
    message = str(caught.value)
    assert message.startswith("10 of 40 records cannot be used (25.0%; the limit is 5.0%)")
    assert f"level 4, empty 3, truncated 2; {path} lists them all" in message
    assert "image root" in message and "missing 1" not in message
    assert message.endswith("allow a larger share: --max-reject-share, or max_reject_share in a recipe")


def test_rejects_can_be_kept_elsewhere_later(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text("from another job\n")
    with Rejects(tmp_path / "new.jsonl") as rejects:
        rejects.add(0, "a", "missing", "gone")
        rejects.move(tmp_path / "old.jsonl")
        rejects.add(1, "b", "missing", "gone")
    assert [json.loads(line)["id"] for line in (tmp_path / "old.jsonl").read_text().splitlines()] == ["a", "b"]
    assert not (tmp_path / "new.jsonl").exists()


def test_moved_without_any_an_older_file_is_gone(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text("from another job\n")
    Rejects(tmp_path / "new.jsonl").move(tmp_path / "old.jsonl")
    assert not (tmp_path / "old.jsonl").exists()
