"""Names of models: folders here, names on the hub, and mistakes in either."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub


def refused(name: str, **settings: Any) -> str:
    with pytest.raises(AlignGPTError) as caught:
        local_or_hub(name, "the model", AlignGPTError, **settings)
    return str(caught.value)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names that the hub is asked for; it knows `owner/known` only."""
    monkeypatch.chdir(tmp_path)
    names: list[str] = []

    def model_info(_: HfApi, name: str, *, timeout: float, files_metadata: bool) -> SimpleNamespace:
        names.append(name)
        assert 0 < timeout <= 10
        if name == "owner/offline":
            raise ConnectionError("Name or service not known")
        # The hub's client uses one HTTP library or another, depending on its version.
        response: Any = SimpleNamespace(headers={}, request=None, status_code=404)
        if name == "owner/unknown":
            raise RepositoryNotFoundError("none", response=response)
        if name == "owner/strange":
            raise HfHubHTTPError("overloaded", response=response)
        sizes = {"model.safetensors": 1_500_000_000, "model.bin": 1_500_000_000, "config.json": 100}
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file, size=sizes[file]) for file in sizes])

    monkeypatch.setattr(HfApi, "model_info", model_info)
    return names


def test_a_folder_is_used_without_asking_the_hub(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "bb" / "language").mkdir(parents=True)
    assert local_or_hub("bb/language", "the model", AlignGPTError) == "bb/language"
    assert asked == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bb/langage", "no such file or folder; did you mean bb/language?"),
        ("bb/xyz", "no such file or folder."),
        ("cc/bb/language", "no such file or folder."),
        ("bbb/language", "no such file or folder; did you mean bb/language?"),
        ("./xyz", "no such file or folder."),
    ],
)
def test_a_mistyped_path_is_not_asked_of_the_hub(asked: list[str], tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "bb" / "language").mkdir(parents=True)
    assert refused(name) == (
        f"the model {name} cannot be loaded: {said} Give a model folder (with config.json) or a hub name, owner/name"
    )
    assert asked == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("owner/unknown", "the Hugging Face hub has no model of this name"),
        ("owner/offline", "the Hugging Face hub cannot be asked for it (Name or service not known)"),
    ],
)
def test_the_hub_is_asked_once_for_a_name(asked: list[str], name: str, said: str) -> None:
    assert f"the model {name} cannot be loaded: there is no such folder here, and {said}" in refused(name)
    assert asked == [name]


@pytest.mark.parametrize("name", ["owner/known", "owner/strange"])
def test_a_name_that_the_hub_may_have_is_used(asked: list[str], name: str) -> None:
    assert local_or_hub(name, "the model", AlignGPTError) == name


def test_a_name_in_the_hub_s_local_cache_is_used_without_asking(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--owner--offline" / "snapshots").mkdir(parents=True)
    assert local_or_hub("owner/offline", "the model", AlignGPTError) == "owner/offline"
    assert asked == []


def test_offline_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "is not in the local cache" in refused("owner/name") and "HF_HUB_OFFLINE is set" in refused("owner/name")


def test_a_name_without_owner_is_a_path_where_one_is_needed(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    assert "there is no such folder here; did you mean clip?" in refused("clpi", with_owner=True)
    assert asked == []


@pytest.mark.parametrize("config", ["config.json", "adapter_config.json"])
def test_a_run_folder_is_not_its_model(tmp_path: Path, config: str) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / config).touch()
    assert f"it is a run folder; did you mean {tmp_path / 'run' / 'model'}?" in refused(str(tmp_path / "run"))


def test_a_download_is_announced_with_its_size(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    local_or_hub("owner/known", "the model", AlignGPTError)
    said = capsys.readouterr().err
    assert "owner/known is not in the local cache of the Hugging Face hub" in said
    assert "loading it downloads it (1.5 GB of weights)" in said
