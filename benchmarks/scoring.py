"""Compare the speed of scoring pairs with that of a plain loop: `python benchmarks/scoring.py [--pairs 20000]`.

On a GPU, for example: `python benchmarks/scoring.py --device cuda --dtype bfloat16 --tower large --batch-size 128`.

The images are JPEGs with sides of 200 to 700 pixels and about as many bytes per pixel as photographs; they are made
once, in the system's temporary directory: before the clock starts, and at a third of the bytes of COCO's, so opening
them takes less time. Captions have 5 to 30 words, one token each. The model is a CLIP with random weights. With
`--tower small` it takes 224 pixels in patches of 32 and is small enough that on two cores opening images and encoding
pairs take about the same time; with `--tower large` it has the shape of ViT-L/14-336, which needs a GPU.

Four measurements alternate over the same pairs and are summed over the rounds:

- *ours*: `score_source` from the JSON lines to the parts, including the start of its worker processes.
- *loop*: open a batch of images with Pillow, `CLIPProcessor` for images and captions, `CLIPModel`, the cosine.
- *model*: batches of the same shapes through the model, prepared, tokenised and copied to the device before the clock
  starts.
- *decode*: the images opened and prepared by the same number of processes as in ours, which send nothing back and
  have started before the clock does.

`speedup` is ours over loop in pairs per second, `limit_share` ours over the limit. On a GPU the limit is the slower of
model and decode. On a CPU both compete for the cores, so the limit is 1 / (1/model + 1/decode), with all cores
available to each (with fewer workers than cores, decode is scaled up to all cores).

The milliseconds of CPU time per pair are printed too: when other programs compete for the cores, they are more
informative than wall time, although threads that wait for each other count as busy.

`memory_ratio` compares 50,000 pairs with 5,000: the sampled peak of resident memory of the process and its workers
together, each in a separate process tree. The images of these pairs repeat with different captions, shards have 2,500
records, and the model is tiny, so that memory that grows with the number of pairs would stand out.

Finally, a shard is scored with and without 3 % of its records damaged, and the largest difference between the scores
of the other records is printed.

With `--dtype bfloat16` the differences are those of rounding to 8 binary digits.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from aligngpt.data.images.reference import Picture
from aligngpt.data.records.pairs import open_pairs
from aligngpt.scoring.batch_threads import BatchThreads
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import read_scores, score_source
from aligngpt.scoring.preparation import Preparation

CACHE = Path(tempfile.gettempdir()) / "aligngpt-benchmark-scoring"
SIDES, WORDS, QUALITY = (200, 700), (5, 30), 90
VOCABULARY, MAX_TOKENS = 8000, 77
MEMORY_PAIRS, MEMORY_SHARD, MEMORY_PICTURES = (5_000, 50_000), 2_500, 250
BAD_SHARE, BAD_KINDS = 0.03, ("missing", "truncated", "text", "no caption", "zero bytes")
SAMPLED_EVERY = 0.05
ROUNDS = 2

Row = dict[str, str]
Towers = dict[str, dict[str, Any]]

SMALL: Towers = {
    "vision": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3},
    "text": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 2},
}
LARGE: Towers = {
    "vision": {
        **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        **{"image_size": 336, "patch_size": 14},
    },
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}
TOWERS = {"small": SMALL, "large": LARGE}
TINY: Towers = {
    "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
}


def make_pictures(count: int) -> list[Path]:
    """The first `count` images of the cache; missing ones are made."""
    folder = CACHE / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:06}.jpg" for number in range(count)]
    missing = [path for path in paths if not path.exists()]
    if missing:
        note(f"making {len(missing)} images in {folder}")
        texture = _texture(1024)
        for path in missing:
            draw = random.Random(path.stem)
            width, height = draw.randint(*SIDES), draw.randint(*SIDES)
            left, top = draw.randrange(1024 - width), draw.randrange(1024 - height)
            image = Image.fromarray(np.roll(texture[top : top + height, left : left + width], draw.randrange(3), 2))
            # Renamed into place, so that an interrupted run leaves no partial image.
            image.save(path.with_suffix(".tmp"), "JPEG", quality=QUALITY)
            path.with_suffix(".tmp").rename(path)
    return paths


def _texture(side: int) -> NDArray[np.uint8]:
    """Noise at several scales, the coarse ones stronger, as in photographs: `(side, side, 3)`."""
    draw = np.random.default_rng(0)
    channels = []
    for _ in range(3):
        total = np.full((side, side), 128, np.float32)
        for cells, strength in ((8, 60), (32, 40), (128, 24), (side // 2, 10), (side, 4)):
            noise = Image.fromarray(draw.standard_normal((cells, cells)).astype(np.float32))
            total += strength * np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC))
        channels.append(np.clip(total, 0, 255).astype(np.uint8))
    return np.stack(channels, axis=-1)


def make_rows(paths: Sequence[Path], count: int) -> list[Row]:
    """`count` records, each with its own caption; images repeat if there are fewer."""
    draw = random.Random(0)
    return [
        {
            "id": str(number),
            "image": str(paths[number % len(paths)].relative_to(CACHE)),
            "caption": " ".join(f"w{draw.randrange(VOCABULARY)}" for _ in range(draw.randint(*WORDS))),
        }
        for number in range(count)
    ]


def write_rows(path: Path, rows: Iterable[Row]) -> Path:
    """Write JSON lines; return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build_clip(towers: Towers) -> tuple[CLIPModel, CLIPImageProcessorPil, PreTrainedTokenizerFast]:
    """A CLIP with random weights, its image processor, and a tokenizer for the words of `make_rows`."""
    torch.manual_seed(0)
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{number}": number + 3 for number in range(VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=MAX_TOKENS, **marks)
    ids = {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        vision_config={"image_size": 224, "patch_size": 32} | towers["vision"],
        text_config={"max_position_embeddings": MAX_TOKENS} | ids | towers["text"],
        projection_dim=256,
    )
    side = config.vision_config.image_size
    pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return CLIPModel(config).eval(), pictures, tokenizer


