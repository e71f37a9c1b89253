"""What every test relies on: no network, one thread a process, the same random numbers in any order, an own cache."""

import os

# Read when torch, transformers and matplotlib are first imported, so set before any test module is.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

import gc
import signal
import socket
import sys
from collections.abc import Iterator

import pytest

# A script's background job ignores Ctrl-C, and so would the commands that tests start and stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tiny random backbones, models and scorers, for whoever needs some.
pytest_plugins = [
    "tiny_models",
    "tiny_scorers",
    "tiny_recipes",
    "tiny_material",
    "object_store",
    "scored_sources",
    "full_size",
    "judge_server",
]


def pytest_collection_finish() -> None:
    """Leave all that was imported out of garbage collections, of which each training run makes two full ones."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """A connection to anything but this machine fails the test that tries it."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: tuple[str, int] | str) -> None:
        remote = self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1")
        if remote:
            pytest.fail(f"a test tried to connect to {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_locally)
        yield


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests and the programs they start keep for later is not kept in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """A test draws the same numbers whichever tests ran before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
