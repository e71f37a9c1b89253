"""The page itself, made with gradio, and the server that shows it."""

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligngpt.errors import AlignGPTError
from aligngpt.inference.engine import Engine
from aligngpt.loopback import is_loopback
from aligngpt.web.answering import MAX_QUESTION, Answering, Shown
from aligngpt.web.drawing import example_pictures

# Read when gradio is imported: without it, gradio reports its use over the network.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

try:
    import gradio as gr
    from starlette.middleware import Middleware

    from aligngpt.web.local_only import LocalOnly
except ModuleNotFoundError as error:
    raise AlignGPTError(
        f"the page needs the package {error.name}, which is missing; run pip install 'aligngpt[web]'"
    ) from error

MAX_WAITING = 16
"""Questions that may wait at once; further ones are told to come back."""

MAX_UPLOAD = "20mb"

SECONDS_KEPT = 3600
"""Uploads older than this are deleted."""

CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important; }
.gate { padding-top: 1.6em } .gate p { margin: 0 0 .5em } .gate .remark, .remark { opacity: .7; font-size: .85em }
.gate .level { display: flex; align-items: center; gap: .6em; margin: .25em 0; font-variant-numeric: tabular-nums }
.gate .level span { flex: 0 0 3.6em } .gate .level span:last-child { text-align: right }
.gate .track { position: relative; flex: 1; height: 14px; background: var(--background-fill-secondary) }
/* Below the label, which would cover parts. */
#matches .image-container { box-sizing: border-box; padding-top: 28px }
.gate .bar { height: 100%; background: var(--primary-500) }
.gate .even { position: absolute; top: -2px; bottom: -2px; width: 2px; background: var(--body-text-color); opacity: .5 }
"""


def upload_only(component: "gr.Image") -> "gr.Image":
    """Give an upload's file to the handler unopened, and fetch no addresses.

    The methods are replaced on the instance: a subclass would be served as a custom component, which has no frontend.
    """
    to_cache = component.async_move_resource_to_block_cache

    async def to_cache_if_local(source: Any) -> Any:
        if str(source).lower().startswith(("http:", "https:")):
            raise gr.Error("Addresses are not read: upload the picture.", print_exception=False)
        return await to_cache(source)

    replaced: Any = component
    replaced.preprocess = lambda payload: None if payload is None else payload.path
    replaced.async_move_resource_to_block_cache = to_cache_if_local
    return component


def build(answering: Answering, examples: Path, title: str) -> "gr.Blocks":
    """The page, not yet served.

    Args:
        answering: answers the questions.
        examples: an existing folder, into which the example pictures are written.
        title: name of the model.
    """
    with gr.Blocks(title=f"AlignGPT: {title}", analytics_enabled=False, delete_cache=(SECONDS_KEPT,) * 2) as page:
        gr.Markdown(f"## Ask about a picture\nModel: `{title.replace('`', '')}`")
        with gr.Row():
            with gr.Column(min_width=280):
                picture = upload_only(
                    gr.Image(sources=["upload", "clipboard"], label="Picture", height=300, elem_id="picture")
                )
                question = gr.Textbox(
                    label="Question", lines=1, max_lines=4, max_length=MAX_QUESTION, elem_id="question"
                )
                level = gr.Slider(
                    0,
                    answering.engine.num_levels,
                    value=0,
                    step=1,
                    label="Compare with the answer at level (0: do not compare)",
                    visible=answering.has_levels,
                    elem_id="level",
                )
                with gr.Row():
                    send = gr.Button("Ask", variant="primary", min_width=120, elem_id="ask")
                    stop = gr.Button("Stop", min_width=120, elem_id="stop")
            with gr.Column(min_width=280):
                with gr.Row():
                    answer = gr.Textbox(label="Answer", lines=3, min_width=200, interactive=False, elem_id="answer")
                    compared = gr.Textbox(
                        label="Answer at the level",
                        lines=3,
                        min_width=200,
                        interactive=False,
                        visible=False,
                        elem_id="compared",
                    )
                status = gr.Textbox(
                    show_label=False, container=False, interactive=False, visible=False, elem_id="status"
                )
                gate = gr.HTML(
                    label="What the gate chose", show_label=True, container=True, visible=False, elem_id="gate"
                )
                matches = gr.Image(
                    label="Parts of the picture that match the question",
                    interactive=False,
                    visible=False,
                    height=300,
                    buttons=[],
                    elem_id="matches",
                )
                note = gr.Textbox(show_label=False, container=False, interactive=False, visible=False, elem_id="note")

        outputs = [answer, compared, status, gate, matches, note]

        def ask(path: str | None, text: str, at: float, request: gr.Request) -> Iterator[list[Any]]:
            visitor, chosen = request.session_hash or "", int(at)
            before: Shown | None = None
            for shown in answering.ask(visitor, path, text, chosen):
                yield _updates(shown, before, chosen)
                before = shown

        def stopped(request: gr.Request) -> None:
            answering.stop(request.session_hash or "")

        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on([send.click, question.submit], ask, [picture, question, level], outputs, concurrency_limit=8, **options)
        stop.click(stopped, None, None, queue=False, **options)
        page.unload(stopped)

        rows = []
        for number, (drawn, asked) in enumerate(example_pictures()):
            file = examples / f"example-{number}.png"
            drawn.save(file)
            rows.append([str(file), asked])
        gr.Examples(rows, [picture, question], cache_examples=False, api_visibility="private")
    page.queue(max_size=MAX_WAITING)
    return page


def _updates(shown: Shown, before: Shown | None, level: int) -> list[Any]:
    """What changes in the page's parts, in the order of its outputs; the picture is sent once only."""
    same = before is not None and before.matches is shown.matches and before.gate == shown.gate
    return [
        shown.answer,
        gr.update(value=shown.compared, visible=bool(level), label=f"Answer at level {level}"),
        gr.update(value=shown.status, visible=bool(shown.status)),
        gr.skip() if same else gr.update(value=shown.gate, visible=bool(shown.gate)),
        gr.skip() if same else gr.update(value=shown.matches, visible=shown.matches is not None),
        gr.skip() if same else gr.update(value=shown.matches_note, visible=bool(shown.matches_note)),
    ]


