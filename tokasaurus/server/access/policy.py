"""What of a server's access can be configured, and its installation in an app."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from starlette.middleware.cors import CORSMiddleware

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ConfigError
from tokasaurus.observability.measurements import Measurements
from tokasaurus.server.access.api_keys import ApiKeys, read_api_keys
from tokasaurus.server.access.gate import ApiKeyGate
from tokasaurus.server.access.request_log import RequestLog
from tokasaurus.server.layered_app import LayeredApp

_EXPOSED_HEADERS = ("X-Request-Id", "Retry-After")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessPolicy:
    """By default everyone may ask, but no other origin's web page."""

    api_keys: ApiKeys = field(default_factory=lambda: ApiKeys([]))
    cors_origins: tuple[str, ...] = ()
    logs_requests: bool = False

    @classmethod
    def of(cls, config: EngineConfig) -> "AccessPolicy":
        """Raises ConfigError for keys that can't be had."""
        return cls(
            api_keys=read_api_keys(config),
            cors_origins=tuple(config.cors_origins or ()),
            logs_requests=config.request_log,
        )

    def install(self, app: LayeredApp, measurements: Measurements) -> None:
        """The request log is outermost; preflight requests, which bring no key, end at CORS."""
        if self.api_keys:
            app.wrap(ApiKeyGate, keys=self.api_keys)
        if self.cors_origins:
            app.wrap(
                CORSMiddleware,
                allow_origins=self.cors_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=_EXPOSED_HEADERS,
            )
        app.wrap(RequestLog, measurements=measurements, logs=self.logs_requests)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate chain and its key, known to fit."""

    certfile: str
    keyfile: str | None

    @classmethod
    def of(cls, config: EngineConfig) -> "TlsFiles | None":
        """None: no TLS. Raises ConfigError for files that can't be used."""
        if config.ssl_certfile is None:
            if config.ssl_keyfile is not None:
                raise ConfigError("ssl_keyfile needs ssl_certfile; give the certificate, too.")
            return None
        certfile = str(Path(config.ssl_certfile).expanduser())
        keyfile = config.ssl_keyfile and str(Path(config.ssl_keyfile).expanduser())
        try:
            # An empty password keeps OpenSSL from asking for one at the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                certfile, keyfile, password=lambda: ""
            )
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"ssl_certfile {certfile!r} and ssl_keyfile {keyfile!r} can't be used: {error}; "
                "give PEM files of a certificate and its key, without a password."
            ) from error
        return cls(certfile, keyfile)
