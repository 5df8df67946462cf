"""A data set of the Hugging Face hub, loaded by `datasets`."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

from resnet_cifar import hub_access
from resnet_cifar.atomic_io import atomic_write
from resnet_cifar.cache_folder import ask_once, cache_root
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.cache import write_errors
from resnet_cifar.data.sources.base import SourceData
from resnet_cifar.data.sources.hf_columns import source_data

FIELDS = ("config_name", "revision", "splits", "columns")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_named: dict[tuple[str, str], str | None] = {}  # the commits that `identity` has named


def identity(data: Data) -> str:
    """The commit of data.revision, from the hub or, if it does not answer, the last one seen. Raises UserError.

    A revision that is a commit needs no request.
    """
    source, revision, commit, last = data.source, data.revision, "", _last_commit(data)
    if _COMMIT.fullmatch(revision):
        commit = revision
    elif not hub_access.is_offline(for_datasets=True):
        commit = ask_once(f"commit {hub_access.endpoint()} {source} {revision}", lambda: _commit(data) or "")
    if commit not in ("", last):
        with write_errors(), atomic_write(_commit_file(data), flush=False) as aside:
            aside.write_text(commit)
    _named[source, revision] = commit or last
    return f"hub {source} {_named[source, revision] or 'unknown'}"


def commit_of(data: Data) -> str | None:
    """The commit that `identity` has named; None for other sources, and where none is known."""
    return _named.get((data.source, data.revision))


def read(data: Data) -> SourceData:
    """The train and test splits. Raises UserError."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()  # it warns of what is checked below
    source, commit = data.source, commit_of(data)
    if data.revision and commit is None:
        raise _unreadable(data, ConnectionError("nobody says which commit it is"))
    try:
        # The commit in the cache key, even if another was pushed since, and another process has seen that.
        builder = datasets.load_dataset_builder(source, data.config_name or None, revision=commit)
        if commit not in (None, builder.hash):  # `datasets` takes any commit that it has where the hub does not answer
            raise ConnectionError(f"{builder.hash} is here, and not {commit}")
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    except (_http_error(), OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        not_found = isinstance(error, datasets.exceptions.DatasetNotFoundError)
        # huggingface_hub's errors are HTTP or OS errors; offline, the cache may have the name, but not these files.
        if not_found or isinstance(error, _http_error() | OSError) or hub_access.is_offline(for_datasets=True):
            raise _unreadable(data, error) from None
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


def _commit_file(data: Data) -> Path:
    """The file with the commit of data.revision that was seen last."""
    revision = f"@{quote(data.revision, safe='')}" if data.revision else ""
    return cache_root() / f"hub-{data.source.replace('/', '--')}{revision}.commit"


def _last_commit(data: Data) -> str | None:
    file = _commit_file(data)
    return file.read_text() if file.is_file() else None


def _commit(data: Data) -> str | None:
    """The commit of data.revision, or None if the hub is too busy. Raises UserError if the hub has no such data set."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=hub_access.endpoint())
    try:
        return str(api.dataset_info(data.source, revision=data.revision or None, timeout=10).sha)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403, 404):
            raise _unreadable(data, error) from None
        return None
    except (_http_error(), OSError):
        return None


def _http_error() -> type[Exception]:
    """The base class of the errors of the HTTP library of huggingface_hub (httpx, or httpx2 from version 2 on)."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def _unreadable(data: Data, error: Exception) -> UserError:
    import datasets
    from huggingface_hub.errors import RevisionNotFoundError

    source = data.source
    if any(isinstance(each, RevisionNotFoundError) for each in (error, error.__cause__)):
        return UserError(
            f"data.revision {data.revision!r} is no commit, tag or branch of {source!r}: correct it, or leave it out"
        )
    failure = hub_access.explain(error, True, Path(datasets.config.HF_DATASETS_CACHE))
    return UserError(
        f"data.source {source!r} is not on this machine yet and cannot be downloaded, because {failure.reason}: "
        f"{failure.fix}, or use a local copy (--data.source FOLDER, in the hub's layout) or the embedded set "
        "(--data.source synthetic)"
    )
