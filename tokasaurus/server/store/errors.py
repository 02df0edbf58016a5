"""What can be wrong with a request for something in the store."""

from tokasaurus.errors import InvalidRequestError, TokasaurusError


class NotStoredError(InvalidRequestError):
    """There is nothing of that id."""

    status_code = 404
    code = "not_found"


class StorageError(TokasaurusError):
    """The state directory's disk is full or broken."""


class FileInUseError(InvalidRequestError):
    """A batch still reads the file."""

    status_code = 409
    code = "file_in_use"
