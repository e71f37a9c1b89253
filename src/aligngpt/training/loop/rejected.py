"""The samples that turn out to be of no use while a stage trains: counted once, whoever of the processes read them."""

import json
from collections.abc import Iterable
from pathlib import Path

from aligngpt.data.rejects import Rejected, Rejects
from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.training.distributed.processes import gather

FILE = "rejected.json"
"""In a checkpoint: what was rejected up to its step."""


class RejectedSamples:
    """The rejected samples of a stage.

    A sample is found by the loader worker that reads its row, again by another worker in the next epoch, and by any of
    the processes that train together. All that they find goes through here and is counted once.

    Args:
        rejects: those that were found before training; what is found in training is added.
        records: how many records the data has, of which a share may be rejected.
    """

    def __init__(self, rejects: Rejects, records: int) -> None:
        self.rejects, self.records = rejects, records
        self.known: dict[int, Rejected] = {}
        self._pending: dict[int, Rejected] = {}

    def see(self, found: Iterable[Rejected]) -> None:
        """Note what a batch of this process brought."""
        self._pending |= {one.place: one for one in found if one.place not in self.known}

    @property
    def pending(self) -> int:
        """How many are noted and not counted yet."""
        return len(self._pending)

    def settle(self) -> None:
        """Count what all processes have noted; every process calls it at the same time.

        Raises:
            TooManyRejects: the share is above the limit; raised in every process alike.
        """
        noted = gather([tuple(one) for one in self._pending.values()])
        self._pending.clear()
        for one in map(Rejected._make, noted):
            if one.place not in self.known:
                self.known[one.place] = one
                self.rejects.add(one.record, one.id, one.reason, one.detail)
        self.rejects.check(self.records)

    def save(self, checkpoint: Path) -> None:
        """Write what was rejected so far into a checkpoint."""
        with atomic_write(checkpoint / FILE) as file:
            json.dump([list(one) for one in self.known.values()], file)

    def resume(self, checkpoint: Path) -> None:
        """Count what was rejected before a checkpoint was written.

        Raises:
            AlignGPTError: the checkpoint's file is damaged.
        """
        path = checkpoint / FILE
        if not path.is_file():
            return
        try:
            found = [Rejected(*one) for one in json.loads(path.read_text(encoding="utf-8"))]
        except (ValueError, TypeError) as error:
            raise AlignGPTError(
                f"{path} is damaged ({error}); remove {checkpoint.parent} to begin the stage anew"
            ) from error
        for one in found:
            self.known[one.place] = one
            self.rejects.add(one.record, one.id, one.reason, one.detail)
