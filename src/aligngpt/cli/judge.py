"""`aligngpt judge`: a vision-language model behind an endpoint rates how well captions describe their images."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from aligngpt.cli.numbers import finite
from aligngpt.cli.options import CaptionColumn, IdColumn, ImageColumn, MaxRejectShare, image_root_option, must_exist
from aligngpt.cli.scoring import SHARD_SIZE, next_command
from aligngpt.errors import AlignGPTError
from aligngpt.progress import say


def judge(
    source: Annotated[str, typer.Argument(help="Image–caption pairs, in any form that `aligngpt score` reads.")],
    endpoint: Annotated[
        str, typer.Option(help="Address of an OpenAI-compatible server, such as http://localhost:8000/v1.")
    ],
    model: Annotated[str, typer.Option(help="The model's name at the endpoint.")],
    out: Annotated[Path, typer.Option(help="Folder for the scores.")],
    prompt: Annotated[
        Path | None,
        typer.Option(
            help="Text file with the question; {caption} in it becomes the caption, {lowest} and {highest} the "
            "ends of the scale.",
            show_default="a rating of the match",
        ),
    ] = None,
    scale: Annotated[str, typer.Option(help="Lowest and highest score; other numbers are rejected.")] = "0-10",
    options: Annotated[
        str | None,
        typer.Option(
            help="More fields of each request, in JSON; null omits a field.",
            show_default='{"temperature": 0, "max_tokens": 1024}',
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Requests at the same time.")] = 8,
    timeout: Annotated[
        float, typer.Option(min=0.1, callback=finite, help="Seconds to wait for a reply before it is retried.")
    ] = 120.0,
    max_side: Annotated[int, typer.Option(min=16, help="Larger images are shrunk to this many pixels.")] = 1024,
    replies: Annotated[
        Path | None,
        typer.Option(help="File of saved replies; several OUT may share one.", show_default="replies.jsonl in OUT"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Send the requests without asking first.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Judge only the first records, as a try; OUT cannot be resumed without this option."),
    ] = None,
    image_root: Annotated[Path | None, image_root_option("the folder of SOURCE")] = None,
    caption_column: CaptionColumn = None,
    image_column: ImageColumn = None,
    id_column: IdColumn = None,
    max_reject_share: MaxRejectShare = 0.05,
) -> None:
    """Ask a vision-language model at an endpoint how well each caption describes its image, as scores for `levels`."""
    if prompt is not None:
        must_exist(prompt, "the prompt")

    from aligngpt.data.records.pairs import open_pairs
    from aligngpt.levels.making import DEFAULT_LEVELS
    from aligngpt.scoring.first_pairs import FirstPairs
    from aligngpt.scoring.judging.endpoint import UNANSWERED, Endpoint, checked_endpoint, key_of_environment
    from aligngpt.scoring.judging.job import Plan, judge_source
    from aligngpt.scoring.judging.judge import Judge, parse_options
    from aligngpt.scoring.judging.questions import Prompt, Scale

    asked = Judge(
        model,
        Prompt() if prompt is None else Prompt.read(prompt),
        Scale.parse(scale),
        parse_options(options),
        max_side,
    )
    client = Endpoint(checked_endpoint(endpoint), key_of_environment(), concurrency=concurrency, seconds=timeout)
    pairs = open_pairs(
        source,
        image_root=image_root,
        shard_size=SHARD_SIZE,
        caption_column=caption_column,
        image_column=image_column,
        id_column=id_column,
    )
    if limit is not None:
        pairs = FirstPairs(pairs, limit)

    def confirm(plan: Plan) -> None:
        saved = f", less those of {plan.saved} saved replies that are about the same" if plan.saved else ""
        told = (
            f"up to {plan.requests} requests to {client.url}{saved}; each sends an image, and they may cost money. "
            "Failed requests are repeated"
        )
        say(told)
        if yes or not plan.requests:
            return
        if not sys.stdin.isatty():
            raise AlignGPTError(
                f"{told}. There is no terminal to ask whether to send them; add --yes (try --limit 10 first)"
            )
        if not typer.confirm("send them?", err=True):
            raise AlignGPTError("nothing was sent")

    summary = judge_source(
        pairs, asked, out, client, replies=replies, max_reject_share=max_reject_share, confirm=confirm
    )
    outcome = summary.outcome
    reasons = ", ".join(f"{reason} {count}" for reason, count in outcome.reasons.items())
    print(f"{outcome.scored} pairs scored, {outcome.rejected} rejected{reasons and f' ({reasons})'}: {out}")
    print(f"{summary.requests} requests sent")
    if count := outcome.reasons.get(UNANSWERED):
        print(f"{count} pairs got no reply; the same command asks about them again")
    distinct = _distinct_scores(out)
    if distinct < 2:
        print("all scores are equal, so no levels can be made of them")
        return
    print(f"next: {next_command(source, out, pairs.kind, distinct if distinct < DEFAULT_LEVELS else None)}")


def _distinct_scores(out: Path) -> int:
    from aligngpt.levels.making import open_scores

    return len({score for batch in open_scores(out).batches() for score in batch.scores.tolist()})
