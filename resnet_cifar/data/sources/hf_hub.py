"""A data set of the Hugging Face hub, loaded by `datasets`."""

from __future__ import annotations

import errno
import os
import re
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.cache import write_errors
from resnet_cifar.data.paths import cache_root
from resnet_cifar.data.sources.base import SourceData
from resnet_cifar.data.sources.hf_columns import source_data

FIELDS = ("config_name", "splits", "columns")
_SECONDS = 4  # `datasets` itself takes 24 s to notice that the hub is unreachable


def endpoint() -> str:
    """The address of the hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def answers(address: str) -> bool:
    """Whether a web server answers within a few seconds, with any status."""
    answered = threading.Event()

    def request_head() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_SECONDS).close()
        except urllib.error.HTTPError:
            pass
        except OSError as error:
            # huggingface_hub has its own certificates: it decides about these.
            if not isinstance(getattr(error, "reason", None), ssl.SSLError):
                return
        answered.set()

    # In a thread, because the timeout of the request does not cover a silent name server.
    thread = threading.Thread(target=request_head, daemon=True)
    thread.start()
    thread.join(_SECONDS + 1)
    return answered.is_set()


def is_offline() -> bool:
    """Whether downloads are switched off, by the user or by `registry.go_offline_if_unreachable`."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def identity(data: Data) -> str:
    """The latest commit, from the hub or, if it does not answer, the last one that was seen. Raises UserError."""
    source = data.source
    last = _last_commit(source)
    commit = None if is_offline() else _commit(source)
    if commit not in (None, last):
        with write_errors():
            _commit_file(source).write_text(commit)
    return f"hub {source} {commit or last or 'unknown'}"


def read(data: Data) -> SourceData:
    """The train and test splits. Raises UserError."""
    import datasets

    datasets.disable_progress_bars()
    source = data.source
    try:
        # The commit in the cache key, even if another was pushed since.
        loaded = datasets.load_dataset(source, data.config_name or None, revision=_last_commit(source))
    except datasets.exceptions.DatasetNotFoundError:
        raise (_unreachable(source) if is_offline() else _unknown(source)) from None
    except (_http_error(), OSError) as error:  # huggingface_hub's errors are one or the other
        check_disk_space(error)
        raise _unreachable(source) from None
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        check_configuration(error, data)
        if is_offline():  # the cache has the name, but not these files
            raise _unreachable(source) from None
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
    """Raises UserError if the cause of an error of `datasets` is a full or read-only disk."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        import datasets

        folder = datasets.config.HF_DATASETS_CACHE
        raise UserError(
            f"the hub's cache {folder} cannot be written ({cause.strerror}): make room, or set HF_HOME"
        ) from None


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
        return str(HfApi(endpoint=endpoint()).dataset_info(source, timeout=10).sha)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403, 404):
            raise _unknown(source) from None
        return None
    except (_http_error(), OSError):
        return None


def _http_error() -> type[Exception]:
    """The base class of the errors of the HTTP library of huggingface_hub (httpx, or httpx2 from version 2 on)."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def _unknown(source: str) -> UserError:
    return UserError(
        f"data.source {source!r} is not a data set on the hub that you can read: check OWNER/NAME, or run `hf auth "
        "login` if it is private or gated"
    )


def _unreachable(source: str) -> UserError:
    return UserError(
        f"data.source {source!r} is not on this machine yet and the hub ({endpoint()}) cannot be reached: use a local "
        "copy (--data.source FOLDER, in the hub's layout) or the embedded set (--data.source synthetic)"
    )
