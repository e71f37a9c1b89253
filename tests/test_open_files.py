"""The limit of open files is raised where training needs it, and a low one is an error instead of a hang."""

import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest

from aligngpt.open_files import raise_limit
from aligngpt.training.feed import collators
from aligngpt.training.feed.collators import check_open_files
from aligngpt.training.recipe import Recipe, RecipeError


@pytest.fixture
def limits() -> Iterator[Callable[[], tuple[int, int]]]:
    """Sets the soft limit to that of most systems; returns the limits when called."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield lambda: resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_is_raised_as_far_as_allowed_and_never_lowered(limits: Callable) -> None:
    assert raise_limit(2000) == 2000
    assert limits()[0] == 2000
    assert raise_limit(1500) == 2000
    hard = limits()[1]
    if hard != resource.RLIM_INFINITY:
        assert raise_limit(hard + 1) == hard


def test_workers_that_could_not_send_a_step_are_refused(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collators, "raise_limit", lambda: 1024)
    packed = {"instruct__micro_batch_size": None, "instruct__micro_batch_tokens": 512}
    recipe = recipe_of("run", instruct__workers=2, **packed)
    with pytest.raises(RecipeError, match=r"only 1024 files .*`ulimit -n 4096`; .*, or set workers: 0"):
        check_open_files(recipe.instruct)
    check_open_files(recipe_of("run", instruct__workers=0, **packed).instruct)
    check_open_files(recipe_of("run", instruct__workers=2).instruct)
    monkeypatch.setattr(collators, "raise_limit", lambda: 4096)
    check_open_files(recipe.instruct)


def test_workers_whose_sockets_would_have_too_long_a_name_are_refused(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    for length, refused in ((75, False), (76, True)):
        monkeypatch.setattr(tempfile, "tempdir", "/" + "t" * (length - 1))
        check_open_files(recipe_of("run").instruct)
        with pytest.raises(RecipeError, match="longer than the 75 bytes") if refused else nullcontext():
            check_open_files(recipe_of("run", instruct__workers=1).instruct)
