"""A program in a terminal of its own, as a person would use it."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

LINES, COLUMNS = 24, 80


class Terminal:
    """Starts a program on a pseudo terminal; `send` types, `expect` waits for output."""

    def __init__(self, arguments, environment):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            arguments, env={**environment, "TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._terminal = ours
        self.seen = ""

    def send(self, text):
        """Types `text`."""
        os.write(self._terminal, text.encode())

    def expect(self, text, within_seconds=60):
        """Waits until `text` was printed after what was expected before."""
        deadline = time.monotonic() + within_seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self._terminal], [], [], max(left, 0))
            if not readable:
                raise AssertionError(f"no {text!r} within {within_seconds} s; seen: {self.seen!r}")
            try:
                self.seen += os.read(self._terminal, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended before {text!r}; seen: {self.seen!r}") from None
        self.seen = self.seen.split(text, 1)[1]

    def type_until(self, line, text, within_seconds=60):
        """Types `line`, again every few seconds, until `text` was printed."""
        deadline = time.monotonic() + within_seconds
        while True:
            self.send(line)
            try:
                return self.expect(text, within_seconds=5)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise

    def wait(self, within_seconds=30):
        """Its exit code."""
        return self._process.wait(within_seconds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait(10)
        os.close(self._terminal)
