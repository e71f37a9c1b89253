"""The similarity map of a request is what the gate compares, without the lengths of the vectors."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from aligngpt.inference.engine import Engine, EngineError, Request
from aligngpt.inference.similarity_map import similarity_map

QUESTION = "what colour is the circle ?"


def test_the_map_is_the_cosine_of_what_the_gate_compares(
    assembled: Callable, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(*assembled()) as engine:
        read: list[tuple[torch.Tensor, torch.Tensor]] = []
        alignment = engine.model.model.alignment
        assert alignment is not None
        alignment.register_forward_pre_hook(lambda _, inputs: read.append(inputs[:2]))
        request = Request.ask(QUESTION, pictures[0], pictures[1])
        engine.alignment_weights([request])
        ((tokens, text),) = read
        for number in range(2):
            found = similarity_map(engine, request, number)
            assert found.shape == (4, 4)
            expected = torch.nn.functional.cosine_similarity(tokens[number], text, dim=-1).view(4, 4)
            torch.testing.assert_close(torch.from_numpy(found), expected)


@pytest.mark.parametrize("pooling", ["instruction", "all"])
def test_later_turns_change_the_map_only_if_the_gate_reads_them(
    assembled: Callable, pictures: list[Image.Image], asks: Callable, pooling: str
) -> None:
    with Engine(*assembled(text_pooling=pooling)) as engine:
        first = similarity_map(engine, Request(asks(QUESTION, 1), (pictures[0],)))
        later = similarity_map(engine, Request(asks(QUESTION, 1, "red", "how many ?"), (pictures[0],), level=2))
        assert (first == later).all() == (pooling == "instruction")


def test_what_has_no_map_says_so(assembled: Callable, pictures: list[Image.Image]) -> None:
    with Engine(*assembled()) as engine:
        with pytest.raises(EngineError, match="no image 0"):
            similarity_map(engine, Request.ask(QUESTION))
        with pytest.raises(EngineError, match="no image 1"):
            similarity_map(engine, Request.ask(QUESTION, pictures[0]), 1)
    with Engine(*assembled(alignment="none")) as engine, pytest.raises(EngineError, match="no alignment module"):
        similarity_map(engine, Request.ask(QUESTION, pictures[0]))
