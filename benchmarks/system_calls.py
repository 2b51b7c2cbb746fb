"""System calls of a GET, counted with ptrace: Linux 5.3 or newer, any machine, no tool and no privilege.

    python -m benchmarks.system_calls SUBJECT TARGET CALLS     (the child that is counted; TARGET is JSON)

The child asks to be traced, and its parent then sees each system call of its main thread. Two writes to no file, which
nobody else does, mark where the counting begins and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from typing import Any

from benchmarks.bench import ROOT, Bench
from benchmarks.subjects import SUBJECTS, Target

_TRACE_ME, _CONTINUE_TO_SYSTEM_CALL, _SET_OPTIONS, _GET_SYSTEM_CALL = 0, 24, 0x4200, 0x420E
_MARK_SYSTEM_CALLS, _KILL_WITH_TRACER = 1, 1 << 20
_SYSTEM_CALL_STOP = signal.SIGTRAP | 0x80
_ENTRY = 1
_MARKER = bytes(12345)


class _SystemCall(ctypes.Structure):
    """`struct ptrace_syscall_info` of <linux/ptrace.h>, as it is at the entry to a call."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("_", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
        ("__", ctypes.c_uint64),  # other stops fill in a little more
    )

    def is_marker(self) -> bool:
        return bool(self.arguments[0] & 0xFFFFFFFF == 0xFFFFFFFF and self.arguments[2] == len(_MARKER))


def _ptrace(request: int, pid: int, address: int = 0, data: Any = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    if libc.ptrace(request, pid, address, data) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace: {os.strerror(error)}")


# -- the parent


def count(subject: str, target: Target, calls: int = 50) -> Counter[int]:
    """How often each system call, by its number, is made by so many GETs of one caller, the connection being open."""
    arguments = [subject, json.dumps(dataclasses.asdict(target)), str(calls)]
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.system_calls", *arguments], cwd=ROOT)
    found: Counter[int] = Counter()
    counting = False
    stop = _SystemCall()
    try:
        while True:
            _, status = os.waitpid(child.pid, 0)
            if not os.WIFSTOPPED(status):
                break
            reason = os.WSTOPSIG(status)
            passed_on = 0
            if reason == _SYSTEM_CALL_STOP:
                _ptrace(_GET_SYSTEM_CALL, child.pid, ctypes.sizeof(stop), ctypes.addressof(stop))
                if stop.op == _ENTRY and stop.is_marker():
                    counting = not counting
                elif stop.op == _ENTRY and counting:
                    found[stop.number] += 1
            elif reason == signal.SIGSTOP:  # the child's own, at the start
                _ptrace(_SET_OPTIONS, child.pid, 0, _MARK_SYSTEM_CALLS | _KILL_WITH_TRACER)
            else:
                passed_on = reason
            _ptrace(_CONTINUE_TO_SYSTEM_CALL, child.pid, 0, passed_on)
    finally:
        child.kill()
        child.wait()
    if not found:
        raise RuntimeError(f"nothing was counted: the child ended with {os.waitstatus_to_exitcode(status)}")
    return found


def measure(bench: Bench, names: list[str] | None = None) -> dict[str, Any]:
    """System calls of one GET, of one caller."""
    if sys.platform != "linux":
        return {}
    names = names or ["httpx", "httpx-sniffio", "httpx2", "aiohttp", "ours", "ours-uvloop", "ours-httpcore", "raw"]
    return {name: count(name, bench.target()).total() / 50 for name in names}


# -- the child


def _mark() -> None:
    with contextlib.suppress(OSError):
        os.write(-1, _MARKER)


async def _calls(subject: str, target: Target, calls: int) -> None:
    async with SUBJECTS[subject].load()(target) as call:
        for _ in range(20):
            await call()
        _ptrace(_TRACE_ME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        _mark()
        for _ in range(calls):
            await call()
        _mark()
        os._exit(0)  # the rest need not be traced


def main() -> None:
    subject, target, calls = sys.argv[1:]
    work = _calls(subject, Target(**json.loads(target)), int(calls))
    if SUBJECTS[subject].uvloop:
        import uvloop

        uvloop.run(work)
    else:
        asyncio.run(work)


if __name__ == "__main__":
    main()
