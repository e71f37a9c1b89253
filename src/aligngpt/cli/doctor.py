"""`aligngpt doctor`: the machine and the installation."""

import json
from typing import Annotated

import typer

from aligngpt.cli.options import PROBLEMS_FOUND


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Show what this machine and this installation have, what is missing, and what that costs.

    The exit code is 3 if something that every command needs is missing or broken, else 0. The network is not used.
    """
    from aligngpt.doctor import examine, report

    findings = examine()
    if as_json:
        print(json.dumps(report(findings), indent=2))
    else:
        for one in findings:
            mark = {"ok": "", "note": "note: ", "problem": "PROBLEM: "}[one.state]
            print(f"{one.name}: {one.found}{f'; {mark}{one.advice}' if one.advice else ''}")
    if any(one.state == "problem" for one in findings):
        raise typer.Exit(PROBLEMS_FOUND)
