"""A data set of the Hugging Face hub, through `datasets`."""

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
from resnet_cifar.data.sources.hf_columns import contents

FIELDS = ("config_name", "splits", "columns")
_SECONDS = 4  # `datasets` alone takes 24 s to find out that there is no hub


def endpoint() -> str:
    """The hub's address."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def answers(address: str) -> bool:
    """Whether a web server answers within a few seconds, whatever it says."""
    heard: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_SECONDS).close()
        except urllib.error.HTTPError:
            pass
        except OSError as error:
            # huggingface_hub brings certificates of its own, so a doubt about them is left to it.
            if not isinstance(getattr(error, "reason", None), ssl.SSLError):
                return
        heard.append(True)

    # In a thread, because a name server that is silent takes longer than any timeout of the request.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_SECONDS + 1)
    return bool(heard)


def is_offline() -> bool:
    """Whether downloads are switched off, by the user or by `registry.go_offline_if_unreachable`."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def identity(data: Data) -> str:
    """The data set's commit: asked of the hub or, where it does not say, the one that was seen last. Raises UserError."""
    source = data.source
    seen = _seen(source)
    commit = None if is_offline() else _commit(source)
    if commit not in (None, seen):
        with write_errors():
            _note(source).write_text(commit)
    return f"hub {source} {commit or seen or 'unknown'}"


def read(data: Data) -> SourceData:
    """The train and test splits. Raises UserError."""
    import datasets

    datasets.disable_progress_bars()
    source = data.source
    try:
        # Of the commit that the cache is keyed by, though another may have been pushed since.
        loaded = datasets.load_dataset(source, data.config_name or None, revision=_seen(source))
    except datasets.exceptions.DatasetNotFoundError:
        raise (_unreachable(source) if is_offline() else _unknown(source)) from None
    except (_http_error(), OSError) as error:  # huggingface_hub's errors are one or the other
        check_room(error)
        raise _unreachable(source) from None
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        configuration(error, data)
        if is_offline():  # the cache knows the name, but not these files
            raise _unreachable(source) from None
        raise UserError(f"data.source {source!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    return contents(loaded, data)


def configuration(error: Exception, data: Data) -> None:
    """Raises UserError where `datasets` says that a set has several configurations, or none of this name."""
    listed = re.search(r"(?:available configs|Available): (\[.*\])", str(error))
    if listed is None:
        return
    if data.config_name:
        raise UserError(
            f"data.config_name {data.config_name!r} is no configuration of {data.source!r}: take one of {listed[1]}"
        ) from None
    raise UserError(
        f"data.source {data.source!r} has the configurations {listed[1]}: take one with --data.config_name"
    ) from None


def check_room(error: Exception) -> None:
    """Raises UserError where a full or read-only disk is what kept `datasets` from its own cache."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        import datasets

        folder = datasets.config.HF_DATASETS_CACHE
        raise UserError(
            f"the hub's cache {folder} cannot be written ({cause.strerror}): make room, or set HF_HOME"
        ) from None


def _note(source: str) -> Path:
    """The file that holds the newest commit that was seen."""
    return cache_root() / f"hub-{source.replace('/', '--')}.commit"


def _seen(source: str) -> str | None:
    note = _note(source)
    return note.read_text() if note.is_file() else None


def _commit(source: str) -> str | None:
    """The newest commit, or None where the hub is too busy to say. Raises UserError where it knows no such data set."""
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
    """What the library below huggingface_hub raises: httpx or, from its version 2 on, httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def _unknown(source: str) -> UserError:
    return UserError(
        f"data.source {source!r} is no data set of the hub that you may read: check OWNER/NAME, or run `hf auth login` "
        "if it is private or gated"
    )


def _unreachable(source: str) -> UserError:
    return UserError(
        f"data.source {source!r} is not on this machine yet and the hub ({endpoint()}) cannot be reached: take a local "
        "copy (--data.source FOLDER, in the hub's layout) or the embedded set (--data.source synthetic)"
    )
