"""TLS on the load path: Python's own, over the same non-blocking sockets."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from repo_builder.core.errors import MeasureError

_RECORD = 1 << 14


class Socket(Protocol):
    """What the wire uses of a socket; BlockingIOError where it must wait, or has waited for PATIENCE_S."""

    def send(self, data: bytes | bytearray | memoryview, flags: int, /) -> int:
        """Send what can be sent at once and return how much that was."""

    def recv_into(self, buffer: bytearray, /) -> int:
        """Receive what is there; 0 where the other side has ended."""

    def fileno(self) -> int:
        """Return the descriptor to wait for."""

    def close(self) -> None:
        """Close it."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How a connection is encrypted, and what is checked.

    Attributes:
        ca_file: Certificates (PEM) to trust; None trusts the system's.
        cert_file: The client's own certificate (PEM); None sends none.
        key_file: Its key; None where ``cert_file`` holds it.
        insecure: Whether any certificate is taken.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    insecure: bool = False

    def context(self) -> ssl.SSLContext:
        """Return Python's form of it.

        Raises:
            MeasureError: A file cannot be read, or holds no such thing.
        """
        context = ssl.create_default_context()
        for option, path in (
            ("--ca-file", self.ca_file),
            ("--cert-file", self.cert_file),
            ("--key-file", self.key_file),
        ):
            if path is not None and not path.is_file():
                raise MeasureError("there is no such file", where=f"{option} {path}")
        try:
            if self.ca_file is not None:
                context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (ssl.SSLError, OSError) as error:
            where = f"--cert-file {self.cert_file}" if self.cert_file else f"--ca-file {self.ca_file}"
            raise MeasureError(
                f"cannot be used ({error})", where=where, hint="PEM is wanted, a key unencrypted"
            ) from None
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def wrap(self, plain: socket.socket, host: str, *, http2: bool) -> TlsSocket:
        """Do the handshake on a connected, blocking socket with a timeout, and return it non-blocking.

        Raises:
            MeasureError: There is no TLS on the other side, or its certificate is not trusted.
        """
        context = self.context()
        context.set_alpn_protocols(["h2" if http2 else "http/1.1"])
        try:
            wrapped = context.wrap_socket(plain, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            raise MeasureError(
                f"the certificate is not trusted ({error.verify_message})",
                where=host,
                hint="name its authority with --ca-file, or take any with --insecure",
            ) from None
        except (ssl.SSLError, OSError) as error:
            raise MeasureError(
                f"there is no TLS handshake to be had ({error})",
                where=host,
                hint="check the port, leave TLS out, or give --cert-file where the server asks for a certificate",
            ) from None
        wrapped.setblocking(False)
        return TlsSocket(wrapped)


class TlsSocket:
    """An encrypted socket that says that it must wait as plain ones do."""

    def __init__(self, wrapped: ssl.SSLSocket) -> None:
        self._wrapped = wrapped

    def send(self, data: bytes | bytearray | memoryview, _flags: int, /) -> int:
        """Send what can be sent at once; the socket below does not block, with or without flags."""
        try:
            return self._wrapped.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def recv_into(self, buffer: bytearray, /) -> int:
        """Receive all that has come: a record that is decrypted already would wake nobody."""
        view, count = memoryview(buffer), 0
        while len(buffer) - count >= _RECORD:  # so that no record is taken in part
            try:
                got = self._wrapped.recv_into(view[count:])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except ssl.SSLEOFError:
                got = 0
            if not got:
                return count
            count += got
        if not count:
            raise BlockingIOError
        return count

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._wrapped.fileno()

    def close(self) -> None:
        """Close it, without the farewell that would have to wait."""
        self._wrapped.close()
