"""Samples found to be unusable during training: each is counted once, whichever process reads it."""

import json
from collections.abc import Iterable
from pathlib import Path

from aligngpt.data.rejects import Rejected, Rejects
from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.training.distributed.processes import gather

FILE = "rejected.json"
"""File in a checkpoint with the samples rejected up to its step."""


class RejectedSamples:
    """The rejected samples of a stage.

    The same sample may be found by a loader worker, by another worker in the next epoch, and by several training
    processes. All of these findings are collected here, and each sample is counted once.

    Args:
        rejects: those found before training; those found during training are added.
        records: number of records in the data, of which a limited share may be rejected.
    """

    def __init__(self, rejects: Rejects, records: int) -> None:
        self.rejects, self.records = rejects, records
        self.known: dict[int, Rejected] = {}
        self._pending: dict[int, Rejected] = {}

    def see(self, found: Iterable[Rejected]) -> None:
        """Note the rejected samples that came with a batch of this process."""
        self._pending |= {one.place: one for one in found if one.place not in self.known}

    @property
    def pending(self) -> int:
        """Number of samples noted but not counted yet."""
        return len(self._pending)

    def settle(self) -> None:
        """Count the samples noted by all processes; every process must call it.

        Raises:
            TooManyRejects: the share is above the limit; raised in every process.
        """
        noted = gather([tuple(one) for one in self._pending.values()])
        self._pending.clear()
        for one in map(Rejected._make, noted):
            if one.place not in self.known:
                self.known[one.place] = one
                self.rejects.add(one.record, one.id, one.reason, one.detail)
        self.rejects.check(self.records)

    def save(self, checkpoint: Path) -> None:
        """Write the samples rejected so far into a checkpoint."""
        with atomic_write(checkpoint / FILE) as file:
            json.dump([list(one) for one in self.known.values()], file)

    def resume(self, checkpoint: Path) -> None:
        """Count the samples that were rejected before a checkpoint was written.

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
                f"{path} is damaged ({error}); remove {checkpoint.parent} to restart the stage"
            ) from error
        for one in found:
            self.known[one.place] = one
            self.rejects.add(one.record, one.id, one.reason, one.detail)