def launch(page: "gr.Blocks", host: str, port: int) -> str:
    """Serve a page in the background; returns its address. `page.close()` ends it.

    At an address that only this machine can reach, requests of other sites' pages are refused (see `LocalOnly`).

    Raises:
        AlignGPTError: the port is taken or the host is not one of this machine's.
    """
    # The fonts of the system: the theme's own come from another host.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            # Messages of gradio name folders of this machine.
            show_error=False,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            footer_links=[],
            theme=theme,
            css=CSS,
            ssr_mode=False,
            enable_monitoring=False,
            app_kwargs={"middleware": [Middleware(LocalOnly)] if is_loopback(host) else []},
        )
    except OSError as error:
        raise AlignGPTError(
            f"the page cannot be served at {host}, port {port}; choose another with --port or --host"
        ) from error
    return str(address)


def serve(engine: Engine, title: str, *, host: str, port: int, max_new_tokens: int) -> Iterator[str]:
    """Serve the page until the process is interrupted; yields its address once it can be opened.

    Args:
        engine: answers.
        title: name of the model, as shown.
        host: address to listen on.
        port: port to listen on.
        max_new_tokens: maximum length of an answer.

    Raises:
        AlignGPTError: see `launch`.
    """
    with tempfile.TemporaryDirectory(prefix="aligngpt-web-") as folder:
        # Uploads go here and are deleted with it.
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build(Answering(engine, max_new_tokens), Path(folder), title)
        try:
            yield launch(page, host, port)
            threading.Event().wait()
        finally:
            page.close(verbose=False)
