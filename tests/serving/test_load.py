"""Strange requests and many clients: no request makes the server fail, and none leaves anything behind."""

import asyncio
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

import httpx

from aligngpt.serving.running import Options, make_server


@pytest.mark.slow
def test_requests_made_from_the_description_find_no_fault(engine: Any) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="needs the extra test")
    from hypothesis import HealthCheck, Phase, given, settings

    app = make_server(engine, "tiny", Options(seconds=20), None).config.app
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"host": "127.0.0.1"})
    statuses: Counter[int] = Counter()

    def check(case: Any) -> None:
        if case.path == "/v1/chat/completions" and isinstance(case.body, dict):
            case.body |= {"model": "tiny", "max_completion_tokens": 3}
            case.body.pop("max_tokens", None)
        response = case.call(headers={"host": "127.0.0.1"})
        statuses[response.status_code] += 1
        assert response.status_code < 500, response.text

    for result in schema.get_all_operations():
        operation = result.ok()
        drawn = settings(
            max_examples=60 if operation.path == "/v1/chat/completions" else 5,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        drawn(given(case=operation.as_strategy())(check))()
    assert statuses[200]
    assert statuses[400]


@pytest.mark.slow
def test_many_clients_of_which_a_third_leaves(
    engine: Any, run_server: Callable, ask: Callable, picture_url: str
) -> None:
    psutil = pytest.importorskip("psutil", reason="needs the extra test")
    chance = random.Random(0)
    seconds: list[float] = []
    statuses: Counter[int] = Counter()

    async def one(client: httpx.AsyncClient, url: str, leaves: bool) -> None:
        body = {
            "model": "tiny",
            "messages": ask(picture_url if chance.random() < 0.5 else None),
            "max_tokens": chance.randint(4, 24),
            "stream": chance.random() < 0.5,
        }
        begun = time.monotonic()
        try:
            response = await client.post(url, json=body, timeout=chance.random() if leaves else 120)
        except httpx.TimeoutException:
            statuses[0] += 1
            return
        statuses[response.status_code] += 1
        if response.status_code == 200:
            seconds.append(time.monotonic() - begun)

    async def many(url: str, count: int, together: int) -> None:
        places = asyncio.Semaphore(together)
        limits = httpx.Limits(max_connections=together, max_keepalive_connections=0)

        async def placed(client: httpx.AsyncClient, number: int) -> None:
            async with places:
                await one(client, url, number % 3 == 0)

        async with httpx.AsyncClient(limits=limits) as client:
            await asyncio.gather(*(placed(client, number) for number in range(count)))

    process = psutil.Process(os.getpid())
    with run_server(engine, Options(port=0, rows=8, max_queue=250)) as (address, server):
        url = f"{address}/v1/chat/completions"
        asyncio.run(many(url, 200, 200))
        first = process.memory_info().rss
        for _ in range(4):
            asyncio.run(many(url, 250, 50))
        grown = process.memory_info().rss - first
        end = time.monotonic() + 20
        while (server.desk.open or engine.loop.running or engine.loop.waiting) and time.monotonic() < end:
            time.sleep(0.05)
        assert (server.desk.open, engine.loop.running, engine.loop.waiting) == (0, 0, 0)
    cuts = statistics.quantiles(seconds, n=20)
    print(f"\np50 {cuts[9]:.2f} s, p95 {cuts[18]:.2f} s, statuses {dict(statuses)}, grown {grown / 2**20:.0f} MiB")
    assert set(statuses) <= {0, 200, 429}
    assert statuses[200] > 600
    # What conversations keep is bounded, and less than this with tiny models.
    assert grown < 64 * 2**20
