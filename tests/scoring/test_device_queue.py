"""A slow device is never without a prepared batch, waits for no shard's end, and gives the scores of the CPU."""

import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from listed_pairs import ListedPairs, draw_pictures, random_captions
from PIL import Image
from torch import Tensor

from aligngpt.scoring import device_queue, pipeline
from aligngpt.scoring.device_queue import BATCHES_IN_FLIGHT, DeviceQueue
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source
from aligngpt.scoring.picture_workers import PictureWorkers
from aligngpt.scoring.preparation import Preparation

CPU = torch.device("cpu")
COUNT, SHARD_SIZE = 48, 12


@pytest.fixture
def queues(monkeypatch: pytest.MonkeyPatch) -> list[DeviceQueue]:
    """Makes the CPU a device that needs a queue; the queues that were made."""
    made: list[DeviceQueue] = []

    def make(_: torch.device) -> DeviceQueue:
        made.append(DeviceQueue(CPU))
        return made[-1]

    monkeypatch.setattr(pipeline, "model_queue", make)
    return made


@pytest.fixture
def source(tmp_path: Path) -> ListedPairs:
    """48 pairs in four shards, the last but one without any image that can be opened."""
    rows: list[tuple[str | None, str]] = list(zip(random_captions(COUNT), draw_pictures(tmp_path, COUNT), strict=True))
    rows[2 * SHARD_SIZE : 3 * SHARD_SIZE] = [("a red circle", "gone.png")] * SHARD_SIZE
    rows[7], rows[40] = (None, "7.png"), ("a blue square", "3.png")
    return ListedPairs(rows, tmp_path, SHARD_SIZE)


