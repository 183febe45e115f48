"""The address and the three ports of a server: chosen, or checked to be free before anything starts."""

from __future__ import annotations

import dataclasses
import errno
import socket
from contextlib import ExitStack

from repo_builder.core.errors import ServeError
from repo_builder.core.servers import Endpoints

__all__ = ["Endpoints", "settle"]


def settle(wanted: Endpoints) -> Endpoints:
    """Return the endpoints with the host as an address and every port 0 replaced by a free one.

    Triton takes addresses alone; of a name's several the first that is this machine's is used, IPv4 before IPv6.

    Raises:
        ServeError: A port is in use, may not be bound, or is named twice; or the host is no address of this machine.
    """
    settled: dict[str, int] = {}
    host = _address(wanted.host)
    with ExitStack() as held:
        for role in ("http", "grpc", "metrics"):
            port = getattr(wanted, role)
            if port and port in settled.values():
                raise ServeError(f"port {port} is named twice", where=f"--{role}-port", hint="choose another")
            settled[role] = _bind(held, host, port, role)
    return dataclasses.replace(wanted, host=host, **settled)


def _address(host: str) -> str:
    """Return a host as an address that Triton can bind to."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ServeError(f"'{host}' is no address", where="--host", hint="as in --host 127.0.0.1") from None
    addresses = [str(item[4][0]) for item in sorted(found, key=lambda item: item[0] != socket.AF_INET)]
    for address in addresses:
        try:
            with socket.socket(_family(address), socket.SOCK_STREAM) as probe:
                probe.bind((address, 0))
        except OSError:  # another machine's, or of a family that is switched off here
            continue
        return address
    which = f"'{host}'" if host in addresses else f"'{host}' ({', '.join(dict.fromkeys(addresses))})"
    hint = "choose one of this machine's, or 0.0.0.0 for all"
    raise ServeError(f"{which} is not an address of this machine", where="--host", hint=hint)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _bind(held: ExitStack, host: str, port: int, role: str) -> int:
    """Bind one port until ``held`` closes, and return its number."""
    listener = held.enter_context(socket.socket(_family(host), socket.SOCK_STREAM))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OverflowError:
        raise ServeError(f"{port} is no port", where=f"--{role}-port", hint="choose one of 1 to 65535") from None
    except OSError as error:
        what = {
            errno.EADDRINUSE: f"port {port} on {host} is in use",
            errno.EACCES: f"port {port} may not be bound by this user",
        }.get(error.errno or 0, f"port {port} on {host} cannot be bound ({error.strerror})")
        hint = "choose another, or 0 for any free one"
        raise ServeError(what, where=f"--{role}-port", hint=hint) from None
    number: int = listener.getsockname()[1]
    return number
