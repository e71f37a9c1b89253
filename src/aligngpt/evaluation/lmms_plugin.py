"""The model `aligngpt` of lmms-eval, found through its entry points; the only module that imports lmms-eval."""

import inspect
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any, get_args

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableTask

from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.benchmarks.frame import PictureMode
from aligngpt.evaluation.lmms_requests import HarnessError, request_of, request_of_text, sampling_of
from aligngpt.inference.engine import Answer, Engine, Request, Sampling
from aligngpt.progress import Meter


class AlignGPT(lmms):
    """A model that answers lmms-eval's tasks; errors end the run, and no answer is left empty because of one.

    Args:
        pretrained: model folder, hub name or adapter folder.
        level: alignment level 1…N to force; None leaves it to the gate.
        device: `cpu`, `cuda`, `mps`, or `auto` for the best available.
        precision: `float32`, `bfloat16`, or `auto` for bfloat16 if it is faster on the device.
        batch_size: questions answered at once.
        picture_mode: `pad` shows whole pictures, `crop` their central squares.
        others: refused by name; lmms-eval passes on whatever its user wrote.

    Raises:
        HarnessError: an option is unknown or has a wrong value, or several processes were started.
        EngineError, AdapterError, DeviceError: the model cannot be loaded.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        level: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | str = 16,
        picture_mode: PictureMode = "pad",
        **others: object,
    ) -> None:
        super().__init__()
        if others:
            raise HarnessError(
                f"the model aligngpt has no option {min(others)}; it has pretrained, level, precision and picture_mode "
                "in --model_args, --device and --batch_size"
            )
        if not isinstance(pretrained, str):
            raise HarnessError(
                f"pretrained is {pretrained!r}, expected a folder or hub name, as in --model_args pretrained=runs/mine"
                "/model; write a folder whose name is a number or true or false as ./NAME"
            )
        if picture_mode not in get_args(PictureMode):
            raise HarnessError(f"picture_mode is {picture_mode!r}, expected one of {', '.join(get_args(PictureMode))}")
        if level is not None and type(level) is not int:
            raise HarnessError(f"level is {level!r}, expected a whole number, or leave it out for the gate")
        if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
            raise HarnessError(f"the model aligngpt runs in one process, {processes} were started; start one")
        self.batch_size, self.level, self.mode = _count(batch_size), level, picture_mode
        self.engine = Engine.load(pretrained, device=str(device), dtype=str(precision), rows=self.batch_size)
        if level is not None and not 1 <= level <= self.engine.num_levels:
            self.engine.close()
            raise HarnessError(f"level is {level}, but the levels of {pretrained} are 1…{self.engine.num_levels}")

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """The answers, one a request, in order; a request that occurs several times is sampled as often.

        Raises:
            HarnessError: a request cannot be understood or answered; the message names its task and document.
        """
        places: dict[tuple[Any, ...], list[int]] = {}
        for place, request in enumerate(requests):
            # Task, split, document: documents, and repeats of one document, are draws with different seeds.
            _, _, _, document, task, split = request.args
            places.setdefault((task, split, document), []).append(place)
        groups: dict[Sampling, list[list[int]]] = {}
        for (task, _, document), same in places.items():
            with _named(task, document):
                sampling = sampling_of(self._settings(requests[same[0]]))
            if sampling.temperature > 0:
                sampling = replace(sampling, answers=len(same))
            groups.setdefault(sampling, []).append(same)
        found: dict[int, Answer] = {}
        with Meter("answering", len(requests), unit="questions") as meter:
            for sampling, members in groups.items():
                members.sort(key=lambda same: len(requests[same[0]].args[0]))
                for start in range(0, len(members), self.batch_size):
                    batch = members[start : start + self.batch_size]
                    for same, answers in zip(batch, self._answer(requests, batch, sampling), strict=True):
                        found |= dict(zip(same, answers if len(answers) > 1 else answers * len(same), strict=True))
                    meter.advance(sum(map(len, batch)))
        return [
            GenerationResult(one.text, TokenCounts(input_tokens=one.prompt_tokens, output_tokens=one.tokens))
            for one in (found[place] for place in range(len(requests)))
        ]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """How likely given answers are, with the end of the turn, and whether they would be the greedy answers.

        lmms-eval takes the choice with the *smallest* number, since its own models return losses: for the choices of
        multiple-choice tasks the number is the negative log-probability (natural logarithm), for the targets of
        log-likelihood tasks the log-probability.

        Returns:
            One pair of number and greediness a request, in order, each wrapped: lmms-eval turns bare pairs into text.

        Raises:
            HarnessError: a request cannot be understood or rated, or this version of lmms-eval chooses otherwise.
        """
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, request in enumerate(requests):
            if len(request.args) != 6:
                raise HarnessError("acc_mutual_info needs answers without their question, which this model cannot rate")
            context, _, _, document, task, split = request.args
            groups.setdefault((task, split, document, context), []).append(place)
        found: dict[int, tuple[float, bool]] = {}
        with Meter("rating", len(requests), unit="answers") as meter:
            for (task, split, document, context), members in groups.items():
                row = self.task_dict[task][split][document]
                targets = [requests[place].args[1] for place in members]
                if any(isinstance(target, str) for target in targets):
                    _check_smallest_wins()
                texts = [target if isinstance(target, str) else str(target(row)) for target in targets]
                visuals = requests[members[0]].args[2](row)

                with _named(task, document):
                    asked = request_of_text(context, visuals, level=self.level, mode=self.mode)
                    # A chat template puts its own space before an answer.
                    (rated,) = self.engine.likelihood(asked, [text.strip() for text in texts])
                for place, target, one in zip(members, targets, rated, strict=True):
                    sign = -1 if isinstance(target, str) else 1
                    found[place] = (sign * one.log_probability, one.greedy)
                meter.advance(len(members))
        return [GenerationResult(found[place]) for place in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not supported.

        Raises:
            HarnessError: always.
        """
        raise HarnessError(
            f"the task {requests[0].task_name} has several rounds, which the model aligngpt does not support; leave it "
            "out of --tasks"
            if requests
            else "tasks of several rounds are not supported by the model aligngpt"
        )

    def clean(self) -> None:
        """End the engine, so that its memory is free while answers are judged."""
        self.engine.close()
        del self.engine
        super().clean()

    def _settings(self, request: Instance) -> dict[str, Any]:
        return dict(request.args[2] or {})

    def _conversation(self, request: Instance) -> Request:
        _, to_messages, _, document, task, split = request.args
        return request_of(to_messages(self.task_dict[task][split][document]), level=self.level, mode=self.mode)

    def _answer(
        self, requests: Sequence[Instance], batch: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[list[Answer]]:
        """The answers to each document of a batch, `sampling.answers` of each."""
        asked = []
        for same in batch:
            request = requests[same[0]]
            with _named(request.args[4], request.args[3]):
                asked.append(self._conversation(request))
        tasks = ", ".join(sorted({requests[same[0]].args[4] for same in batch}))
        documents = ", ".join(str(requests[same[0]].args[3]) for same in batch)
        with _named(tasks, documents):
            if sampling.temperature == 0:
                answers = self.engine.answer(asked, sampling)
            else:
                # Drawn with one seed, all documents would get the same random numbers, and their scores one luck.
                first = [sampling.seed + requests[same[0]].args[3] * sampling.answers for same in batch]
                own = [replace(sampling, seed=seed) for seed in first]
                with ThreadPoolExecutor(len(asked)) as pool:
                    drawn = pool.map(lambda one, its: self.engine.answer([one], its), asked, own)
                    answers = [answer for of_document in drawn for answer in of_document]
        return [answers[start : start + sampling.answers] for start in range(0, len(answers), sampling.answers)]


class AlignGPTSimple(AlignGPT):
    """The same model in lmms-eval's simple format, which multiple-choice tasks need (`--force_simple`)."""

    is_simple = True

    def _settings(self, request: Instance) -> dict[str, Any]:
        return dict(request.args[1] or {})

    def _conversation(self, request: Instance) -> Request:
        context, _, to_visual, document, task, split = request.args
        visuals = to_visual(self.task_dict[task][split][document])
        return request_of_text(context, visuals, level=self.level, mode=self.mode)


def manifest() -> Any:
    """What lmms-eval's entry point `aligngpt` returns: a `ModelManifest`."""
    # At the top of the file, this import would load the entry point while the file is half imported.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        "aligngpt",
        chat_class_path=f"{__name__}.{AlignGPT.__name__}",
        simple_class_path=f"{__name__}.{AlignGPTSimple.__name__}",
    )


def _count(batch_size: int | str) -> int:
    if not str(batch_size).isdigit() or int(batch_size) < 1:
        raise HarnessError(f"--batch_size is {batch_size!r}, expected a whole number from 1 up")
    return int(batch_size)


@contextmanager
def _named(task: str, document: object) -> Iterator[None]:
    """Let errors of this package name the task and the document."""
    try:
        yield
    except AlignGPTError as error:
        raise HarnessError(f"task {task}, document {document}: {error}") from error


def _check_smallest_wins() -> None:
    if "np.argmin(lls)" not in inspect.getsource(ConfigurableTask.process_results):
        raise HarnessError(
            f"lmms-eval {version('lmms-eval')} chooses among answers in another way than 0.7.3, so multiple-choice "
            "tasks would be scored wrongly; use lmms-eval 0.7.3"
        )
