"""/v1/files: upload, list, describe, read and delete."""

from collections.abc import AsyncIterator
from pathlib import PurePath
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.batches.service import BatchService
from tokasaurus.server.disconnect import ClientGoneError
from tokasaurus.server.errors import BodyTooLargeError
from tokasaurus.server.openapi import answers
from tokasaurus.server.routes.listing import parse_page, query_parameters, slice_of
from tokasaurus.server.schemas.files import DeletedFile, FileList, FileObject
from tokasaurus.server.state import state_of

router = APIRouter(tags=["files"])

_MAX_LIMIT = 10_000
_MAX_NAME_CHARACTERS = 255
_ENVELOPE_BYTES = 64 * 2**10
"""What a form adds to its file."""
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"const": "batch"},
                    },
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                }
            }
        },
    }
}

_CONTENT: dict[int | str, Any] = {
    200: {
        "description": "The file as it is",
        "content": {"application/octet-stream": {"schema": {"type": "string"}}},
    }
}


@router.post(
    "/v1/files", summary="Upload a file", openapi_extra=_FORM, responses=answers(FileObject)
)
async def upload_file(request: Request) -> Response:
    batches = _batches(request)
    store = await batches.store()
    form = await _read_form(request, batches.settings.max_file_bytes)
    try:
        upload = _checked_upload(form, batches.settings.max_file_bytes)
        name = PurePath(upload.filename or "upload.jsonl").name[:_MAX_NAME_CHARACTERS]
        file = await store.add_file(name, upload.file)
    finally:
        await form.close()
    return _json(file)


@router.get(
    "/v1/files",
    summary="List files",
    openapi_extra=query_parameters(_MAX_LIMIT, takes_purpose=True),
    responses=answers(FileList),
)
async def list_files(request: Request) -> Response:
    page = parse_page(request, default_limit=_MAX_LIMIT, max_limit=_MAX_LIMIT, takes_purpose=True)
    found = await (await _batches(request).store()).files(page)
    first_id, last_id, has_more = slice_of(found, page)
    return _json(FileList(data=found, first_id=first_id, last_id=last_id, has_more=has_more))


@router.get("/v1/files/{file_id}", summary="Describe a file", responses=answers(FileObject))
async def retrieve_file(request: Request, file_id: str) -> Response:
    return _json(await (await _batches(request).store()).file(file_id))


@router.get(
    "/v1/files/{file_id}/content",
    summary="Read a file",
    response_class=FileResponse,
    responses=answers(FileObject) | _CONTENT,
)
async def read_file(request: Request, file_id: str) -> Response:
    store = await _batches(request).store()
    file = await store.file(file_id)
    return FileResponse(
        store.folder.file(file.id), media_type="application/octet-stream", filename=file.filename
    )


@router.delete("/v1/files/{file_id}", summary="Delete a file", responses=answers(DeletedFile))
async def delete_file(request: Request, file_id: str) -> Response:
    await (await _batches(request).store()).delete_file(file_id)
    return _json(DeletedFile(id=file_id))


async def _read_form(request: Request, max_file_bytes: int) -> FormData:
    """Files go to the disk as they arrive; raises InvalidRequestError for what is no form."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InvalidRequestError("The body must be a form (multipart/form-data) with a 'file'.")
    too_large = BodyTooLargeError(
        f"The file is larger than the {max_file_bytes} bytes that this server stores; split it, or "
        "raise max_file_bytes."
    )
    max_bytes = max_file_bytes + _ENVELOPE_BYTES
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large

    async def counted() -> AsyncIterator[bytes]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise too_large
            yield chunk

    parser = MultiPartParser(request.headers, counted(), max_files=1, max_fields=16)  # type: ignore[arg-type]
    try:
        return await parser.parse()
    except (MultiPartException, ValueError) as error:
        message = getattr(error, "message", str(error))
        raise InvalidRequestError(f"The body is not a form: {message}") from error
    except ClientDisconnect as error:
        raise ClientGoneError("The client went away before its file was whole.") from error


def _checked_upload(form: FormData, max_file_bytes: int) -> UploadFile:
    for name in form:
        if name not in ("file", "purpose"):
            raise InvalidRequestError(
                f"Unrecognized form field: {name[:64]!r}; remove it.",
                param=name[:64],
                code="unknown_parameter",
            )
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise InvalidRequestError("You must provide 'file', as a file.", param="file")
    if form.get("purpose") != "batch":
        raise InvalidRequestError(
            "'purpose' must be 'batch': this server uses files only for batches.", param="purpose"
        )
    if (upload.size or 0) > max_file_bytes:
        raise BodyTooLargeError(
            f"The file is larger than the {max_file_bytes} bytes that this server stores."
        )
    return upload


def _batches(request: Request) -> BatchService:
    return state_of(request).batch_service


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
