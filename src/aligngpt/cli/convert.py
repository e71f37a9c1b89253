"""`aligngpt convert` and `aligngpt merge`: model folders made from other models."""

from pathlib import Path
from typing import Annotated

import typer

from aligngpt.cli.options import must_exist

Out = Annotated[Path | None, typer.Option(help="Another way to give TARGET.", show_default=False)]


def one_folder(target: Path | None, out: Path | None) -> Path:
    """The folder to write, given as an argument or as an option."""
    if target is not None and out is not None:
        raise typer.BadParameter(f"the folder to write is given twice, {target} and --out {out}; give one of them")
    if (folder := target or out) is None:
        raise typer.BadParameter("give the folder to write, TARGET or --out")
    return folder


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of an original AlignGPT or LLaVA model, or an mm_projector_align.bin or mm_projector.bin file."
        ),
    ],
    target: Annotated[
        Path | None, typer.Argument(help="Folder for the converted model.", show_default="the folder given by --out")
    ] = None,
    vision_tower: Annotated[
        str | None, typer.Option(help="Folder or hub name.", show_default="the one named in SOURCE")
    ] = None,
    language_model: Annotated[
        str | None,
        typer.Option(help="Language model that mm_projector_align.bin was trained for: folder or hub name."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name.", show_default="the tokenizer of SOURCE")
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="Name of a chat template, or a Jinja file.", show_default="the template of SOURCE, or vicuna"
        ),
    ] = None,
    original: Annotated[
        bool,
        typer.Option("--to-original", help="Convert one of our models to the format of the original code instead."),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Random seed for weights that SOURCE does not have.", show_default="0")
    ] = None,
    out: Out = None,
) -> None:
    """Convert a published AlignGPT or LLaVA model to a model folder that every other command reads."""
    folder = one_folder(target, out)
    if original and vision_tower is None:
        raise typer.BadParameter(
            "--to-original requires --vision-tower, the name that the original code is to load the tower by"
        )
    if original:
        for option, value in (
            ("--language-model", language_model),
            ("--tokenizer", tokenizer),
            ("--chat-template", chat_template),
            ("--seed", seed),
        ):
            if value is not None:
                raise typer.BadParameter(f"{option} is not for --to-original, which takes it from SOURCE; omit it")
    must_exist(source, "the model")

    from aligngpt.model.foreign.conversion import convert, to_original

    if original:
        assert vision_tower is not None
        print(f"{to_original(source, folder, vision_tower=vision_tower):,} parameters: {folder}")
        return
    done = convert(
        source,
        folder,
        vision_tower=vision_tower,
        language_model=language_model,
        tokenizer=tokenizer,
        chat_template=chat_template,
        seed=0 if seed is None else seed,
    )
    print(f"{done.layout}: {done.parameters:,} parameters: {folder}")
    print(f"chat template: {done.chat_template}")
    for note in done.notes:
        print(f"note: {note}")
    if done.fresh:
        print(f"newly initialised, to be trained: {', '.join(done.fresh)}")


def merge(
    adapter: Annotated[
        Path, typer.Argument(help="Adapter folder in peft's format, as a stage with lora.merge=false writes it.")
    ],
    target: Annotated[
        Path | None, typer.Argument(help="Folder for the merged model.", show_default="the folder given by --out")
    ] = None,
    out: Out = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base model of the adapter: folder or hub name.", show_default="the one that ADAPTER names"),
    ] = None,
) -> None:
    """Merge an adapter and its base model into one model folder."""
    folder = one_folder(target, out)
    must_exist(adapter, "the adapter")

    from aligngpt.model.adapters import merge_adapter

    print(f"{merge_adapter(adapter, folder, base=base):,} parameters: {folder}")
