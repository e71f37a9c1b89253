"""One shard: its scores are the model's, each image and caption is encoded once, and bad records affect no others."""

import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from listed_pairs import ListedPairs, draw_pictures, random_captions
from PIL import Image

from aligngpt.data.images.opening import open_image
from aligngpt.data.images.reference import Picture
from aligngpt.data.records.pairs import Pair
from aligngpt.data.sources.base import Shard
from aligngpt.scoring.batch_threads import BatchThreads
from aligngpt.scoring.encoders import PairScorer, ScorerError
from aligngpt.scoring.picture_workers import PICTURES_PER_TASK, PictureWorkers, WorkerError
from aligngpt.scoring.pipeline import score_shard
from aligngpt.scoring.score_files import PartSummary, part_path, rejects_path

COUNT = 35
SHARD = Shard(0, "all", COUNT)
Rows = list[tuple[str | None, str]]


@pytest.fixture
def pairs(tmp_path: Path) -> Rows:
    return list(zip(random_captions(COUNT), draw_pictures(tmp_path, COUNT), strict=True))


@pytest.fixture
def run(clip_scorer: PairScorer, tmp_path: Path) -> Callable[..., PartSummary]:
    """Score rows as one shard into a folder, with four images or captions per batch and images opened in a thread."""

    def call(rows: Rows, out: str = "out", workers: PictureWorkers | None = None, **options: Any) -> PartSummary:
        scorer = options.pop("scorer", clip_scorer)
        source = ListedPairs(rows, tmp_path, len(rows))
        settings = {"batch_size": 4} | options
        if workers is not None:
            return score_shard(source, SHARD, scorer, tmp_path / out, workers=workers, **settings)
        with PictureWorkers(scorer, 0) as thread:
            return score_shard(source, SHARD, scorer, tmp_path / out, workers=thread, **settings)

    return call


def part(out: Path) -> dict[str, list[Any]]:
    return pq.read_table(part_path(out, 0)).to_pydict()


