"""The broker's allow-list on disk: whose keys may come in, who waits to be let in, and invitations.

The broker and the owner's commands (``broker.py invite``, ``approve`` ...) use the file at once; the broker looks
every second whether it has changed. Lifetimes are counted by the clock that runs since boot, which all processes of a
computer share and nobody sets: a Pi wakes up without knowing what time it is. A reboot ends all invitations.
"""

from __future__ import annotations

import functools
import hashlib
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from dolmetsch.access import ROLES
from dolmetsch.errors import InputError, KeyFileError
from dolmetsch.keys import check_public, fingerprint, is_fingerprint
from dolmetsch.messages import MAX_NAME_CHARS, MAX_WAITING, TOKEN_BYTES

SCHEMA_VERSION: Final = 1
INVITATION_S: Final = 3600.0
MAX_INVITATIONS: Final = 256
MAX_PENDING_PER_HOST: Final = 4  # of one address, so that no single computer fills the list
PENDING_S: Final = 60.0  # who waits knocks every few seconds; who has not for so long has gone
MAX_GRANTS: Final = 4096  # of one deployment: twice as many as there can be nodes and gateways
MAX_REVOKED: Final = 1000  # remembered, to be told so; an unknown key is not let in either
_BUSY_S: Final = 2.0  # another process writes for milliseconds

_SCHEMA: Final = """
CREATE TABLE key (
    public BLOB PRIMARY KEY,      -- Z85
    role TEXT NOT NULL,           -- '' when revoked
    name TEXT NOT NULL,           -- of the computer or program it was given to
    source TEXT NOT NULL,         -- owner, deployed, invited, approved
    since REAL NOT NULL           -- Unix seconds, for people
);
CREATE TABLE pending (
    public BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    boot TEXT NOT NULL,           -- which boot the next column counts in
    seen REAL NOT NULL            -- seconds since boot
);
CREATE TABLE invitation (
    digest BLOB PRIMARY KEY,      -- SHA-256 of the token
    role TEXT NOT NULL,
    name TEXT NOT NULL,           -- '' to take the newcomer's own
    boot TEXT NOT NULL,
    until REAL NOT NULL           -- seconds since boot
);
CREATE TABLE place (
    broker TEXT NOT NULL,         -- where the broker listened when it last started: one row
    door TEXT NOT NULL,
    boot TEXT NOT NULL,           -- and when that was
    started REAL NOT NULL
);
"""

ADMITTED: Final = "admitted"
PENDING: Final = "pending"
REFUSED: Final = "refused"


class Holder(NamedTuple):
    """A key that was given a role; ``role`` is empty once it is revoked."""

    public: bytes
    role: str
    name: str
    source: str
    since: float


class Stranger(NamedTuple):
    """A key whose holder waits to be let in as a node."""

    public: bytes
    name: str
    address: str


class Grant(NamedTuple):
    """What a deployment gives a key."""

    role: str
    name: str
    public: bytes


def clock() -> tuple[str, float]:
    """This boot's id, and the seconds since it."""
    return _boot(), time.clock_gettime(time.CLOCK_BOOTTIME)


