"""A data set of the Hugging Face hub, loaded by `datasets`."""

from __future__ import annotations

import re
from pathlib import Path

from resnet_cifar import hub_access
from resnet_cifar.atomic_io import atomic_write
from resnet_cifar.cache_folder import ask_once, cache_root
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.cache import write_errors
from resnet_cifar.data.sources.base import SourceData
from resnet_cifar.data.sources.hf_columns import source_data

FIELDS = ("config_name", "splits", "columns")
_named: dict[str, str | None] = {}  # the commits that `identity` has named


def identity(data: Data) -> str:
    """The latest commit, from the hub or, if it does not answer, the last one that was seen. Raises UserError."""
    source, commit = data.source, ""
    if not hub_access.is_offline(for_datasets=True):
        commit = ask_once(f"commit {hub_access.endpoint()} {source}", lambda: _commit(source) or "")
    last = _last_commit(source)
    if commit not in ("", last):
        with write_errors(), atomic_write(_commit_file(source), flush=False) as aside:
            aside.write_text(commit)
    _named[source] = commit or last
    return f"hub {source} {_named[source] or 'unknown'}"


def read(data: Data) -> SourceData:
    """The train and test splits. Raises UserError."""
    import datasets

    datasets.disable_progress_bars()
    source = data.source
    try:
        # The commit in the cache key, even if another was pushed since, and another process has seen that.
        loaded = datasets.load_dataset(source, data.config_name or None, revision=_named[source])
    except (_http_error(), OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        not_found = isinstance(error, datasets.exceptions.DatasetNotFoundError)
        # huggingface_hub's errors are HTTP or OS errors; offline, the cache may have the name, but not these files.
        if not_found or isinstance(error, _http_error() | OSError) or hub_access.is_offline(for_datasets=True):
            raise _unreadable(source, error) from None
        check_configuration(error, data)
        raise UserError(f"data.source {source!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    return source_data(loaded, data)


def check_configuration(error: Exception, data: Data) -> None:
    """Raises UserError if the error is that a configuration must be chosen, or that there is none of this name."""
    listed = re.search(r"(?:available configs|Available): (\[.*\])", str(error))
    if listed is None:
        return
    if data.config_name:
        raise UserError(
            f"data.config_name {data.config_name!r} is no configuration of {data.source!r}: use one of {listed[1]}"
        ) from None
    raise UserError(
        f"data.source {data.source!r} has the configurations {listed[1]}: choose one with --data.config_name"
    ) from None


def check_disk_space(error: Exception) -> None:
    """Raises UserError if the cause of an error of `datasets` is that its cache cannot be written."""
    if failure := hub_access.cache_failure(error):
        raise UserError(f"{failure.reason}: {failure.fix}") from None


def _commit_file(source: str) -> Path:
    """The file with the latest commit that was seen."""
    return cache_root() / f"hub-{source.replace('/', '--')}.commit"


def _last_commit(source: str) -> str | None:
    file = _commit_file(source)
    return file.read_text() if file.is_file() else None


def _commit(source: str) -> str | None:
    """The latest commit, or None if the hub is too busy. Raises UserError if the hub has no such data set."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi(endpoint=hub_access.endpoint()).dataset_info(source, timeout=10).sha)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403, 404):
            raise _unreadable(source, error) from None
        return None
    except (_http_error(), OSError):
        return None


def _http_error() -> type[Exception]:
    """The base class of the errors of the HTTP library of huggingface_hub (httpx, or httpx2 from version 2 on)."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def _unreadable(source: str, error: Exception) -> UserError:
    import datasets

    failure = hub_access.explain(error, True, Path(datasets.config.HF_DATASETS_CACHE))
    return UserError(
        f"data.source {source!r} is not on this machine yet and cannot be downloaded, because {failure.reason}: "
        f"{failure.fix}, or use a local copy (--data.source FOLDER, in the hub's layout) or the embedded set "
        "(--data.source synthetic)"
    )
