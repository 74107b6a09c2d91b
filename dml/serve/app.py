"""The application, and the server that runs it until it is told to stop."""

import logging
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from dml.errors import ConfigurationError, Problem
from dml.index.searchable import Searchable
from dml.serve import api, page
from dml.serve.limits import LOOPBACK, Limits
from dml.serve.options import Options
from dml.serve.service import Service

log = logging.getLogger("dml")
GRACE = 5  # seconds that requests at work have when the server stops


def create_app(index: Searchable, encoder: Any, options: Options | None = None) -> FastAPI:
    """The application for any ASGI server.

    encoder: the `ImageEncoder` that the index was built by.  `app.state.service` is the `Service`; its
    threads end with the application's lifespan.  Raises RunError: another encoder.
    """
    options = options or Options()
    service = Service(index, encoder, options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="dml-search",
        description=f"Search {len(index):,} images by image. Errors are JSON: {{error: text}}.",
        version=version("dml"),
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        docs_url=None,  # both load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(api.router(service))
    app.include_router(page.router(service))
    app.mount("/static", StaticFiles(directory=page.STATIC))
    api.answer_errors(app)
    app.add_middleware(Limits, options=options)
    return app


def serve(index: Searchable, encoder: Any, **values: Any) -> None:
    """Answer requests until SIGINT (Ctrl-C) or SIGTERM; closes the index.

    values: fields of `Options`.  Raises ConfigurationError: an address or a port that cannot be had.
    """
    options = Options(**values)
    listening = bound(options)
    app = create_app(index, encoder, options)
    config = uvicorn.Config(
        app,
        http="h11",  # which bounds the headers of a request; another parser would not
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE,
        server_header=False,
    )
    if options.host not in LOOPBACK:
        log.warning("Everyone who can reach %s can search and see these images.", options.host)
    log.info("Serving %s images at %s. Ctrl-C stops.", f"{len(index):,}", address(listening))
    # uvicorn raises the signal that stopped it once more; SIGTERM would end the process on the spot
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # Ctrl-C is how it is meant to end
    finally:
        signal.signal(signal.SIGTERM, before)
        listening.close()
        index.close()
    log.info("Stopped.")


def bound(options: Options) -> socket.socket:
    """A socket at the address.  Raises ConfigurationError."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind)
    except OSError as error:
        what = f"is no address of this machine ({error.strerror or error})."
        raise ConfigurationError([Problem(f"host={options.host}", what)]) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
    except OSError as error:
        listening.close()
        where = f"host={options.host} port={options.port}"
        what = f"cannot be listened at ({error.strerror or error}). port=0 takes one that is free."
        raise ConfigurationError([Problem(where, what)]) from error
    return listening


def address(listening: socket.socket) -> str:
    """http://host:port of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
