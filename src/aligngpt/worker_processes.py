"""Worker processes that do not outlive their parent."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this worker as soon as its parent has ended, however that ended; call once in the worker.

    If the parent is killed, the worker would otherwise wait for work for ever, with all of its memory.
    """
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