def build_scorer(towers: Towers, options: argparse.Namespace) -> PairScorer:
    """A scorer with the model of `build_clip`, made on the device: on a CPU a large one takes long to fill."""
    with torch.device(options.device):
        model, image_processor, tokenizer = build_clip(towers)
    return PairScorer(model, image_processor, tokenizer, device=options.device, dtype=options.dtype)


def score_ours(rows: Sequence[Row], scorer: PairScorer, options: argparse.Namespace) -> NDArray[np.float32]:
    """The scores from `score_source` in the order of the rows, without rejected ones."""
    with temporary() as folder:
        source = open_pairs(write_rows(folder / "pairs.jsonl", rows), image_root=CACHE)
        score_source(
            source,
            scorer,
            folder / "out",
            batch_size=options.batch_size,
            workers=options.workers,
            max_reject_share=2 * BAD_SHARE,
        )
        return read_scores(folder / "out")["score"].to_numpy()


@torch.inference_mode()
def score_in_a_loop(
    rows: Sequence[Row], model: CLIPModel, processor: CLIPProcessor, batch_size: int
) -> NDArray[np.float32]:
    """The scores from a straightforward loop with transformers."""
    scores = []
    for batch in batches(rows, batch_size):
        images = [Image.open(CACHE / row["image"]).convert("RGB") for row in batch]
        texts = [row["caption"] for row in batch]
        inputs = processor(text=texts, images=images, padding=True, truncation=True, return_tensors="pt")
        inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask", "pixel_values")}
        outputs = model(**inputs | {"pixel_values": inputs["pixel_values"].to(model.dtype)})
        scores.append((outputs.image_embeds.float() * outputs.text_embeds.float()).sum(-1).cpu().numpy())
    return np.concatenate(scores)


def model_batches(rows: Sequence[Row], scorer: PairScorer, batch_size: int) -> list[dict[str, torch.Tensor]]:
    """Model inputs batched as in ours: images, which are noise, in order, and captions sorted by length."""
    side = scorer.model.config.vision_config.image_size
    pixels = torch.randn(batch_size, 3, side, side, dtype=scorer.dtype, device=scorer.device)
    captions = sorted((row["caption"] for row in rows), key=lambda caption: len(caption.split()))
    pictures = [{"pixels": pixels[: len(batch)]} for batch in batches(rows, batch_size)]
    return pictures + [scorer.tokens(batch) for batch in batches(captions, batch_size)]


