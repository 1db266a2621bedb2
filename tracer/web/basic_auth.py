"""Basic authentication with bcrypt, at a bounded price: a password is hashed once, one at a time, within a share of a CPU."""

from __future__ import annotations

import asyncio
import base64
import binascii
import enum
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import bcrypt

from tracer.web.cpu_budget import Budget

_MOST_WAITING = 4
_WAIT_SECONDS = 3.0
_MOST_REFUSED = 512
_BCRYPT_BYTES = 72  # bcrypt never looked further; the library now refuses to pretend


class Admission(enum.Enum):
    """How a login ended."""

    YES = enum.auto()
    NO = enum.auto()
    BUSY = enum.auto()


def credentials(header: str) -> tuple[str, bytes] | None:
    """User and password of an Authorization header."""
    scheme, _, given = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(given.strip(), validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except (binascii.Error, ValueError):
        return None


class Logins:
    """Remembers, by a keyed digest, who was let in (one password a user: guesses cannot drive it out) and who was not (the last few)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._good: dict[str, bytes] = {}
        self._bad: OrderedDict[bytes, None] = OrderedDict()
        self._waiting = 0
        self._spent = 0.0
        self._budget = Budget(used=lambda: self._spent, clock=clock)
        self._turn = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, "rmapd-login")

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def enter(self, users: Mapping[str, str], header: str) -> Admission:
        """Whether this header is a user's. BUSY: too many are asking; the same may be tried again."""
        given = credentials(header)
        if given is None:
            return Admission.NO
        user, password = given
        # A name that nobody has takes as long as one that somebody has.
        hashed = users.get(user) or hash_of_nobody(users)
        key = hashlib.blake2b(
            b"\0".join((user.encode(), hashed.encode(), password)), key=self._secret
        ).digest()
        if hmac.compare_digest(self._good.get(user, b""), key):
            return Admission.YES
        if key in self._bad:
            return Admission.NO
        if self._waiting >= _MOST_WAITING:
            return Admission.BUSY
        right = await self._hash(password, hashed)
        if right is None:
            return Admission.BUSY
        if right and user in users:
            self._good[user] = key
            return Admission.YES
        self._bad[key] = None
        while len(self._bad) > _MOST_REFUSED:
            self._bad.popitem(last=False)
        return Admission.NO

    async def _hash(self, password: bytes, hashed: str) -> bool | None:
        """None where its turn does not come in time."""
        self._waiting += 1
        try:
            async with asyncio.timeout(_WAIT_SECONDS) as patience, self._turn:
                await self._budget.wait()
                patience.reschedule(None)
                began = self._clock()
                right = await asyncio.get_running_loop().run_in_executor(
                    self._worker, matches, password, hashed
                )
                self._spent += self._clock() - began
                return right
        except TimeoutError:
            return None
        finally:
            self._waiting -= 1


def matches(password: bytes, hashed: str) -> bool:
    """Return whether the password has this hash. bcrypt releases the interpreter lock meanwhile."""
    try:
        return bcrypt.checkpw(password[:_BCRYPT_BYTES], hashed.encode())
    except ValueError:
        return False


def hash_of_nobody(users: Mapping[str, str]) -> str:
    """A hash of no password, as costly as the costliest of these."""
    cost = max(hashed[4:6] for hashed in users.values())
    return f"$2b${cost}$" + "." * 53
