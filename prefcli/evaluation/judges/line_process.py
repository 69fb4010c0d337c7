"""A child process that answers lines with lines, with limits of time and without deadlocks."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

_LOG = 2000
"""Bytes of standard error that are remembered, for messages."""
_LOG_LINES = 3
_LONGEST_LINE = 2**20
"""Bytes after which a line is cut."""
_END_SECONDS = 5.0
"""Seconds for a process to end after its input has ended."""


class NoAnswerError(Exception):
    """A process did not answer."""

    def __init__(self, status: str | None, unfinished: str, log: str) -> None:
        """status: how it ended, or closed its output; None: it did not answer in time.

        unfinished: the start of a line. log: the last lines of standard error, as text.
        """
        super().__init__(unfinished)
        self.status, self.unfinished, self.log = status, unfinished, log


class LineProcess:
    """A process with pipes, in its own group: Ctrl-C on the terminal does not reach it."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start the process. Raises OSError."""
        self._process = subprocess.Popen(
            [os.path.expanduser(word) for word in command],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # Python buffers what it prints into a pipe.
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._in, self._out, self._err = (pipe for pipe in pipes if pipe is not None)
        self._selector = selectors.DefaultSelector()
        for pipe in (self._in, self._out, self._err):
            os.set_blocking(pipe.fileno(), False)
        for pipe in (self._out, self._err):
            self._selector.register(pipe, selectors.EVENT_READ)
        self._unsent, self._received, self._log = b"", b"", b""
        self._ended = False

    def send(self, line: str) -> None:
        """Write a line. What the pipe does not take is written while `receive` waits."""
        self._unsent += line.encode() + b"\n"
        if self._in not in self._selector.get_map() and not self._in.closed:
            self._selector.register(self._in, selectors.EVENT_WRITE)

    def receive(self, seconds: float) -> str:
        """Return the next line. Raises NoAnswerError."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            if self._ended:
                raise self._no_answer(self._status())
            left = deadline - time.monotonic()
            if len(self._received) > _LONGEST_LINE:
                break
            if left <= 0:
                raise self._no_answer(None)
            for key, _ in self._selector.select(left):
                self._transfer(key.fileobj)
        line, _, self._received = self._received.partition(b"\n")
        return line.decode("utf-8", "replace")

    def close(self, *, kill: bool) -> None:
        """End the process: by the end of its input, and by a signal if it does not end."""
        for pipe in (self._in, self._out):
            with suppress(OSError):
                pipe.close()
        if not kill:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        # The group may have processes after its leader has ended.
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._selector.close()
        self._err.close()

    def _transfer(self, pipe: object) -> None:
        """Write to or read from a pipe that is ready."""
        if pipe is self._in:
            try:
                self._unsent = self._unsent[os.write(self._in.fileno(), self._unsent) :]
            except BlockingIOError:
                return
            except OSError:  # the process reads no more; the end of its output follows
                self._unsent = b""
            if not self._unsent:
                self._selector.unregister(self._in)
        elif pipe is self._err:
            data = _read(self._err.fileno())
            if not data:
                self._selector.unregister(self._err)
            self._log = (self._log + data)[-_LOG:]
        else:
            data = _read(self._out.fileno())
            self._ended = not data
            self._received += data

    def _status(self) -> str:
        """Describe how the process ended, and read the rest of its standard error."""
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its standard output"
        with suppress(OSError):
            while data := _read(self._err.fileno()):
                self._log = (self._log + data)[-_LOG:]
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit status {code}"

    def _no_answer(self, status: str | None) -> NoAnswerError:
        lines = [line.strip() for line in self._log.decode("utf-8", "replace").split("\n")]
        text = " / ".join([line for line in lines if line][-_LOG_LINES:])
        log = f"; its standard error ends with: {text}" if text else ""
        return NoAnswerError(status, self._received.decode("utf-8", "replace"), log)


def _read(handle: int) -> bytes:
    """Read what is there; empty at the end."""
    return os.read(handle, 2**16)
