"""The Hugging Face Hub: its address, whether it may be used, and why a download or an upload failed.

The variables are read here as huggingface_hub and `datasets` read them, so that the one that is the reason is named.
"""

from __future__ import annotations

import errno
import os
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from resnet_cifar.cache_folder import ask_once
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import is_web_address

_DEFAULT_ENDPOINT = "https://huggingface.co"
_SECONDS = 4  # `datasets` itself takes 24 s to notice that the hub is unreachable
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_DAMAGED = ("SafetensorError", "UnpicklingError", "EOFError")  # of weights, by name: nothing heavy is imported here
_SHOWN = 200  # characters of what the hub says
_gave_up = threading.Event()  # the hub did not answer, and this process set HF_HUB_OFFLINE
T = TypeVar("T")


def endpoint() -> str:
    """The address of the hub."""
    return (os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")


def check_variables() -> None:
    """Raises UserError where the hub's variables cannot be what they should be."""
    if not is_web_address(endpoint()):
        raise UserError(f"HF_ENDPOINT={os.environ['HF_ENDPOINT']} is not a web address: use https://HOST, or unset it")
    for name in _TOKENS:
        token = os.environ.get(name, "").strip()
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            raise UserError(f"{name} is not a token (it has characters that no token has): correct or unset it")


def offline_variables(for_datasets: bool) -> list[str]:
    """`HF_HUB_OFFLINE=1` and other variables by which the user has switched downloads off."""
    names = ["HF_DATASETS_OFFLINE"] * for_datasets + ["HF_HUB_OFFLINE"] * (not _gave_up.is_set())
    if is_true("HF_HUB_OFFLINE") or not os.environ.get("HF_HUB_OFFLINE"):  # otherwise that one decides
        names.append("TRANSFORMERS_OFFLINE")
    return [f"{name}={os.environ[name]}" for name in names if is_true(name)]


def is_true(name: str) -> bool:
    """Whether the hub's libraries read the value of this variable as true."""
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


def is_offline(for_datasets: bool) -> bool:
    """Whether downloads are switched off, by the user or by `go_offline_if_unreachable`."""
    return _gave_up.is_set() or bool(offline_variables(for_datasets))


def go_offline_if_unreachable() -> None:
    """Sets HF_HUB_OFFLINE if the hub does not answer, so that caches are used at once.

    Must be called before huggingface_hub is imported, which reads the variable on import. Every rank of a machine does
    so, and one of them asks.
    """
    if offline_variables(for_datasets=False):
        return
    if not ask_once(f"answers {endpoint()}", lambda: "yes" * answers(endpoint())):
        _gave_up.set()
        os.environ["HF_HUB_OFFLINE"] = "1"


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


def fetch_once(what: str, fetch: Callable[[], T]) -> T:
    """`fetch()`, which takes `what` from the hub: from its cache if another process has just done so (`ask_once`)."""
    from huggingface_hub import constants

    fetched: list[T] = []
    ask_once(f"{endpoint()} {_cache_folders()[0]} {what}", lambda: fetched.append(fetch()) or "")
    if fetched:
        return fetched[0]
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        return fetch()
    finally:
        constants.HF_HUB_OFFLINE = before


@dataclass(frozen=True)
class Failure:
    """Why something could not be loaded from the hub or its cache, and what helps."""

    reason: str
    fix: str


def explain(error: BaseException, for_datasets: bool, cached: Path) -> Failure:
    """The reason of an error of huggingface_hub, `datasets` or timm. `cached`: the files that may be damaged."""
    causes = list(_causes(error))
    if failure := cache_failure(error):
        return failure
    damage = next((cause for cause in causes if type(cause).__name__ in _DAMAGED or _is_torn(cause)), None)
    if damage is not None:
        return Failure(
            f"the downloaded file is damaged: {_first_line(damage)}", f"delete {cached} to download it again"
        )
    if variables := offline_variables(for_datasets):
        unset = " and ".join(variable.partition("=")[0] for variable in variables)
        return Failure(f"{' and '.join(variables)} forbid{'s' * (len(variables) == 1)} downloads", f"unset {unset}")
    return _explain_answer(causes)


def explain_upload(error: BaseException, command: str) -> Failure:
    """Why huggingface_hub could not upload. `command`: the one to rerun."""
    causes, rerun = list(_causes(error)), f"rerun `{command}`, which uploads only what is missing"
    if unreadable := next((cause for cause in causes if isinstance(cause, OSError) and cause.filename), None):
        return Failure(f"{unreadable.filename} cannot be used ({unreadable.strerror})", f"correct that, then {rerun}")
    answered = next((cause for cause in causes if getattr(cause, "response", None) is not None), None)
    if answered is not None:
        said = " ".join(str(getattr(answered, "server_message", None) or "").split())[:_SHOWN]
        return _explain_refusal(answered.response.status_code, f" ({said})" * bool(said), rerun)
    said = " ".join(str(causes[-1]).split())[:_SHOWN]
    if any(map(_is_of_the_network, causes)):
        return Failure(f"the connection to {_where()} failed ({said})", rerun)
    return Failure(f"huggingface_hub failed at {_where()} ({type(causes[-1]).__name__}: {said})", rerun)


def _explain_refusal(status: int, said: str, rerun: str) -> Failure:
    """By the status that the hub has answered an upload with. `said`: its reason, if it gave one."""
    if status == 401:
        name = _token_variable()
        reason = f"{_where()} does not accept the token{f' of {name}' if name else ''}"
        return Failure(reason, f"correct or unset {name}" if name else "run `hf auth login`")
    if status in (403, 404):
        fix = "use a token that may write there, or another OWNER/NAME"
        return Failure(f"{_where()} does not let this token write there{said}", fix)
    if status in (409, 412):
        return Failure(f"somebody else has changed it at the same time{said}", rerun)
    if 400 <= status < 500 and status not in (408, 429):
        return Failure(f"{_where()} refuses the files with status {status}{said}", f"correct that, then {rerun}")
    return Failure(f"{_where()} cannot be used now, it answers {status}{said}", f"later, {rerun}")


def _is_of_the_network(error: BaseException) -> bool:
    """Whether it is an error of the socket, of httpx or of hf_xet, which raises errors of Python's own kinds."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or "TransportError" in names


def _where() -> str:
    return f"the hub ({endpoint()}{', from HF_ENDPOINT' * bool(os.environ.get('HF_ENDPOINT'))})"


def _token_variable() -> str | None:
    """The variable that holds the token, if one does."""
    return next((name for name in _TOKENS if os.environ.get(name)), None)


def _explain_answer(causes: list[BaseException]) -> Failure:
    """By what the hub has answered, if anything."""
    is_named, where = bool(os.environ.get("HF_ENDPOINT")), _where()
    names = {type(cause).__name__ for cause in causes}
    statuses = [cause.response.status_code for cause in causes if getattr(cause, "response", None) is not None]
    status = statuses[0] if statuses else None
    if status in (401, 403, 404) or names & {"RepositoryNotFoundError", "GatedRepoError", "DatasetNotFoundError"}:
        token = _token_variable()
        if token and status != 404:
            return Failure(f"{where} refuses it to the token of {token}", f"correct or unset {token}")
        if "GatedRepoError" in names or status == 403:
            return Failure(f"access to it on {where} is restricted", "accept its terms there and run `hf auth login`")
        fix = f"check the name{' and HF_ENDPOINT' * is_named}, or run `hf auth login` if it is private or gated"
        return Failure(f"{where} has nothing of that name that you can read", fix)
    problem = f"{where} cannot be reached{f': it answers {status}' if status else ''}"
    return Failure(problem, "try again later" if status else f"check {'HF_ENDPOINT and ' * is_named}the network")


def cache_failure(error: BaseException) -> Failure | None:
    """The failure if the cause of `error` is that the hub's cache cannot be written."""
    problems = [cause for cause in _causes(error) if isinstance(cause, OSError) and cause.errno]
    full = next((cause for cause in problems if cause.errno in _FULL), None)
    for folder in _cache_folders():
        problem = full or _write_error(folder)
        if problem is not None and problems:
            name = next((name for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HOME") if os.environ.get(name)), "")
            origin = f", from {name}," if name else ""
            fix = "make room" if full else "correct its permissions"
            reason = f"the hub's cache {folder}{origin} cannot be written ({problem.strerror})"
            return Failure(reason, f"{fix}, or set HF_HOME to another folder")
    return None


def _cache_folders() -> tuple[Path, ...]:
    home = Path(os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface")
    named = {"HF_HUB_CACHE": home / "hub", "HF_DATASETS_CACHE": home / "datasets"}
    return tuple(Path(os.environ.get(name) or folder).expanduser() for name, folder in named.items())


def _write_error(folder: Path) -> OSError | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error
    return None


def _is_torn(error: BaseException) -> bool:
    return any(words in str(error) for words in ("PytorchStreamReader", "Consistency check failed"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
