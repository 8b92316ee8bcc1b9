"""The parent's side of a decoder child: start it, ask it, end it."""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, cast

from visual_search.decode.protocol import GO, HEADER
from visual_search.redaction import printable

_START_TIMEOUT_S = 60
_END_TIMEOUT_S = 1
_SLICE_S = 0.5
# Room for most images, so that the parent need not be woken to write the rest. Linux's default
# is 64 KiB, its limit without privileges 1 MiB.
_PIPE_BYTES = 1 << 20
_MAX_ANSWER_BYTES = 1 << 16
# All that a child sees of the environment: the rest may hold secrets.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")


class Child:
    """A running `visual_search.decode.child`."""

    def __init__(self, *, memory_fd: int, max_pixels: int, timeout_s: float) -> None:
        self.cpu_s = 0.0
        self._ready = False
        self._patience = _Patience(0)
        arguments = [str(memory_fd), str(max_pixels), str(timeout_s)]
        self._process = subprocess.Popen(
            # -P: whatever folder is the current one, it provides no modules.
            [sys.executable, "-P", "-m", "visual_search.decode.child", *arguments],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(memory_fd,),
            env=_environment(),
            # Ctrl-C at a terminal is for the parent, which then drains.
            process_group=0,
        )
        self._requests, self._answers, self._complaints = (
            cast("IO[bytes]", stream)
            for stream in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        os.set_blocking(self._requests.fileno(), False)
        if sys.platform == "linux":
            # Refused once a user's pipes hold too much in total; slower, nothing else.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._requests.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def is_ready(self) -> bool:
        """Whether it lives and takes requests; the first time, waits until it does."""
        if self._process.poll() is not None:
            return False
        if not self._ready:
            try:
                self._next_answer(_Patience(_START_TIMEOUT_S))
            except (EOFError, TimeoutError, LookupError, TypeError, ValueError):
                return False
            self._ready = True
        return True

    def ask(self, body: bytes, least_px: int, timeout_s: float) -> dict[str, Any]:
        """Send one image, return the answer.

        A large picture is not decoded at once: the answer then says what it needs, and `go_on`
        has the real one.

        Raises:
            TimeoutError: Not all of it went through in time. The child is of no more use.
            EOFError, BrokenPipeError: It died.
            LookupError, TypeError, ValueError: Its answer makes no sense.
        """
        self._patience = _Patience(timeout_s)
        self._send(HEADER.pack(len(body), least_px) + body)
        return self._next_answer(self._patience)

    def go_on(self) -> dict[str, Any]:
        """Let it decode the large picture, in what is left of the time. Raises as `ask` does."""
        self._send(GO)
        return self._next_answer(self._patience)

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> str:
        """End it, by force if it is busy. Says how it ended; may be called more than once."""
        self._requests.close()
        try:
            code = self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if not self._ready and not self._complaints.closed:
            lines = self._complaints.read().decode(errors="replace").strip().splitlines()
            how += "".join(f" ({printable(line)})" for line in lines[-1:])
        self._answers.close()
        self._complaints.close()
        return how

    def _send(self, request: bytes) -> None:
        unsent = memoryview(request)
        while unsent:
            self._patience.wait(self._requests.fileno(), select.POLLOUT)
            unsent = unsent[os.write(self._requests.fileno(), unsent) :]

    def _next_answer(self, patience: "_Patience") -> dict[str, Any]:
        line = b""
        while not line.endswith(b"\n"):
            patience.wait(self._answers.fileno(), select.POLLIN)
            part = os.read(self._answers.fileno(), 4096)
            if not part:
                raise EOFError
            line += part
            if len(line) > _MAX_ANSWER_BYTES:
                raise ValueError("an endless answer")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("an answer of another kind")  # noqa: TRY004 - the child's doing
        self.cpu_s = float(answer["cpu_s"])
        return answer


class _Patience:
    """A time limit for several waits that stands still while this process itself does.

    After a Ctrl-Z or a frozen container the child needs the time that it did not have either.
    """

    def __init__(self, seconds: float) -> None:
        self._left_s = seconds

    def wait(self, fd: int, event: int) -> None:
        poll = select.poll()
        poll.register(fd, event)
        while self._left_s > 0:
            started = time.monotonic()
            answered = poll.poll(1000 * min(_SLICE_S, self._left_s))
            self._left_s -= min(_SLICE_S, time.monotonic() - started)
            if answered:
                return
        raise TimeoutError


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {
        # What this process can import, the child can too, installed or in a checkout.
        "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path),
        # NumPy would start a thread for each core, and reserve memory for each.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        # glibc would give the memory of each picture back to the kernel, and get it again zeroed,
        # page by page: a sixth of the time of decoding. This much it keeps.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    }
