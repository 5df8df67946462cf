"""Why something could not be downloaded: the variable, the disk, the file, the account or the network."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import timm
from safetensors import SafetensorError
from safetensors.torch import load_file

from resnet_cifar import hub_access
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.validation import parse
from resnet_cifar.models.factory import create_model

WEIGHTS = parse({"model": {"name": "test_resnet.r160_in1k"}, "data": {"image_size": 32}})


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path) -> Iterator[None]:
    with mock.patch.dict(os.environ, HF_HOME=str(tmp_path)):
        yield


def answer(status: int, name: str = "HfHubHTTPError") -> Exception:
    """An error of huggingface_hub, with the hub's answer behind it."""
    error = type(name, (OSError,), {})(f"{status} Client Error")
    error.response = SimpleNamespace(status_code=status)
    outer = ValueError("It seems that ...")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize("value", ["1", "true", "ON", "Yes"])
@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_every_spelling_of_offline(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert hub_access.offline_variables(for_datasets=True) == [f"{name}={value}"]
    assert hub_access.offline_variables(for_datasets=False) == ([] if "DATASETS" in name else [f"{name}={value}"])
    failure = hub_access.explain(ConnectionError(), True, Path("x"))
    assert failure == hub_access.Failure(f"{name}={value} forbids downloads", f"unset {name}")


def test_all_variables_that_forbid_downloads_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    fix = hub_access.explain(ConnectionError(), True, Path("x")).fix
    assert fix == "unset HF_DATASETS_OFFLINE and HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert hub_access.offline_variables(for_datasets=False) == [], "huggingface_hub does not look at the other"


def test_a_hub_that_does_not_answer_is_no_variable_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_access, "answers", lambda address: False)
    monkeypatch.setattr(hub_access, "_gave_up", type(hub_access._gave_up)())
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub_access.go_offline_if_unreachable()
    assert os.environ["HF_HUB_OFFLINE"] == "1" and hub_access.is_offline(for_datasets=True)
    assert "cannot be reached" in hub_access.explain(ConnectionError(), True, Path("x")).reason


@pytest.mark.parametrize("address", ["huggingface.co", "ftp://host", "https://", "http:host", "http://[::1"])
def test_an_endpoint_that_is_no_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(UserError) as caught:
        hub_access.check_variables()
    assert str(caught.value) == f"HF_ENDPOINT={address} is not a web address: use https://HOST, or unset it"


@pytest.mark.parametrize("token", ["hf_ä", "hf x", "hf_\x00"])
def test_a_token_that_is_none_is_not_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HF_TOKEN": token})
    with pytest.raises(UserError, match=r"^HF_TOKEN is not a token") as error:
        hub_access.check_variables()
    assert token not in str(error.value)


@pytest.mark.parametrize(
    ("error", "reason", "fix"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be written (No space left on device)", "make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "from HF_HOME, cannot be written (Disk quota", "set HF_HOME"),
        (SafetensorError("header too large"), "the downloaded file is damaged: header too large", "delete "),
        (OSError("Consistency check failed: file should be of size 3"), "damaged: Consistency check failed", "delete "),
        (pickle.UnpicklingError("invalid load key"), "damaged: invalid load key", "download it again"),
        (answer(404, "RepositoryNotFoundError"), "has nothing of that name that you can read", "check the name"),
        (answer(404, "EntryNotFoundError"), "has nothing of that name", "check the name"),
        (answer(403, "GatedRepoError"), "is restricted", "hf auth login"),
        (answer(503), "cannot be reached: it answers 503", "try again later"),
        (ConnectionError("refused"), "(https://huggingface.co) cannot be reached", "check the network"),
    ],
)
def test_weights_say_what_was_wrong(
    error: Exception, reason: str, fix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    if isinstance(error, ValueError):  # what is raised is the hub's error itself
        error = error.__cause__
    with pytest.raises(UserError) as mistake:
        create_model(WEIGHTS, 2, pretrained=True)
    said = str(mistake.value)
    assert said.startswith("the pretrained weights of model.name 'test_resnet.r160_in1k' cannot be loaded, because ")
    assert reason in said and fix in said and "--model.pretrained False" in said
    if "delete" in fix:
        assert "/models--timm--test_resnet.r160_in1k to download" in said


def test_an_error_that_no_download_causes_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", mock.Mock(side_effect=RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        create_model(WEIGHTS, 2, pretrained=True)


def test_a_torn_file_raises_what_is_known_as_damage(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(SafetensorError) as error:
        load_file(tmp_path / "model.safetensors")
    assert "damaged" in hub_access.explain(error.value, False, tmp_path).reason


def test_a_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "hf"))
    failure = hub_access.cache_failure(NotADirectoryError(errno.ENOTDIR, "Not a directory"))
    assert (
        failure.reason == f"the hub's cache {tmp_path}/file/hf/hub, from HF_HOME, cannot be written (Not a directory)"
    )
    assert hub_access.cache_failure(ConnectionError()) is None


def test_a_token_that_is_refused_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    failure = hub_access.explain(answer(401), True, Path("x"))
    assert failure.fix == "correct or unset HF_TOKEN"