def run_model(prepared: Sequence[dict[str, torch.Tensor]], scorer: PairScorer) -> None:
    """Compute the features, on a CPU several batches at a time as ours does, on others without waiting in between."""

    def features(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return (scorer.encode_pixels if "pixels" in inputs else scorer.encode_tokens)(**inputs)

    if scorer.device.type != "cpu":
        torch.cat([features(inputs) for inputs in prepared]).cpu()
        return
    with BatchThreads() as threads:
        for future in [threads.submit(lambda inputs=inputs: features(inputs).numpy()) for inputs in prepared]:
            future.result()


def prepare_only(preparation: Preparation, pictures: Sequence[Picture]) -> int:
    """Do a worker's job without sending the result back; return the number of images."""
    torch.set_num_threads(1)
    return len(preparation(pictures))


def decoding_seconds(rows: Sequence[Row], scorer: PairScorer, workers: int) -> float:
    """Seconds that `workers` running processes take to open and prepare the images."""
    task = partial(prepare_only, Preparation.of(scorer))
    chunks = batches([Picture(row["image"], path=CACHE / row["image"]) for row in rows], 8)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(task, chunks[: 4 * workers]))
        started = time.perf_counter()
        list(pool.map(task, chunks))
        return time.perf_counter() - started


def measure_speed(rows: Sequence[Row], options: argparse.Namespace) -> tuple[float, float]:
    """Run the four measurements in alternation; return `speedup` and `limit_share`."""
    scorer = build_scorer(TOWERS[options.tower], options)
    model, processor = scorer.model, CLIPProcessor(scorer.image_processor, scorer.tokenizer)
    seconds = dict.fromkeys(("ours", "loop", "model", "decode"), 0.0)
    cpu = dict.fromkeys(seconds, 0.0)
    difference = 0.0

    @contextmanager
    def clock(name: str) -> Iterator[None]:
        started, used = time.perf_counter(), cpu_seconds()
        yield
        seconds[name] += time.perf_counter() - started
        cpu[name] += cpu_seconds() - used

    score_in_a_loop(rows[: options.batch_size], model, processor, options.batch_size)
    for number, some in enumerate(batches(rows, -(-len(rows) // ROUNDS)), start=1):
        with clock("ours"):
            ours = score_ours(some, scorer, options)
        with clock("loop"):
            theirs = score_in_a_loop(some, model, processor, options.batch_size)
        prepared = model_batches(some, scorer, options.batch_size)
        with clock("model"):
            run_model(prepared, scorer)
        seconds["decode"] += decoding_seconds(some, scorer, options.workers)
        difference = max(difference, float(np.abs(ours - theirs).max()))
        note(f"round {number}: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
    rates = {name: len(rows) / value for name, value in seconds.items()}
    if scorer.device.type == "cpu":
        all_cores = rates["decode"] * max(1.0, (os.cpu_count() or 1) / options.workers)
        limit = 1 / (1 / rates["model"] + 1 / all_cores)
    else:
        limit = min(rates["model"], rates["decode"])
    shown = " ".join(f"{name}={rate:.1f}" for name, rate in {**rates, "limit": limit}.items())
    print(f"scoring pairs={len(rows)} pairs/s {shown} largest_difference={difference:.1e}", flush=True)
    spent = " ".join(f"{name}={1000 * cpu[name] / len(rows):.1f}" for name in ("ours", "loop", "model"))
    print(f"scoring cpu_ms/pair {spent}", flush=True)
    return rates["ours"] / rates["loop"], rates["ours"] / limit


def measure_bad_records(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Print how much the scores of good records change when others are damaged."""
    scorer = build_scorer(TOWERS[options.tower], options)
    bad = set(random.Random(1).sample(range(len(rows)), max(len(BAD_KINDS), round(BAD_SHARE * len(rows)))))
    spoilt = list(rows)
    folder = CACHE / f"bad-{os.getpid()}"
    folder.mkdir()
    try:
        for place, number in enumerate(sorted(bad)):
            kind = BAD_KINDS[place % len(BAD_KINDS)]
            spoilt[number] = _spoilt(rows[number], kind, folder / f"{number}.jpg")
        before, after = score_ours(rows, scorer, options), score_ours(spoilt, scorer, options)
    finally:
        shutil.rmtree(folder)
    good = [number for number in range(len(rows)) if number not in bad]
    if len(after) != len(good):
        raise ArithmeticError(f"expected {len(good)} scores and {len(bad)} bad records, found {len(after)}")
    difference = float(np.abs(before[good] - after).max())
    print(f"scoring bad_records={len(bad)}/{len(rows)} largest_difference={difference:.1e}", flush=True)


def _spoilt(row: Row, kind: str, path: Path) -> Row:
    """The record damaged in one way; its damaged image, if any, is written to `path`."""
    if kind == "no caption":
        return row | {"caption": ""}
    content = (CACHE / row["image"]).read_bytes()
    if kind != "missing":
        path.write_bytes({"truncated": content[: len(content) // 2], "text": b"no picture", "zero bytes": b""}[kind])
    return row | {"image": str(path.relative_to(CACHE))}


def measure_memory(options: argparse.Namespace) -> float:
    """Peak memory of the larger source over that of the smaller."""
    peaks = []
    for count in MEMORY_PAIRS:
        command = [sys.executable, __file__, "--memory-of", str(count), "--workers", str(options.workers)]
        command += ["--batch-size", str(options.batch_size), "--device", options.device, "--dtype", options.dtype]
        child = subprocess.Popen(command)
        peak = 0
        while child.poll() is None:
            peak = max(peak, tree_memory(child.pid))
            time.sleep(SAMPLED_EVERY)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, command)
        print(f"scoring pairs={count} peak_gb={peak / 1e9:.3f}", flush=True)
        peaks.append(peak)
    return peaks[1] / peaks[0]


def tree_memory(root: int) -> int:
    """Current resident bytes of a process and its descendants (Linux)."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name in parentheses may contain spaces.
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        waiting += parents.get(process, [])
        with suppress(OSError):
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def score_for_memory(count: int, options: argparse.Namespace) -> None:
    """Score `count` pairs: the work of the child process of `measure_memory`."""
    scorer = build_scorer(TINY, options)
    rows = make_rows(make_pictures(MEMORY_PICTURES), count)
    with temporary() as folder:
        path = write_rows(folder / "pairs.jsonl", rows)
        del rows
        source = open_pairs(path, image_root=CACHE, shard_size=MEMORY_SHARD)
        score_source(source, scorer, folder / "out", batch_size=options.batch_size, workers=options.workers)


def batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """The items in order, `size` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


@contextmanager
def temporary() -> Iterator[Path]:
    """A temporary folder, removed on exit."""
    with tempfile.TemporaryDirectory(prefix="aligngpt-") as name:
        yield Path(name)


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def note(text: str) -> None:
    """Print a progress message to stderr."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run all measurements and print the results."""
    transformers.logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=20_000, help="number of pairs, each with a distinct image")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes that open images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="precision of the model")
    parser.add_argument("--tower", default="small", choices=list(TOWERS), help="size of the model")
    parser.add_argument("--skip-memory", action="store_true", help="print memory_ratio as nan")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        score_for_memory(options.memory_of, options)
        return
    if options.pairs < options.batch_size or options.workers < 1:
        parser.error("--pairs must be at least --batch-size, --workers at least 1")
    rows = make_rows(make_pictures(max(options.pairs, MEMORY_PICTURES)), options.pairs)
    settings = f"{options.device}, {options.dtype}, {options.tower} tower"
    note(f"{options.workers} workers, {torch.get_num_threads()} model threads, {settings}")
    speedup, limit_share = measure_speed(rows, options)
    measure_bad_records(rows[: max(500, len(rows) // 10)], options)
    memory_ratio = float("nan") if options.skip_memory else measure_memory(options)
    print(f"scoring speedup={speedup:.2f} limit_share={limit_share:.2f} memory_ratio={memory_ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
