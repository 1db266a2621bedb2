"""HTTP basic authentication with bcrypt at a bounded cost.

A password is hashed once, passwords are hashed one at a time, and hashing gets a share of one CPU.
"""

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
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import bcrypt

from tracer.web.cpu_budget import Budget

_MOST_WAITING = 4
_WAIT_SECONDS = 3.0
_MOST_REFUSED = 512
_BCRYPT_BYTES = 72
"""bcrypt ignores further bytes, and the library refuses longer passwords."""


class Admission(enum.Enum):
    """The result of a login."""

    YES = enum.auto()
    NO = enum.auto()
    BUSY = enum.auto()


def credentials(header: str) -> tuple[str, bytes] | None:
    """Return user and password of an Authorization header, or None if it has none."""
    scheme, _, given = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(given.strip(), validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except (binascii.Error, ValueError):
        return None


class Logins:
    """Checks logins and remembers the results by a keyed digest.

    It keeps one accepted password for each user, so that guesses cannot evict it, and the last 512
    rejected logins.
    """

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._good: dict[str, bytes] = {}
        self._bad: OrderedDict[bytes, None] = OrderedDict()
        self._waiting = 0
        self._spent = 0.0
        self._budget = Budget(used=lambda: self._spent)
        self._turn = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, "rmapd-login")

    def close(self) -> None:
        """End the thread that hashes, without waiting for it."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def check(self, users: Mapping[str, str], header: str) -> Admission:
        """Return whether the header has the password of one of the users.

        users: bcrypt hashes by name. BUSY: too many logins wait; the client may retry.
        """
        given = credentials(header)
        if given is None:
            return Admission.NO
        user, password = given
        # An unknown user takes as long as a known one.
        hashed = users.get(user) or unmatchable(users)
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
        """Return whether the password matches, or None if hashing cannot begin in time."""
        self._waiting += 1
        try:
            async with asyncio.timeout(_WAIT_SECONDS) as limit, self._turn:
                await self._budget.wait()
                limit.reschedule(None)
                began = time.monotonic()
                right = await asyncio.get_running_loop().run_in_executor(
                    self._worker, matches, password, hashed
                )
                self._spent += time.monotonic() - began
                return right
        except TimeoutError:
            return None
        finally:
            self._waiting -= 1


def matches(password: bytes, hashed: str) -> bool:
    """Hash and compare; bcrypt releases the interpreter lock meanwhile."""
    try:
        return bcrypt.checkpw(password[:_BCRYPT_BYTES], hashed.encode())
    except ValueError:
        return False


def unmatchable(users: Mapping[str, str]) -> str:
    """Return a hash that no password matches, with the highest cost of the users' hashes."""
    cost = max(hashed[4:6] for hashed in users.values())
    return f"$2b${cost}$" + "." * 53