@pytest.fixture
def run(clip_scorer: PairScorer, tmp_path: Path) -> Callable[..., None]:
    def call(source: ListedPairs, out: str, **options: Any) -> None:
        settings = {"batch_size": 4, "max_reject_share": 1.0, "workers": 0} | options
        score_source(source, settings.pop("scorer", clip_scorer), tmp_path / out, **settings)

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("model", ["clip", "siglip"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_queue_writes_the_bytes_of_the_cpus_threads(
    source: ListedPairs,
    run: Callable,
    scorer_folder: Callable[[str], Path],
    tmp_path: Path,
    model: str,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scorer = PairScorer.load(scorer_folder(model), device="cpu", dtype=dtype)
    run(source, "threads", scorer=scorer, embeddings=True)
    monkeypatch.setattr(pipeline, "model_queue", lambda _: DeviceQueue(CPU))
    run(source, "queue", scorer=scorer, embeddings=True)
    assert content(tmp_path / "queue") == content(tmp_path / "threads")


def test_models_without_a_lookup_table_and_several_of_them_write_the_same_bytes(
    source: ListedPairs,
    run: Callable,
    clip_scorer: PairScorer,
    scorer_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = PairScorer.load(scorer_folder("siglip"), device="cpu", dtype="float32")
    monkeypatch.setattr("aligngpt.scoring.preparation.byte_processor", lambda _: None)
    run(source, "threads", others=[other])
    monkeypatch.setattr(pipeline, "model_queue", lambda _: DeviceQueue(CPU))
    run(source, "queue", others=[other])
    assert content(tmp_path / "queue") == content(tmp_path / "threads")


def test_the_lookup_on_a_device_is_that_of_the_cpu(scorer_folder: Callable[[str], Path]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 3, 9, 7), dtype=np.uint8)
    for dtype in ("float32", "bfloat16"):
        preparation = Preparation.of(PairScorer.load(scorer_folder("clip"), device="cpu", dtype=dtype))
        assert preparation.in_bytes is not None
        found = preparation.values_of(preparation.stacked(pictures))
        assert torch.equal(found, preparation.pixel_values(pictures).to(getattr(torch, dtype)))


def test_memory_that_is_not_pinned_is_never_copied_in_the_background(
    source: ListedPairs, run: Callable, queues: list[DeviceQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_background: list[bool] = []
    to = Tensor.to

    def watched(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        in_the_background.append(options.get("non_blocking", False))
        return to(self, *arguments, **options)

    monkeypatch.setattr(Tensor, "to", watched)
    run(source, "out")
    assert in_the_background and not any(in_the_background)


def test_a_batch_is_ready_whenever_a_slow_model_asks_for_one(
    source: ListedPairs, run: Callable, clip_scorer: PairScorer, queues: list[DeviceQueue], monkeypatch: Any
) -> None:
    encode = clip_scorer.encode_pixels

    def slowly(pixels: Tensor) -> Tensor:
        time.sleep(0.15)
        return encode(pixels)

    monkeypatch.setattr(clip_scorer, "encode_pixels", slowly)
    run(source, "out")
    (queue,) = queues
    # 11 + 12 + 12 images, 4 to a batch, and as many batches of captions.
    assert queue.taken == 18
    # Not the first batch, and not captions, whose tokens are only asked for when their shard has been read.
    assert queue.ready >= 9


def test_the_next_shard_is_opened_and_encoded_before_the_part_of_the_last_one_is_written(
    source: ListedPairs, run: Callable, clip_scorer: PairScorer, queues: list[DeviceQueue], monkeypatch: Any
) -> None:
    events: list[str] = []
    next_is_encoded = threading.Event()
    write, encode = pipeline.PartMaker.make, clip_scorer.encode_pixels
    images = 0

    def slow_part(self: Any, shard: Any) -> Any:
        # Without overlap this would never end by itself: the images of the next shard come after the part.
        if shard.reading.shard.index == 0:
            assert next_is_encoded.wait(30)
        found = write(self, shard)
        events.append(f"part {shard.reading.shard.index}")
        return found

    def watched(pixels: Tensor) -> Tensor:
        nonlocal images
        images += len(pixels)
        if images > SHARD_SIZE:
            events.append("image of shard 1")
            next_is_encoded.set()
        return encode(pixels)

    monkeypatch.setattr(pipeline.PartMaker, "make", slow_part)
    monkeypatch.setattr(clip_scorer, "encode_pixels", watched)
    run(source, "out")
    assert events.index("image of shard 1") < events.index("part 0")
    assert [event for event in events if event.startswith("part")] == [f"part {index}" for index in range(4)]


def test_the_model_is_launched_on_the_next_batch_before_the_features_of_the_last_are_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[tuple[str, int]] = []
    all_given = threading.Event()
    end = DeviceQueue._end

    def fetch(self: DeviceQueue, job: Any, fetching: Any) -> None:
        events.append(("fetched", int(fetching.features[0, 0])))
        end(self, job, fetching)

    def encode(number: Tensor) -> Tensor:
        assert all_given.wait(30)
        events.append(("launched", int(number)))
        return torch.full((1, 1), float(number))

    monkeypatch.setattr(DeviceQueue, "_end", fetch)
    with DeviceQueue(CPU) as queue:
        count = BATCHES_IN_FLIGHT
        futures = [queue.submit(partial(dict, number=torch.tensor(index)), encode) for index in range(count)]
        all_given.set()
        assert [int(future.result()[0, 0]) for future in futures] == list(range(count))
    for last, following in pairwise(range(count)):
        assert events.index(("launched", following)) < events.index(("fetched", last))


def test_no_more_batches_are_held_than_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []
    done: list[int] = []

    def prepare(number: int) -> dict[str, Tensor]:
        prepared.append(number)
        assert len(prepared) - len(done) <= BATCHES_IN_FLIGHT
        return {"number": torch.tensor([[float(number)]])}

    end = DeviceQueue._end

    def ended(self: DeviceQueue, job: Any, fetching: Any) -> None:
        done.append(0)
        end(self, job, fetching)

    monkeypatch.setattr(DeviceQueue, "_end", ended)
    with DeviceQueue(CPU) as queue:
        futures = [queue.submit(partial(prepare, number), lambda number: number) for number in range(40)]
        assert [future.result()[0, 0] for future in futures] == list(range(40))


@pytest.mark.parametrize("where", ["prepare", "encode"])
def test_an_error_is_that_of_its_batch_and_frees_its_place(where: str) -> None:
    def fail(**_: Tensor) -> Any:
        raise MemoryError("too large")

    def encode(number: Tensor) -> Tensor:
        return number

    def prepare() -> dict[str, Tensor]:
        return {"number": torch.ones(1, 1)}

    bad = (fail, encode) if where == "prepare" else (prepare, fail)
    with DeviceQueue(CPU) as queue:
        for _ in range(2 * BATCHES_IN_FLIGHT):
            failing, good = queue.submit(*bad), queue.submit(prepare, encode)
            with pytest.raises(MemoryError, match="too large"):
                failing.result()
            assert good.result().tolist() == [[1.0]]


def test_an_error_of_the_model_ends_the_job_and_the_parts_before_it_are_written(
    source: ListedPairs,
    run: Callable,
    clip_scorer: PairScorer,
    queues: list[DeviceQueue],
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    encode = clip_scorer.encode_pixels
    seen = 0

    def fails(pixels: Tensor) -> Tensor:
        nonlocal seen
        seen += len(pixels)
        if seen > 2 * SHARD_SIZE:
            raise RuntimeError("out of memory")
        return encode(pixels)

    monkeypatch.setattr(clip_scorer, "encode_pixels", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(source, "out")
    assert {path.name for path in (tmp_path / "out").glob("part-*")} == {
        f"part-0000{index}.parquet" for index in range(3)
    }
    assert not any(thread.name in ("model", "batches_0", "parts_0") for thread in threading.enumerate())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_gives_the_features_of_batches_given_to_it_one_by_one(
    scorer_folder: Callable[[str], Path], dtype: str
) -> None:
    scorer = PairScorer.load(scorer_folder("clip"), device="cuda", dtype=dtype)
    noise = np.random.default_rng(0).integers(0, 256, (256, 50, 60, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    preparation = Preparation.of(scorer)
    pictures = [preparation.pixels_for(image) for image in images]
    texts = [[f"a red circle {number}", "blue"] for number in range(20)]
    with device_queue.model_queue(scorer.device) as queue:
        assert isinstance(queue, DeviceQueue)
        futures = [queue.images(scorer, preparation, pictures[start : start + 8]) for start in range(0, 256, 8)]
        of_texts = queue.texts(scorer, texts)
        found = [future.result() for future in futures]
    for start, features in zip(range(0, 256, 8), found, strict=True):
        np.testing.assert_array_equal(features, scorer.image_features(images[start : start + 8]))
    for some, features in zip(texts, of_texts, strict=True):
        np.testing.assert_array_equal(features, scorer.text_features(some))


def test_workers_give_the_results_of_empty_tasks_in_their_place(source: ListedPairs, clip_scorer: PairScorer) -> None:
    pictures = [item.picture for item in source.read(source.shards()[1])]
    with PictureWorkers(clip_scorer, 2, processes=False) as workers:
        found = [len(task) for task in workers.prepare_tasks([pictures[:3], (), (), pictures[3:4], ()])]
    assert found == [3, 0, 0, 1, 0]


def test_an_apple_gpu_is_used_by_one_thread_at_a_time() -> None:
    threads: list[str] = []

    def prepare() -> dict[str, Tensor]:
        threads.append(threading.current_thread().name)
        return {"pixels": torch.ones(2, 3)}

    def encode(pixels: Tensor) -> Tensor:
        threads.append(threading.current_thread().name)
        return pixels

    # No tensor is put on it.
    with DeviceQueue(torch.device("mps")) as queue:
        found = [queue.submit(prepare, encode) for _ in range(3)]
        assert [one.result().sum() for one in found] == [6, 6, 6]
    assert threads == ["model"] * 6
