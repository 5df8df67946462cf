"""Reads the images of an HTTP request, from anyone: what is too large, too slow or malformed is refused on arrival."""

from __future__ import annotations

from dataclasses import dataclass

import anyio
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

FIELD = "images"
_FIELDS, _FIELD_BYTES = 16, 4096  # form fields besides the images, and their size
_NAME = 255  # characters of a file name that are repeated in the answer
_HOW = f"send multipart/form-data with files in fields named {FIELD}, or one image with a Content-Type like image/png"


@dataclass(frozen=True)
class RequestLimits:
    """Of one request: `images`, `mebibytes` of its body, and `seconds` in which it must have arrived."""

    images: int
    mebibytes: int
    seconds: int


@dataclass(frozen=True)
class Upload:
    """An image as it was sent. `name` is repeated in the answer and never names a file here."""

    name: str
    content: bytes


async def read_images(request: Request, limits: RequestLimits) -> list[Upload]:
    """The images of a request. Raises HTTPException (4xx) with one sentence, or ClientDisconnect.

    The limits hold while the body arrives, whatever its length is said to be.
    """
    most, received = limits.mebibytes * 2**20, 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > most:
            raise too_large
        return message

    too_large = HTTPException(413, f"the request exceeds {limits.mebibytes} MiB: send fewer or smaller images")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    try:
        with anyio.fail_after(limits.seconds):
            uploads = await _parse(Request(request.scope, receive), limits)
    except TimeoutError:
        raise HTTPException(408, f"the request took over {limits.seconds} seconds: send less at a time") from None
    if not any(upload.content for upload in uploads):
        raise HTTPException(400, f"the request contains no image: {_HOW}")
    return uploads


async def _parse(request: Request, limits: RequestLimits) -> list[Upload]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [Upload("image", await request.body())]
    if kind != "multipart/form-data":
        raise HTTPException(415, f"Content-Type {_shown(kind)} is not that of an image or form: {_HOW}")
    try:
        form = await request.form(max_files=limits.images, max_fields=_FIELDS, max_part_size=_FIELD_BYTES)
    except HTTPException as error:
        if error.status_code != 400:  # too large
            raise
        reason = error.detail.rstrip(".").replace(". ", ", ")  # Starlette's: no form, or too many files or fields
        raise HTTPException(400, f"the form cannot be read ({reason}): send up to {limits.images} images") from None
    except (LookupError, ValueError):  # its charset is not one of text
        raise HTTPException(400, f"the form cannot be read: {_HOW}") from None
    try:
        for name, value in form.multi_items():
            if (name == FIELD) != isinstance(value, UploadFile):
                what = "holds no file" if name == FIELD else "is not read"
                raise HTTPException(400, f"the form field {_shown(name)} {what}: {_HOW}")
        files = form.getlist(FIELD)
        return [Upload(_text(file.filename or "image", _NAME), await file.read()) for file in files]
    finally:
        await form.close()


def _text(text: str, longest: int) -> str:
    """The start of what a client has sent, in characters that UTF-8 has."""
    return text[:longest].encode("utf-8", "replace").decode()


def _shown(text: str) -> str:
    """The same in quotation marks, without control characters."""
    return repr(_text(text, 40))
