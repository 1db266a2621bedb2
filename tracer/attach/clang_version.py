"""Which BCC and which clang compile the probes, without importing bcc or compiling anything."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import subprocess
import sys

from tracer.attach.compiler import DEBIAN_PACKAGES

_LIBBCC = "libbcc.so.0"
_VERSION_FUNCTION = "_ZN5clang19getClangFullVersionB5cxx11Ev"
"""std::string clang::getClangFullVersion(), of include/clang/Basic/Version.h. Its C++ name: the
library that libbcc is linked with has no C function for it before LLVM 16."""
_MODULE = "tracer.attach.clang_version"
_SECONDS = 120.0
"""It takes 0.3 s; on an emulated CPU that others use, it took more than 20."""
UNKNOWN = "unknown"


def bcc_version() -> str:
    """Return the version of the bcc package for Python, or that it is not installed."""
    path = [*sys.path, DEBIAN_PACKAGES]
    found = next(iter(importlib.metadata.distributions(name="bcc", path=path)), None)
    return found.version if found else "not installed"


def clang_version() -> str:
    """Return the version of the clang that libbcc compiles with; `unknown` where it has no answer.

    A child asks the library, which may crash.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", _MODULE],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    return done.stdout.strip() if done.stdout.strip() and not done.returncode else UNKNOWN


class _StdString(ctypes.Structure):
    """A std::string of libstdc++; a short text would be in `rest`, and the pointer to it stale."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("rest", ctypes.c_byte * 16))


def ask_the_library() -> str:
    """Return clang's version. Raises OSError without libbcc, AttributeError without the function.

    libbcc's dependencies are searched for the function, so it is the clang that libbcc uses.
    """
    function = getattr(ctypes.CDLL(_LIBBCC), _VERSION_FUNCTION)
    function.restype, function.argtypes = _StdString, ()
    text = function()
    if not 16 <= text.size < 256:
        raise AttributeError("not a std::string on the heap")
    return ctypes.string_at(text.data, text.size).decode(errors="replace")


if __name__ == "__main__":
    try:
        print(ask_the_library())
    except (OSError, AttributeError) as error:
        sys.exit(str(error))
