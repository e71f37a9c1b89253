"""Selecting the device and precision, and the errors for unavailable ones."""

import re
from pathlib import Path

import pytest
import torch

from aligngpt import device as module
from aligngpt.device import DeviceError, resolve_device, resolve_dtype, supports_bfloat16

CPU = torch.device("cpu")


def machine(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_the_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_prefers_cuda_then_apples_then_the_cpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    machine(monkeypatch, cuda=cuda, mps=mps)
    # Allocating would need a real device.
    monkeypatch.setattr(torch, "empty", lambda *_, device: device)
    assert resolve_device() == torch.device(expected)


@pytest.mark.parametrize(
    "name", ["gpu", "tpu", "", "CPU", "cuda:-1", "cuda:99", "cpu:x", "xla", "hpu", "privateuseone"]
)
def test_a_device_that_is_not_there_is_an_error_that_says_what_to_use(name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        resolve_device(name)
    message = str(caught.value)
    assert message.startswith(f"the device {name!r} cannot be used: ")
    assert message.endswith("; use --device cpu or auto")
    assert "\n" not in message


def test_a_gpu_that_auto_takes_and_cannot_use_is_not_advised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=True, mps=False)
    advice = "use --device cpu where the command has it, or set ALIGNGPT_DEVICE=cpu"
    with pytest.raises(DeviceError, match=rf"^the device 'cuda' cannot be used: .*; {advice}$"):
        resolve_device()
    monkeypatch.setenv("ALIGNGPT_DEVICE", "cpu")
    assert resolve_device() == CPU
    monkeypatch.setenv("ALIGNGPT_DEVICE", "cuda:1")
    with pytest.raises(DeviceError, match=r"^ALIGNGPT_DEVICE is 'cuda:1'; set it to one of cpu, cuda, mps$"):
        resolve_device()


@pytest.mark.parametrize(("name", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_named_precision_is_taken_on_any_device(name: str, expected: torch.dtype) -> None:
    for device in ("cpu", "cuda", "mps"):
        assert resolve_dtype(name, torch.device(device)) == expected


@pytest.mark.parametrize("name", ["float16", "bf16", "fp32", "", "Float32", "int8"])
def test_an_unknown_precision_is_an_error_that_names_the_known(name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        resolve_dtype(name, CPU)
    assert str(caught.value) == f"the precision must be one of auto, float32, bfloat16, got {name!r}"


@pytest.mark.parametrize(
    ("bfloat16_takes", "waits", "expected"),
    [
        (0.5, 0.0, torch.bfloat16),
        (0.75, 0.0, torch.float32),
        (0.9, 0.0, torch.float32),
        (2.0, 0.0, torch.float32),
        (0.5, 3.0, torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_is_clearly_faster_with_it_however_busy(
    monkeypatch: pytest.MonkeyPatch, bfloat16_takes: float, waits: float, expected: torch.dtype
) -> None:
    """Other processes may occupy the core while bfloat16 is timed."""
    computed = elapsed = 0.0

    def multiply(left: torch.Tensor, right: torch.Tensor) -> None:
        nonlocal computed, elapsed
        takes = bfloat16_takes if left.dtype == torch.bfloat16 else 1.0
        computed += takes
        elapsed += takes + (waits if left.dtype == torch.bfloat16 else 0.0)

    threads = torch.get_num_threads()
    module._cpu_is_faster_in_bfloat16.cache_clear()
    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(module.time, "perf_counter", lambda: elapsed)
    monkeypatch.setattr(module.time, "thread_time", lambda: computed)
    assert resolve_dtype("auto", CPU) == expected
    assert torch.get_num_threads() == threads
    module._cpu_is_faster_in_bfloat16.cache_clear()


def test_a_process_is_of_one_mind_about_its_cpu() -> None:
    assert len({supports_bfloat16(CPU) for _ in range(5)}) == 1


def test_auto_is_bfloat16_where_the_gpu_computes_it_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    # An older GPU emulates bfloat16, which is slower than float32.
    for native in (True, False):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: including_emulation or native,
        )
        assert supports_bfloat16(torch.device("cuda")) is native
        assert resolve_dtype("auto", torch.device("cuda")) == (torch.bfloat16 if native else torch.float32)


def test_auto_is_float32_on_apples() -> None:
    assert resolve_dtype("auto", torch.device("mps")) == torch.float32


def test_nothing_is_computed_in_float64_on_a_device() -> None:
    # An Apple GPU has no float64: values are moved to the CPU first.
    sources = Path(module.__file__).parent.rglob("*.py")
    assert not [path.name for path in sources if re.search(r"\.double\(\).*\.cpu\(\)", path.read_text("utf-8"))]
