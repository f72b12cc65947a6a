"""Serve an ASGI application to this machine alone: the port, the checks of who asks, the end on a signal."""

import os
import socket
from collections.abc import Sequence

import uvicorn
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from cir_cot.errors import InputError

from .same_origin import SameOrigin

LOCAL = "127.0.0.1"
HOSTS = ("localhost", LOCAL, "[::1]")


def checks(hosts: Sequence[str], data: str) -> list[Middleware]:
    """Return the middleware that refuses other hosts' names (DNS rebinding) and other sites' requests.

    `hosts` are names that are answered beside this machine's own; below the path `data` is what visitors see and send.
    """
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=[*HOSTS, *hosts], www_redirect=False),
        Middleware(SameOrigin, data=data),
    ]


def listen(port: int) -> socket.socket:
    """Open a port of this machine, a free one for 0; InputError if it cannot be had."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port}: ports are 0 .. 65535")
    try:
        return socket.create_server((LOCAL, port))
    except OSError as error:
        words = os.strerror(error.errno)
        raise InputError(
            f"port {port} of {LOCAL}: {words}; choose another with --port, 0 for a free one"
        ) from None


def address_of(listening: socket.socket) -> str:
    """Return the address of the page that is served there."""
    return f"http://{LOCAL}:{listening.getsockname()[1]}/"


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return the server; on a signal it gives running requests a second, then does what the signal means."""
    return uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
