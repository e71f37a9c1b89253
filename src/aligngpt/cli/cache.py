"""`aligngpt cache`: the cache of derived data."""

from typing import Annotated

import typer


def cache(
    trim: Annotated[
        str | None,
        typer.Option(
            help="Remove the entries used longest ago until this size is left, as in 20GB; or those not used for this "
            "time, as in 30d."
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all entries.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before removing.")] = False,
) -> None:
    """Show where the cache of derived data is and how large, or remove entries from it.

    Entries are made again when they are needed. Do not remove entries while another command runs.
    """
    from aligngpt.cache import CacheError, cache_folder
    from aligngpt.cache_entries import cache_entries, parse_limit, remove_entries, size_text

    if trim is not None and clear:
        raise typer.BadParameter("give --trim or --clear, not both")
    limit = None if trim is None else parse_limit(trim)
    entries = cache_entries()
    print(f"cache: {cache_folder('samples').parent}")
    if not entries:
        print("empty")
        return
    for kind in sorted({entry.kind for entry in entries}):
        of_kind = [entry for entry in entries if entry.kind == kind]
        print(f"{kind}: {len(of_kind)} entries, {size_text(sum(entry.size for entry in of_kind))}")
    if limit is None and not clear:
        return
    chosen = entries if limit is None else limit.beyond(entries)
    if not chosen:
        print("nothing to remove")
        return
    what = f"{len(chosen)} of {len(entries)} entries, {size_text(sum(entry.size for entry in chosen))}"
    if not yes and not typer.confirm(f"remove {what}?"):
        raise typer.Exit(1)
    left = remove_entries(chosen)
    if left:
        raise CacheError(f"{len(left)} entries cannot be removed, among them {left[0].path}; remove them by hand")
    print(f"removed: {what}")