def rejects(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(rejects_path(out, 0)).to_pylist()


def test_scores_are_the_models_own_of_one_pair_at_a_time(
    pairs: Rows, run: Callable, scorer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    assert run(pairs) == PartSummary(COUNT, {})
    folder = scorer_folder("clip")
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor(
        transformers.AutoImageProcessor.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    )
    expected = []
    for caption, name in pairs:
        inputs = processor(
            text=caption, images=open_image(tmp_path / name), truncation=True, max_length=12, return_tensors="pt"
        )
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            expected.append((model(**inputs).logits_per_image / model.logit_scale.exp()).item())
    found = part(tmp_path / "out")
    assert np.ptp(expected) > 0.1, "the pairs must differ, or the test says nothing"
    np.testing.assert_allclose(found["score"], expected, atol=1e-5)
    assert found["record"] == list(range(COUNT))
    assert found["id"] == [f"pair-{index}" for index in range(COUNT)]
    assert (found["width"][3], found["height"][3]) == (43, 42)


def test_siglip_scores_are_cosines(pairs: Rows, run: Callable, scorer_folder: Callable, tmp_path: Path) -> None:
    scorer = PairScorer.load(scorer_folder("siglip"), device="cpu", dtype="float32")
    run(pairs, scorer=scorer)
    expected = [scorer.score([open_image(tmp_path / name)], [caption])[0] for caption, name in pairs]
    np.testing.assert_allclose(part(tmp_path / "out")["score"], expected, atol=1e-5)


@pytest.mark.medium
def test_processes_and_a_thread_give_the_same_bytes(
    pairs: Rows, run: Callable, clip_scorer: PairScorer, tmp_path: Path
) -> None:
    rows = [*pairs, ("a red circle", "gone.png"), *pairs[:3]]
    run(rows, "thread", embeddings=True)
    with PictureWorkers(clip_scorer, 2, processes=True) as workers:
        for out in ("processes", "again"):
            run(rows, out, workers, embeddings=True)
    for out in ("processes", "again"):
        for path in (part_path, rejects_path):
            assert path(tmp_path / out, 0).read_bytes() == path(tmp_path / "thread", 0).read_bytes()


def test_half_precision_pixels_arrive_as_the_model_reads_them(
    pairs: Rows, run: Callable, scorer_folder: Callable, tmp_path: Path
) -> None:
    scorer = PairScorer.load(scorer_folder("clip"), device="cpu", dtype="bfloat16")
    run(pairs[:4], scorer=scorer, embeddings=True)
    images = scorer.image_features([open_image(tmp_path / name) for _, name in pairs[:4]])
    assert np.ptp(images) > 0.1
    np.testing.assert_array_equal(part(tmp_path / "out")["image_embedding"], images.astype(np.float16))


def test_batches_are_full_and_each_image_and_caption_is_encoded_once(
    pairs: Rows, run: Callable, clip_scorer: PairScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(tmp_path / "1.png", tmp_path / "copy.png")
    rows = [*pairs[:6], ("a", "1.png"), ("a", "copy.png"), (pairs[0][0], "gone.png"), ("no", "gone.png"), pairs[0]]
    images: list[int] = []
    texts: list[list[str]] = []
    encode_images, encode_texts = clip_scorer.pixel_features, clip_scorer.text_features
    monkeypatch.setattr(clip_scorer, "pixel_features", lambda p: images.append(len(p)) or encode_images(p))
    monkeypatch.setattr(clip_scorer, "text_features", lambda t: texts.append(list(t)) or encode_texts(t))
    run(rows)
    # The two threads may start in either order.
    assert sorted(images) == [2, 4]
    assert [len(batch) for batch in texts] == [4, 3]
    flat = [text for batch in texts for text in batch]
    assert sorted(flat) == sorted({caption for caption, name in rows if name != "gone.png"})
    lengths = [len(text.split()) for text in flat]
    assert lengths == sorted(lengths)
    found = part(tmp_path / "out")
    assert found["score"][6] == found["score"][7]
    assert found["image_hash"][6] == found["image_hash"][7] == found["image_hash"][1]
    assert len(set(found["image_hash"])) == 6


@pytest.mark.parametrize("threads", [1, 3])
def test_scores_do_not_depend_on_the_number_of_threads_which_is_left_as_it_was(
    pairs: Rows, run: Callable, tmp_path: Path, threads: int
) -> None:
    run(pairs, "as it is", embeddings=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        run(pairs, "other", embeddings=True)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert part(tmp_path / "as it is")["image_embedding"] == part(tmp_path / "other")["image_embedding"]


def test_batches_come_back_in_order_and_few_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    running: list[int] = []
    submitted = 0

    def encode(number: int) -> np.ndarray:
        running.append(submitted - number)
        time.sleep(0.02 if number % 2 else 0.001)
        return np.full((1, 1), number, np.float32)

    futures = []
    with BatchThreads() as threads:
        for number in range(20):
            submitted = number
            futures.append(threads.submit(partial(encode, number)))
        assert [int(future.result()[0, 0]) for future in futures] == list(range(20))
    assert max(running) <= 3


def test_captions_are_measured_before_they_are_cut(pairs: Rows, run: Callable, tmp_path: Path) -> None:
    run([("a " * 30, "0.png"), ("a red circle", "1.png"), ("", "2.png")])
    assert part(tmp_path / "out")["caption_tokens"] == [32, 5, 2]


def test_bad_records_are_rejected_with_their_reason_and_change_no_other_score(
    pairs: Rows, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pairs, "all")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    (tmp_path / "3.png").write_text("no picture")
    (tmp_path / "9.png").unlink()
    (tmp_path / "13.png").write_bytes(b"")
    Image.new("RGB", (20000, 1)).save(tmp_path / "21.png")
    (tmp_path / "30.png").unlink()
    (tmp_path / "30.png").mkdir()
    rows = [(None, name) if index == 17 else (caption, name) for index, (caption, name) in enumerate(pairs)]
    expected = {
        2: "truncated",
        3: "not_an_image",
        9: "missing",
        13: "empty",
        17: "turns",
        21: "too_large",
        30: "not_an_image",
    }
    assert run(rows, "some") == PartSummary(
        COUNT - 7, {"empty": 1, "missing": 1, "not_an_image": 2, "too_large": 1, "truncated": 1, "turns": 1}
    )
    found = rejects(tmp_path / "some")
    assert {reject["record"]: reject["reason"] for reject in found} == expected
    assert [reject["record"] for reject in found] == sorted(expected)
    assert found[2]["id"] == "pair-9"
    assert "9.png" in found[2]["detail"]
    scores = part(tmp_path / "all")["score"]
    some = part(tmp_path / "some")
    assert some["record"] == [index for index in range(COUNT) if index not in expected]
    np.testing.assert_allclose(some["score"], [scores[index] for index in some["record"]], atol=1e-6)


def test_a_picture_the_processor_refuses_is_unreadable(
    pairs: Rows, clip_scorer: PairScorer, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = clip_scorer.image_processor

    def refuse(images: list[Image.Image], **options: Any) -> Any:
        if images[0].size == (1, 1):
            raise ValueError("no such shape")
        return process(images, **options)

    Image.new("RGB", (1, 1)).save(tmp_path / "1.png")
    monkeypatch.setattr(clip_scorer, "image_processor", refuse)
    assert run(pairs[:3]) == PartSummary(2, {"unreadable": 1})
    assert "1.png cannot be prepared for the model: no such shape" in rejects(tmp_path / "out")[0]["detail"]


def test_a_caption_with_half_a_surrogate_pair_is_scored(pairs: Rows, run: Callable) -> None:
    assert run([("a red \ud83d", "0.png")]) == PartSummary(1, {})


def test_a_shard_in_which_nothing_can_be_scored_is_done(pairs: Rows, run: Callable, tmp_path: Path) -> None:
    assert run([("a", "gone.png"), (None, "0.png")], embeddings=True) == PartSummary(0, {"missing": 1, "turns": 1})
    run(pairs[:2], "other", embeddings=True)
    assert pq.read_schema(part_path(tmp_path / "out", 0)).equals(pq.read_schema(part_path(tmp_path / "other", 0)))


def test_embeddings_give_the_scores(pairs: Rows, run: Callable, tmp_path: Path) -> None:
    run(pairs, embeddings=True)
    found = part(tmp_path / "out")
    products = np.einsum("pd,pd->p", np.array(found["image_embedding"]), np.array(found["text_embedding"]))
    np.testing.assert_allclose(products, found["score"], atol=2e-3)


def test_progress_counts_every_record(pairs: Rows, run: Callable) -> None:
    told: list[int] = []
    run([*pairs, (None, "0.png"), ("a", "gone.png"), pairs[0]], advance=told.append)
    assert sum(told) == COUNT + 3


def test_a_score_that_is_no_number_names_its_record(
    pairs: Rows, run: Callable, clip_scorer: PairScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = clip_scorer.text_features
    monkeypatch.setattr(
        clip_scorer, "text_features", lambda t: encode(t) * np.where(np.array(t) == "no", np.nan, 1)[:, None]
    )
    with pytest.raises(ScorerError, match=r"record 1 \(id pair-1\) of all is not a finite number"):
        run([("a", "0.png"), ("no", "1.png")])
    assert not part_path(tmp_path / "out", 0).exists()


def test_a_worker_that_dies_ends_the_shard_with_an_error(pairs: Rows, clip_scorer: PairScorer, tmp_path: Path) -> None:
    class Deadly(ListedPairs):
        def read(self, shard: Shard) -> Iterator[Any]:
            for number, item in enumerate(super().read(shard)):
                if number == PICTURES_PER_TASK + 1:
                    for child in multiprocessing.active_children():
                        child.kill()
                yield item

    source = Deadly(pairs, tmp_path, COUNT)
    with (
        PictureWorkers(clip_scorer, 1, processes=True) as workers,
        pytest.raises(WorkerError, match=r"ran out of memory\. Run the same command again to resume"),
    ):
        score_shard(source, SHARD, clip_scorer, tmp_path / "out", batch_size=4, workers=workers)
    assert not part_path(tmp_path / "out", 0).exists()


def test_pictures_that_came_with_their_record_are_found_equal_by_content(
    pairs: Rows, clip_scorer: PairScorer, tmp_path: Path
) -> None:
    class Embedded(ListedPairs):
        def read(self, shard: Shard) -> Iterator[Any]:
            for item in super().read(shard):
                content = (self.root / item.picture.name).read_bytes()
                yield Pair(item.record, item.id, item.caption, Picture(item.picture.name, content=content))

    rows = [*pairs[:5], pairs[0]]
    with PictureWorkers(clip_scorer, 0) as workers:
        for out, kind in (("files", ListedPairs), ("content", Embedded)):
            score_shard(kind(rows, tmp_path, 6), SHARD, clip_scorer, tmp_path / out, batch_size=4, workers=workers)
    # The bytes differ: only a part of image files stores their marks.
    files, content = (pq.read_table(part_path(tmp_path / out, 0)) for out in ("files", "content"))
    assert files.num_rows == 6 and files.equals(content)
