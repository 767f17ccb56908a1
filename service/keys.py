"""Keys: how they are made, and who a request is from.

A key is `lop_ID_SECRET`. The id finds its record, which holds a salt and a digest; the secret is shown once and stored
nowhere. It has 256 random bits, so that one round of SHA-256 is as good as a slow hash, which passwords need.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from threading import Lock

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from pruning.errors import AccessError, InputError, ScopeError, TooManyRequestsError
from storage.contract import Keys
from storage.records import JobRecord, KeyRecord, KeyScope

LOOPBACK = "loopback"
"""Who asks a server without keys, from the machine that it runs on."""
REMEMBERED_SECONDS = 2.0
"""A key that was read is good for so long: one that is revoked opens nothing after that."""
_NOTED = timedelta(minutes=1)
"""Between two notes of when a key was used."""
_KEY = re.compile(r"lop_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_MAX_REMEMBERED = 1000
_REMEDY = "Send `Authorization: Bearer KEY` with a key of `lop key create`; the client takes LOP_KEY or key="


@dataclass(frozen=True, slots=True)
class Asker:
    """Who a request is from, and what it may do. Keys of one name are one asker.

    `key_id` is of the key that was sent, None where nobody needs one.
    """

    name: str
    scope: KeyScope
    key_id: str | None = field(default=None, compare=False)

    def check(self, needed: KeyScope) -> None:
        """Raises ScopeError unless this may be done."""
        if not self.scope.allows(needed):
            raise ScopeError(
                f"this takes a key of scope {needed}",
                values=f"key {self.name!r} of scope {self.scope}",
                remedy=f"Ask for one: `lop key create --scope {needed}`",
                needs=needed.value,
            )

    def check_may_change(self, job: JobRecord) -> None:
        """Raises ScopeError unless the job is the asker's own, or everybody's may be changed."""
        if job.asked_by != self.name:
            self.check(KeyScope.ADMIN)


def new_key(
    name: str, scope: KeyScope, *, lifetime: timedelta | None = None, limit: str | None = None
) -> tuple[KeyRecord, str]:
    """The record of a new key, and the key itself, which is nowhere else.

    Raises InputError for a name that is empty or has control characters, a lifetime that is over, a limit that is none.
    """
    if not name.strip() or not name.isprintable() or len(name) > 100:
        raise InputError("a key has a name of 1 to 100 printable characters", values=repr(name[:120]))
    if lifetime is not None and lifetime <= timedelta(0):
        raise InputError("a key lives for a positive time", values=str(lifetime))
    if limit is not None:
        parse_limit(limit)
    key_id, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_hex(16)
    now = datetime.now(UTC)
    record = KeyRecord(
        id=key_id,
        name=name,
        scope=scope,
        salt=salt,
        digest=_digest(salt, secret),
        created_at=now,
        expires_at=None if lifetime is None else now + lifetime,
        limit=limit,
    )
    return record, f"lop_{key_id}_{secret}"


@lru_cache
def parse_limit(text: str) -> RateLimitItem:
    """A limit such as "100/minute"; raises InputError for what is none."""
    try:
        return parse(text)
    except ValueError as error:
        remedy = "Write it as 100/minute, 5/second or 10000/day"
        raise InputError("a limit is a number of requests in a time", values=repr(text[:80]), remedy=remedy) from error


class KeyRing:
    """Finds out who asks. Thread-safe; what was read is remembered for `REMEMBERED_SECONDS`.

    Args:
        keys: where they are stored; called when the first key is looked for.
        is_loopback: only this machine can reach the server: without any key, everybody there may do everything.
        limit: requests of a key whose record says none.
    """

    def __init__(
        self,
        keys: Callable[[], Keys],
        *,
        is_loopback: bool,
        limit: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys, self._is_loopback, self._clock = keys, is_loopback, clock
        self._limit = parse_limit(limit)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._remembered: dict[str, tuple[float, KeyRecord | None]] = {}
        self._open_until = self._keyed_until = -float("inf")
        self._lock = Lock()

    @property
    def is_open(self) -> bool:
        """Whether everybody was let in a moment ago."""
        return self._clock() < self._open_until

    def is_keyless(self) -> bool:
        """Whether everybody is let in, since there is no key; raises StorageError. Remembered as keys are."""
        if not self._is_loopback or self._clock() < self._keyed_until:
            return False
        return self.is_open or not self._look_for_keys()

    def is_still_good(self, asker: Asker) -> bool:
        """Whether who was let in would be let in now, limits aside: for answers without an end. Raises StorageError."""
        if asker.key_id is None:
            return self.is_keyless()
        until, record = self._remembered.get(asker.key_id, (-float("inf"), None))
        if self._clock() >= until:
            record = self._keys().find_key(asker.key_id)
            self._remember(asker.key_id, record)
        return record is not None and record.revoked_at is None and not _has_expired(record)

    def known(self, authorization: Sequence[str]) -> Asker | None:
        """Who asks, without a look into the database; None if that takes one. Raises as `find`."""
        if self._clock() < self._open_until:
            return Asker(LOOPBACK, KeyScope.ADMIN)
        try:
            key_id, secret = _token(authorization)
        except AccessError:
            return None  # whether that is refused, `find` knows
        remembered = self._remembered.get(key_id)
        if remembered is None or self._clock() >= remembered[0]:
            return None
        return self._checked(remembered[1], secret)

    def find(self, authorization: Sequence[str]) -> Asker:
        """Who asks, by the Authorization headers of a request.

        Raises:
            AccessError: no key, where there are any; or one that is unknown, expired or revoked; or two.
            TooManyRequestsError: the key's limit is reached.
            StorageError: the database cannot be used.
        """
        keys = self._keys()
        if self._is_loopback and not self._look_for_keys():  # then a key of another server does no harm
            return Asker(LOOPBACK, KeyScope.ADMIN)
        if not authorization:
            raise AccessError("a request needs a key", values="none", remedy=_REMEDY)
        key_id, secret = _token(authorization)
        record = keys.find_key(key_id)
        asker = self._checked(record, secret)
        assert record is not None
        now = datetime.now(UTC)
        if record.last_used_at is None or not timedelta(0) <= now - record.last_used_at < _NOTED:
            keys.note_key_use(key_id, now)
        self._remember(key_id, record)
        return asker

    def _remember(self, key_id: str, record: KeyRecord | None) -> None:
        with self._lock:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[key_id] = (self._clock() + REMEMBERED_SECONDS, record)

    def _look_for_keys(self) -> bool:
        """Whether there are any; what was found is remembered."""
        found, until = self._keys().has_keys(), self._clock() + REMEMBERED_SECONDS
        self._open_until, self._keyed_until = (-float("inf"), until) if found else (until, -float("inf"))
        return found

    def _checked(self, record: KeyRecord | None, secret: str) -> Asker:
        if record is None or not hmac.compare_digest(record.digest, _digest(record.salt, secret)):
            raise AccessError("a request needs a key that the server knows", values="another one", remedy=_REMEDY)
        if record.revoked_at is not None:
            raise AccessError("a key must not be revoked", values=_named(record), remedy=_REMEDY)
        if record.expires_at is not None and _has_expired(record):
            values = f"{_named(record)}, until {record.expires_at.isoformat(timespec='seconds')}"
            raise AccessError("a key must not have expired", values=values, remedy=_REMEDY)
        limit = self._limit if record.limit is None else parse_limit(record.limit)
        if not self._limiter.hit(limit, record.id):
            until = self._limiter.get_window_stats(limit, record.id).reset_time
            raise TooManyRequestsError(
                "a key may make so many requests and no more",
                values=f"{_named(record)}: {record.limit or limit}",
                remedy="Wait as Retry-After says, or ask for a key with another --limit",
                retry_after=max(1, round(until - time.time() + 0.5)),
            )
        return Asker(record.name, record.scope, record.id)


def _has_expired(record: KeyRecord) -> bool:
    return record.expires_at is not None and record.expires_at <= datetime.now(UTC)


def _named(record: KeyRecord) -> str:
    return f"key {record.id} ({record.name})"


def _digest(salt: str, secret: str) -> str:
    return hashlib.sha256(f"{salt}{secret}".encode()).hexdigest()


def _token(authorization: Sequence[str]) -> tuple[str, str]:
    """Id and secret of the one key; raises AccessError without showing any of it."""
    if len(authorization) != 1:
        raise AccessError("a request has one key", values=f"{len(authorization)} Authorization headers", remedy=_REMEDY)
    scheme, _, token = authorization[0].strip().partition(" ")
    found = _KEY.fullmatch(token.strip())
    if scheme.lower() != "bearer" or found is None:
        raise AccessError("a key is sent as `Authorization: Bearer lop_...`", values="another form", remedy=_REMEDY)
    return found[1], found[2]
