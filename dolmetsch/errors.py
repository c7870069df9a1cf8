"""The exception hierarchy: every error that dolmetsch raises on purpose.

``LocalError`` is our own bug, ``RemoteError`` is the peer's; the rest is something an owner or a caller can
put right, and its text is one line that says how. No exception of a library leaves the module that adapts it.
"""

from __future__ import annotations


class DolmetschError(Exception):
    """Base of them all; ``str(error)`` is one line for people."""


class LocalError(DolmetschError):
    """Raised when this program broke one of its own rules: a bug to report."""


class RemoteError(DolmetschError):
    """Raised when a peer sent something that the protocol does not allow.

    ``code`` is one of the wire's error codes, ``detail`` says in one line what was wrong.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class ConfigError(DolmetschError):
    """Raised when a configuration file, an environment variable or a flag holds a value that cannot be used."""


class KeyFileError(DolmetschError):
    """Raised when a key file or the allow-list cannot be read or written, is no such file, or is open to others."""


class PackageError(DolmetschError):
    """Raised when an Argos package is missing, broken, unsafe to unpack, or cannot be fetched."""


class EngineError(DolmetschError):
    """Raised when a translation cannot be had; ``code`` is one of the wire's error codes."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class LedgerError(DolmetschError):
    """Raised when the ledger cannot be opened or written: locked by another broker, from a newer version, disk full."""


class TransportError(DolmetschError):
    """Raised when a socket cannot be bound or an address cannot be understood."""


class NodeError(DolmetschError):
    """Raised when a node cannot go on: no package that loads, a name that another node has."""


class NoBroker(DolmetschError):
    """Raised when no broker answered within ``waited_s`` seconds at ``address``; ``why``, where that is known."""

    def __init__(self, address: str, waited_s: float, why: str = "") -> None:
        super().__init__(
            f"the broker at {address} {why}"
            if why
            else f"no broker answered at {address} within {waited_s:g} s: is it running there (python broker.py)?"
        )
        self.address = address
        self.waited_s = waited_s


class JobRejected(DolmetschError):
    """Raised when the broker refuses a job; where ``retry_after_s`` is set, trying again after that may help."""

    def __init__(self, code: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s


class JobFailed(DolmetschError):
    """Raised when an accepted job ended as a dead letter: ``code`` says why, ``attempts`` how often it was tried."""

    def __init__(self, code: str, detail: str, attempts: int) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.attempts = attempts


class JobSettled(DolmetschError):
    """Raised when a job is submitted whose result this gateway had already acked: it was answered before."""

    def __init__(self, job_id: bytes) -> None:
        super().__init__(f"job {job_id.hex()} was answered before")
        self.job_id = job_id


class InputError(DolmetschError):
    """Raised when a text or a file that somebody gave cannot be used: not UTF-8, not there, too long."""