@functools.cache  # it stays, and a broker that strangers have left no descriptor could not read it again
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Keyring:
    """Raises ``KeyFileError`` from every call when SQLite or the disk refuses. For one thread."""

    def __init__(self, path: Path, clock: Callable[[], tuple[str, float]] = clock) -> None:
        self._path = path
        self._clock = clock
        self._seen_version = -1
        self._touched = False  # by this process, which SQLite's data_version does not count
        self.roles: Mapping[bytes, str] = {}  # as of the last ``refresh``
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_S)
        except (OSError, sqlite3.Error) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise KeyFileError(f"cannot write {path} ({why}): set keys.dir to another place") from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            raise KeyFileError(f"{path} is not an allow-list ({error}): move it away") from error
        except KeyFileError:
            self._db.close()
            raise

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("BEGIN IMMEDIATE")  # two programs may start at once
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA.split(";\n"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.execute("COMMIT")
        if version not in (0, SCHEMA_VERSION):
            raise KeyFileError(f"{self._path} was made by a newer dolmetsch (version {version}): use that one")

    def close(self) -> None:
        self._db.close()

    # ---- the broker ----

    def refresh(self) -> set[bytes]:
        """Take over what other processes have changed; the keys that had a role and have lost it, or have another."""
        ((version,),) = self._run("PRAGMA data_version")
        if version == self._seen_version and not self._touched:
            return set()
        self._seen_version, self._touched = version, False
        before = self.roles
        self.roles = dict(self._run("SELECT public, role FROM key WHERE role != ''"))
        return {key for key, role in before.items() if self.roles.get(key) != role}

    def knock(self, public: bytes, name: str, token: bytes, address: str) -> tuple[str, str]:
        """Somebody asks to be let in: ``ADMITTED``, ``PENDING`` or ``REFUSED``, and a line that says why.

        A token is used up by the first who brings it; that one may come again, by its key.
        """
        if is_fingerprint(name):
            return REFUSED, "a name must not look like a fingerprint: give another one (--name)"
        with _Transaction(self):
            if token:
                self._redeem(public, name, token)
            holder = self._holder(public)
            if holder is not None and holder.role:
                return ADMITTED, f"as {holder.role}"
            if token:
                return REFUSED, "the invitation is not valid (any more): ask for a new one (python broker.py invite)"
            if holder is not None:
                return REFUSED, "this key was revoked: ask for a new invitation"
            return self._wait(public, name, address)

    def _redeem(self, public: bytes, name: str, token: bytes) -> None:
        """Give the role that the invitation is for, if it is valid; in either case it is gone."""
        boot, now = self._now()
        rows = self._run("DELETE FROM invitation WHERE digest = ? RETURNING role, name, boot, until", _digest(token))
        if not rows or rows[0][2] != boot or rows[0][3] < now:
            return
        role, wanted, *_ = rows[0]
        self._give(Grant(role, self._free_name(wanted or name, public), public), "invited")

    def _wait(self, public: bytes, name: str, address: str) -> tuple[str, str]:
        boot, now = self._now()
        self._run("DELETE FROM pending WHERE boot != ? OR seen < ?", boot, now - PENDING_S)
        others = self._run("SELECT address FROM pending WHERE public != ?", public)
        if len(others) >= MAX_WAITING or others.count((address,)) >= MAX_PENDING_PER_HOST:
            return REFUSED, "too many wait already: ask for an invitation (python broker.py invite)"
        self._run("INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?, ?)", public, name, address, boot, now)
        return PENDING, "waits for approval"

    # ---- the owner ----

    def invite(self, role: str, name: str, lifetime_s: float = INVITATION_S) -> bytes:
        """A token that lets one newcomer in with ``role``. Raises ``InputError``."""
        _check(role, name or "x")
        token = secrets.token_bytes(TOKEN_BYTES)
        boot, now = self._now()
        with _Transaction(self):
            self._run("DELETE FROM invitation WHERE boot != ? OR until < ?", boot, now)
            ((count,),) = self._run("SELECT count(*) FROM invitation")
            if count >= MAX_INVITATIONS:
                raise InputError(f"{count} invitations are open: wait until some have ended")
            self._run(
                "INSERT INTO invitation VALUES (?, ?, ?, ?, ?)", _digest(token), role, name, boot, now + lifetime_s
            )
        return token

    def pending(self) -> list[Stranger]:
        """Who waits, by name."""
        boot, now = self._now()
        sql = "SELECT public, name, address FROM pending WHERE boot = ? AND seen >= ? ORDER BY name, public"
        return [Stranger(*row) for row in self._run(sql, boot, now - PENDING_S)]

    def approve(self, which: str) -> Stranger:
        """Let in as a node who waits by this name or fingerprint. Raises ``InputError``."""
        with _Transaction(self):
            stranger = self._stranger(which)
            self._give(Grant("node", self._free_name(stranger.name, stranger.public), stranger.public), "approved")
            return stranger

    def refuse(self, which: str) -> Stranger:
        """Turn away who waits by this name or fingerprint; its key counts as revoked. Raises ``InputError``."""
        with _Transaction(self):
            stranger = self._stranger(which)
            self._revoke(stranger.public, stranger.name)
            return stranger

    def _stranger(self, which: str) -> Stranger:
        found = [one for one in self.pending() if which in (one.name, fingerprint(one.public))]
        if len(found) != 1:
            raise InputError(
                f"{len(found)} called {which} wait: give a fingerprint" if found else f"nobody called {which} waits"
            )
        return found[0]

    def revoke(self, which: str) -> Holder:
        """Take the role from the key with this name or fingerprint. Raises ``InputError``."""
        with _Transaction(self):
            found = [one for one in self.holders() if one.role and which in (one.name, fingerprint(one.public))]
            if len(found) != 1:
                raise InputError(
                    f"no key is called {which}"
                    if not found
                    else f"{len(found)} keys are called {which}: give a fingerprint"
                )
            self._revoke(found[0].public, found[0].name)
            return found[0]

    def holders(self) -> list[Holder]:
        """All keys that have or had a role, by name."""
        sql = "SELECT public, role, name, source, since FROM key ORDER BY name, since"
        return [Holder(*row) for row in self._run(sql)]

    def listens(self, broker: str, door: str) -> None:
        """The broker listens there: invitations are to say so."""
        with _Transaction(self):
            self._run("DELETE FROM place")
            self._run("INSERT INTO place VALUES (?, ?, ?, ?)", broker, door, *self._clock())

    def place(self) -> tuple[str, str] | None:
        """Where the broker listens, and its door; None before its first start."""
        rows = self._run("SELECT broker, door FROM place")
        return rows[0] if rows else None

    def own(self, public: bytes, name: str) -> None:
        """The owner's own key, on the broker's computer, may do everything."""
        with _Transaction(self):
            holder = self._holder(public)
            if holder is None or holder.role != "owner":
                self._give(Grant("owner", name, public), "owner")

    def deploy(self, grants: Iterable[Grant]) -> list[str]:
        """Make the deployed keys those of ``grants``; what changed, a line each. Others stay. Raises ``InputError``."""
        wanted = {grant.public: grant for grant in grants}
        for grant in wanted.values():
            _check(grant.role, grant.name)
        changes: list[str] = []
        with _Transaction(self):
            held = {one.public: one for one in self.holders()}
            for public, one in held.items():
                if one.source == "deployed" and one.role and public not in wanted:
                    self._revoke(public, one.name)
                    changes.append(f"removed {one.name}")
            for public, grant in wanted.items():
                now = held.get(public)
                if now is None or (now.role, now.name, now.source) != (grant.role, grant.name, "deployed"):
                    self._give(grant, "deployed")
                    changes.append(f"{'changed' if now is not None and now.role else 'added'} {grant.name}")
        return changes

    # ---- rows ----

    def _now(self) -> tuple[str, float]:
        """This boot's id as the broker sees it, and the seconds since: a container's service may see another one."""
        boot, now = self._clock()
        rows = self._run("SELECT boot FROM place WHERE started <= ?", now)  # later than now: that was before a reboot
        return (rows[0][0] if rows else boot), now

    def _holder(self, public: bytes) -> Holder | None:
        rows = self._run("SELECT public, role, name, source, since FROM key WHERE public = ?", public)
        return Holder(*rows[0]) if rows else None

    def _give(self, grant: Grant, source: str) -> None:
        self._run("DELETE FROM pending WHERE public = ?", grant.public)
        row = (grant.public, grant.role, grant.name, source, time.time())
        self._run("INSERT OR REPLACE INTO key VALUES (?, ?, ?, ?, ?)", *row)

    def _revoke(self, public: bytes, name: str) -> None:
        self._run("DELETE FROM pending WHERE public = ?", public)
        self._run("INSERT OR REPLACE INTO key VALUES (?, '', ?, 'revoked', ?)", public, name, time.time())
        self._run(
            "DELETE FROM key WHERE role = '' AND public NOT IN"
            " (SELECT public FROM key WHERE role = '' ORDER BY since DESC LIMIT ?)",
            MAX_REVOKED,
        )

    def _free_name(self, name: str, public: bytes) -> str:
        """``name``, or with a part of its fingerprint when another key is called so: people revoke by name."""
        taken = self._run("SELECT 1 FROM key WHERE name = ? AND public != ? AND role != ''", name, public)
        return f"{name[: MAX_NAME_CHARS - 5]}-{fingerprint(public)[:4]}" if taken else name

    def _run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise KeyFileError(f"{self._path} cannot be used: {error}") from error


class _Transaction:
    """All or nothing."""

    def __init__(self, ring: Keyring) -> None:
        self._ring = ring

    def __enter__(self) -> None:
        self._ring._run("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ring._run("COMMIT" if kind is None else "ROLLBACK")
        self._ring._touched = True


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _check(role: str, name: str) -> None:
    if role not in ROLES:
        raise InputError(f"there is no role {role}: a key is for a {', '.join(ROLES[:-1])} or {ROLES[-1]}")
    if not (name.isprintable() and name.strip() == name and 0 < len(name) <= MAX_NAME_CHARS) or is_fingerprint(name):
        raise InputError(f"a name has 1 to {MAX_NAME_CHARS} printable characters, and is no fingerprint")


def read_grants(text: str) -> list[Grant]:
    """The lines ``ROLE NAME PUBLICKEY`` of a deployment's file, # comments left out. Raises ``InputError``."""
    grants: list[Grant] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 3:
            raise InputError(f"line {number}: not ROLE NAME PUBLICKEY")
        if len(grants) == MAX_GRANTS:
            raise InputError(f"line {number}: more than {MAX_GRANTS} keys")
        grants.append(Grant(words[0], words[1], check_public(words[2])))
    return grants
