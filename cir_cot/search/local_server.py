"""Serve an ASGI application to this machine only: open the port, check who asks, stop on a signal."""

import os
import shlex
import socket
from collections.abc import Mapping, Sequence

import uvicorn
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from cir_cot.errors import InputError

from .same_origin import SameOrigin

LOCAL = "127.0.0.1"  # only this machine can reach it
HOSTS = ("localhost", LOCAL, "[::1]")  # the names of this machine


def checks(hosts: Sequence[str], data: str) -> list[Middleware]:
    """Return the middleware that refuses requests under other host names (DNS rebinding) and from other sites.

    Args:
        hosts: host names to answer to, beside this machine's own.
        data: path below which are the files that visitors see and send.
    """
    # The host first: the page's own origin is taken from it.
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=[*HOSTS, *hosts], www_redirect=False),
        Middleware(SameOrigin, data=data),
    ]


def listen(port: int) -> socket.socket:
    """Open a port of this machine; InputError when it is not available.

    Args:
        port: 1 to 65535, or 0 for any free port.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port}: ports are 0 .. 65535")
    # Opening the port now reports a busy one before a model is loaded.
    try:
        return socket.create_server((LOCAL, port))
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise InputError(
            f"port {port} of {LOCAL}: {why}; choose another with --port, 0 for a free one"
        ) from None


def address_of(listening: socket.socket) -> str:
    """Return the address of the page served at an open port."""
    return f"http://{LOCAL}:{listening.getsockname()[1]}/"


def announcement(listening: socket.socket, what: str, environ: Mapping[str, str]) -> str:
    """Return what a user reads when a page is served: its address, what it holds and how to end it.

    Who is logged in over SSH also reads the command that makes the address lead here from their own machine.

    Args:
        listening: the open port.
        what: what is served, e.g. "340 pictures".
        environ: the variables of this process; sshd sets SSH_CONNECTION to both ends' addresses and ports.
    """
    line = f"{address_of(listening)}  {what}; stop with Ctrl-C"
    ends = environ.get("SSH_CONNECTION", "").split()
    if len(ends) != 4:
        return line
    # The same port at both ends, so that the address above is right there, too.
    port = listening.getsockname()[1]
    _, _, host, door = ends
    tunnel = ["ssh", "-N", "-L", f"{port}:{LOCAL}:{port}"]
    tunnel += [] if door == "22" else ["-p", door]
    tunnel.append(f"{environ.get('USER', 'USER')}@{host}")
    return f"{line}\non your own machine first: {shlex.join(tunnel)}"


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server that stops on a signal, once running requests have had a second to finish."""
    # Streams that never end would otherwise keep the server alive.
    return uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
