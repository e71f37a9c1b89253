"""What was rated so far, in a file of JSON lines that belongs to one model and one set of questions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aligngpt.evaluation.alignment_measures.likelihoods import MeasureError, Numbers
from aligngpt.files import atomic_write


class KeptTables:
    """Tables of numbers by the place of what was rated; each is saved as it comes.

    Args:
        path: the file. Its first line has the state; a last line that a killed process left incomplete is dropped.
        state: what the numbers depend on, as JSON values.

    Attributes:
        known: the tables by place.

    Raises:
        MeasureError: the file has tables of another state.
    """

    def __init__(self, path: Path, state: Mapping[str, Any]) -> None:
        self._path = path
        self.known: dict[int, Numbers] = {}
        if not path.is_file() or not (lines := path.read_bytes().split(b"\n")[:-1]):
            with atomic_write(path) as file:
                file.write(json.dumps(dict(state)) + "\n")
            return
        with atomic_write(path, "wb") as whole:
            whole.write(b"".join(line + b"\n" for line in lines))
        before = json.loads(lines[0])
        if differing := [field for field, value in state.items() if before.get(field) != value]:
            earlier = ", or an earlier version of aligngpt wrote it" if "model" in differing else ""
            raise MeasureError(
                f"{path} has likelihoods with other {' and '.join(differing)}{earlier}; choose another folder for the "
                "results, or remove that file"
            )
        self.known = {one["set"]: np.array(one["log_probabilities"]) for one in map(json.loads, lines[1:])}

    def missing(self, count: int) -> list[int]:
        """The places below `count` without a table."""
        return [place for place in range(count) if place not in self.known]

    def add(self, place: int, table: Numbers) -> None:
        """Keep a table, in memory and in the file."""
        self.known[place] = table
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"set": place, "log_probabilities": table.tolist()}) + "\n")
