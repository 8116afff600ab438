"""The page's server: uvicorn in a thread of the service process."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field

import structlog
import uvicorn

from config.settings import WebSettings
from node.web.app import Surroundings, create_app

log = structlog.get_logger(__name__)

STOP_S = 3.0


@dataclass(slots=True)
class WebServer:
    """Listens as soon as it is made; answers once it is started."""

    settings: WebSettings
    surroundings: Surroundings
    _socket: socket.socket = field(init=False)
    _server: uvicorn.Server = field(init=False)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        """Bind.

        Raises:
            OSError: The port is taken, or the certificate cannot be read.
        """
        family = socket.AF_INET6 if ":" in self.settings.bind_host else socket.AF_INET
        self._socket = socket.create_server(
            (self.settings.bind_host, self.settings.port), family=family
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                create_app(self.surroundings),
                log_config=None,  # our own log, which names no path and no address of a reader
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                timeout_keep_alive=5,
                timeout_graceful_shutdown=1,
                limit_concurrency=200,
                ssl_certfile=self.settings.certificate_file,
                ssl_keyfile=self.settings.key_file,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )

    @property
    def port(self) -> int:
        """Where it listens; of use where the settings say 0."""
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()
        log.info("web.ready", port=self.port)

    def stop(self) -> None:
        """Answer no more."""
        self._server.should_exit = True
        self._thread.join(STOP_S)
        self._socket.close()
