"""The keys that clients may come with, compared in constant time."""

import hashlib
import hmac
import os
from pathlib import Path

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ConfigError

ENVIRONMENT_VARIABLE = "TOKASAURUS_API_KEY"


class ApiKeys:
    """Holds digests only, so that neither a key's length nor its letters show in timing."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, key: bytes) -> bool:
        """Looks at all keys, whichever fits."""
        digest = _digest(key)
        fits = False
        for own in self._digests:
            fits |= hmac.compare_digest(digest, own)
        return fits


def read_api_keys(config: EngineConfig) -> ApiKeys:
    """From the options and the environment. Raises ConfigError for a file without keys."""
    given = config.api_key
    keys = [given] if isinstance(given, str) else list(given or ())
    if config.api_key_file is not None:
        keys += _read_file(Path(config.api_key_file).expanduser())
    keys.append(os.environ.get(ENVIRONMENT_VARIABLE, ""))
    if given is not None and not all(key.strip() for key in keys[:-1]):
        raise ConfigError("api_key must not be empty; leave it out to let everyone in.")
    stripped = [key.strip() for key in keys if key.strip()]
    for key in stripped:
        if not key.isascii() or not key.isprintable():
            raise ConfigError("An API key must consist of printable ASCII characters.")
    return ApiKeys(stripped)


def _read_file(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file {str(path)!r} can't be read: {error}.") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"api_key_file {str(path)!r} holds no key; write one per line.")
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
