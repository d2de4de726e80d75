"""How a service may be reached: its address, TLS, and the proxies before it. Checked at the start.

A token that goes over a network in the clear is a token given away, so an address that others reach
needs TLS: the service's own, or that of a reverse proxy that is named.
"""

from __future__ import annotations

import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.service.access.proxies import Proxies, is_loopback

#: Addresses that stand for all of the machine: no client can use one.
_ALL = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Exposure:
    """How a service may be reached.

    Attributes
    ----------
    host : str
        Address to listen at.
    public_url : str or None
        URL by which clients reach it.
    certificate, key : Path or None
        Files for TLS.
    trusted_proxies : sequence of str
        Addresses and networks of reverse proxies.
    """

    host: str
    public_url: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    trusted_proxies: Sequence[str] = ()

    def check(self, guarded: bool) -> None:
        """Check that nobody's token goes in the clear.

        `guarded` says whether there is an access file, or the service is public on purpose.
        Raises `UsageError`, with the remedy.
        """
        Proxies(self.trusted_proxies)
        self._check_url()
        self._check_tls()
        if is_loopback(self.host):
            return
        where = f"--host {self.host}"
        if not guarded:
            raise UsageError(
                "others reach this address, and there are no tokens for them",
                where=where,
                remedy="give --access FILE, made with `lundprobe-zarr token add NAME --access FILE`"
                "; or --public for synthetic data; or leave --host out",
            )
        behind = bool(self.trusted_proxies) and (self.public_url or "").startswith("https:")
        if self.certificate is None and not behind:
            raise UsageError(
                "others reach this address, and their tokens would go over the network in the "
                "clear",
                where=where,
                remedy="give --certificate and --key; or, behind a reverse proxy with TLS, "
                "--public-url https://… and --trusted-proxy ADDRESS; or leave --host out",
            )
        if self.host in _ALL and self.public_url is None:
            raise UsageError(
                "no client can use this address, and links are made of it",
                where=where,
                remedy="say by which name clients reach the service: --public-url https://…",
            )

    @property
    def only_proxies(self) -> bool:
        """Whether a request that comes past the proxies is to be refused: it has no TLS."""
        return self.certificate is None and not is_loopback(self.host)

    def url(self, port: int) -> str:
        """Return the URL by which clients reach the service, without a slash at its end."""
        if self.public_url is not None:
            return self.public_url.rstrip("/")
        scheme = "https" if self.certificate else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{port}"

    def _check_url(self) -> None:
        if self.public_url is None:
            return
        try:
            parts = urlsplit(self.public_url)
            place = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            place = None
        if not place or parts.username or parts.path not in ("", "/") or parts.query:
            raise UsageError(
                f"--public-url {self.public_url}",
                expected="http:// or https://, a name and perhaps a port, and no path",
            )

    def _check_tls(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UsageError("--certificate and --key: one without the other", expected="both")
        if self.certificate is None or self.key is None:
            return
        for option, file in (("--certificate", self.certificate), ("--key", self.key)):
            try:
                mode = file.stat().st_mode
            except OSError as error:
                raise UsageError(f"{option}: {error.strerror}", where=file) from error
        if stat.S_IMODE(mode) & 0o007:
            raise UsageError(
                "everybody on this machine may use the key",
                where=self.key,
                remedy=f"run `chmod o= {self.key}`",
            )
        _load(self.certificate, self.key)


def _load(certificate: Path, key: Path) -> None:
    def no_password() -> str:
        raise UsageError("--key: the key has a password", where=key, expected="one without")

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            certificate, key, no_password
        )
    except ssl.SSLError as error:
        raise UsageError(
            f"the certificate and the key cannot be used: {error.reason or error}",
            where=f"{certificate}, {key}",
            expected="PEM files that belong together",
        ) from error
    except OSError as error:
        raise UsageError(f"--key: {error.strerror}", where=key) from error
