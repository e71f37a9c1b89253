"""The options of the judge of benchmarks' answers, and the judge that they describe."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from aligngpt.cli.numbers import finite
from aligngpt.errors import AlignGPTError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aligngpt.evaluation.benchmarks.frame import Benchmark
    from aligngpt.evaluation.judging.asking import AnswerJudge

JudgeUrl = Annotated[
    str | None,
    typer.Option(
        help="OpenAI-compatible server, such as http://localhost:8000/v1, whose model judges the answers to "
        "llava-bench and mm-vet; its requests may cost money.",
        show_default=False,
    ),
]
JudgeModel = Annotated[str | None, typer.Option(help="The judge's name at that server.", show_default=False)]
JudgeKeyEnv = Annotated[
    str | None,
    typer.Option(help="Environment variable with the server's key.", show_default="OPENAI_API_KEY, if set"),
]
JudgeOptions = Annotated[
    str | None,
    typer.Option(
        help="More fields of each request to the judge, in JSON; null omits a field.",
        show_default='{"temperature": 0, "max_tokens": 1024}',
    ),
]
JudgeConcurrency = Annotated[
    int | None, typer.Option(min=1, max=1000, help="Requests to the judge at the same time.", show_default="8")
]
JudgeTimeout = Annotated[
    float | None,
    typer.Option(
        min=0.1, callback=finite, help="Seconds to wait for the judge's reply before it is retried.", show_default="120"
    ),
]


def judge_of(options: dict[str, Any], benchmarks: "Sequence[Benchmark]") -> "AnswerJudge | None":
    """The judge that the options describe, all checked before a model is loaded; None without `--judge-url`."""
    given = [option for option, value in options.items() if value is not None]
    if not given:
        return None
    url, model, key_name = options["--judge-url"], options["--judge-model"], options["--judge-key-env"]
    if url is None or model is None:
        missing = "--judge-url" if url is None else "--judge-model"
        raise typer.BadParameter(f"{given[0]} needs {missing}; a judge is an address and the name of a model there")

    from aligngpt.evaluation.judging.asking import AnswerJudge
    from aligngpt.evaluation.judging.verdicts import JudgedBenchmark
    from aligngpt.scoring.judging.endpoint import API_KEY, Endpoint, checked_endpoint, key_of_environment
    from aligngpt.scoring.judging.judge import parse_options

    if not any(isinstance(one, JudgedBenchmark) for one in benchmarks):
        raise typer.BadParameter(
            f"{given[0]} is for llava-bench and mm-vet; the other benchmarks need no judge, omit it"
        )
    key = key_of_environment(key_name or API_KEY)
    if key is None and key_name is not None:
        raise AlignGPTError(f"the environment variable {key_name} of --judge-key-env is not set; set it to the key")
    client = Endpoint(
        checked_endpoint(url),
        key,
        concurrency=options["--judge-concurrency"] or 8,
        seconds=options["--judge-timeout"] or 120.0,
        key_name=key_name or API_KEY,
        options=("--judge-url", "--judge-model"),
    )
    return AnswerJudge(client, model, parse_options(options["--judge-options"]))
