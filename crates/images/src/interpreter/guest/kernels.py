"""The programs that keep the state of a session: an IPython kernel, a Node context, a shell.

Each runs one piece of code at a time, and answers interrupts; one that does not answer is ended and started anew, with its
state gone, and the answer says so.
"""

import contextlib
import fcntl
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time

from output import Outputs

START_WITHIN_SECONDS = 100
# the first error of a session has much to load before it is told, and a session may share its processor
INTERRUPT_WITHIN_SECONDS = 10
HEARD_MAX_BYTES = 16 << 20
HOME = "/mnt/data"
HERE = os.path.dirname(os.path.abspath(__file__))


def environment():
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


# by their ids, the programs that the server started itself and waits for
_started = {}


def expendable(process):
    """When the session's memory is full, this one ends and what it started, never the server: code is told, the session lives."""
    _started[process.pid] = process
    with contextlib.suppress(OSError):
        with open(f"/proc/{process.pid}/oom_score_adj", "w") as file:
            file.write("1000")


def awaited():
    """The ids of those programs whose end was not seen yet."""
    for pid, process in list(_started.items()):
        if process.returncode is not None and _started.get(pid) is process:
            del _started[pid]
    return set(_started)


class TimedOut(Exception):
    """The code did not end in time; `restarted` says that its state is gone."""

    def __init__(self, restarted):
        super().__init__()
        self.restarted = restarted


class Died(Exception):
    """The program that keeps the state ended while code ran; it was started anew. `code` is what it exited with."""

    def __init__(self, code=None):
        super().__init__()
        self.code = code


class Python:
    """IPython by the Jupyter protocol, over sockets in a folder of its own."""

    def __init__(self):
        from jupyter_client.manager import KernelManager

        folder = tempfile.mkdtemp(prefix="kernel-")
        self._manager = KernelManager(
            transport="ipc", ip=os.path.join(folder, "k"), connection_file=os.path.join(folder, "kernel.json")
        )
        self._manager.shutdown_wait_time = 1
        self._manager.kernel_spec.argv = [sys.executable, os.path.join(HERE, "kernel.py"), "-f", "{connection_file}"]
        self._manager.start_kernel(cwd=HOME, env=environment())
        self._open()
        # what the first code would wait for otherwise
        self.run("import numpy, pandas, matplotlib; import matplotlib.pyplot; del numpy, pandas, matplotlib", Outputs(), 90)

    def _open(self):
        expendable(self._manager.provisioner.process)
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=START_WITHIN_SECONDS)

    def _restart(self):
        self._client.stop_channels()
        self._manager.restart_kernel(now=True)
        self._open()

    def run(self, code, outputs, seconds):
        asked = self._client.execute(code, allow_stdin=False, stop_on_error=True)
        if self._collect(asked, outputs, time.monotonic() + seconds):
            return
        self._manager.interrupt_kernel()
        if self._collect(asked, outputs, time.monotonic() + INTERRUPT_WITHIN_SECONDS):
            raise TimedOut(restarted=False)
        self._restart()
        raise TimedOut(restarted=True)

    def _collect(self, asked, outputs, deadline):
        """Reads until the kernel is idle again; false when that took too long."""
        replied = None
        while True:
            now = time.monotonic()
            if now > deadline:
                return False
            # output may have been dropped on the way, the reply never is
            if replied is not None and now > replied + 1:
                return True
            try:
                message = self._client.get_iopub_msg(timeout=min(0.5, deadline - now))
            except queue.Empty:
                if not self._manager.is_alive():
                    self._restart()
                    raise Died from None
                replied = replied or self._reply(asked)
                continue
            if message.get("parent_header", {}).get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                self._reply(asked)
                return True
            self._take(kind, content, outputs)

    def _reply(self, asked):
        """When the reply to `asked` came, or None."""
        while True:
            try:
                message = self._client.get_shell_msg(timeout=0)
            except queue.Empty:
                return None
            if message.get("parent_header", {}).get("msg_id") == asked:
                return time.monotonic()

    def _take(self, kind, content, outputs):
        if kind == "stream":
            (outputs.stderr if content["name"] == "stderr" else outputs.stdout).add(content["text"])
        elif kind == "execute_result":
            outputs.show(content["data"], is_result=True)
        elif kind == "display_data":
            outputs.show(content["data"])
        elif kind == "error":
            outputs.fail(content["ename"], content["evalue"], content["traceback"])

    def close(self):
        self._manager.shutdown_kernel(now=True)


class Child:
    """A program that is told code on its descriptor `TOLD` and says on `SAID` how it ended; 1 and 2 are its output."""

    # beyond those that code opens
    TOLD, SAID = 200, 201

    def __init__(self, command):
        self._command = command
        self._start()

    def _start(self):
        inside_read, tell = os.pipe()
        hear, inside_write = os.pipe()
        told, said = (fcntl.fcntl(one, fcntl.F_DUPFD, wanted) for one, wanted in ((inside_read, self.TOLD), (inside_write, self.SAID)))
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=HOME,
            env=environment(), start_new_session=True, pass_fds=(told, said),
        )  # fmt: skip
        expendable(self._process)
        for one in (inside_read, inside_write, told, said):
            os.close(one)
        self._tell, self._hear = tell, hear
        self._selector = selectors.DefaultSelector()
        self._streams = {self._process.stdout.fileno(): "stdout", self._process.stderr.fileno(): "stderr"}
        for number in (hear, *self._streams):
            os.set_blocking(number, False)
            self._selector.register(number, selectors.EVENT_READ)
        self._heard = b""

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._selector.close()
        for number in (self._tell, self._hear):
            os.close(number)
        self._process.stdout.close()
        self._process.stderr.close()

    def _restart(self):
        self.close()
        self._start()

    def run(self, code, outputs, seconds):
        self._drain(None)
        line = json.dumps({"code": code}).encode() + b"\n"
        writer = threading.Thread(target=self._write, args=(self._tell, line), daemon=True)
        writer.start()
        ended = self._collect(outputs, time.monotonic() + seconds)
        if ended is None:
            self._interrupt()
            ended = self._collect(outputs, time.monotonic() + INTERRUPT_WITHIN_SECONDS)
            if ended is None:
                self._restart()
            raise TimedOut(restarted=ended is None)
        return ended

    @staticmethod
    def _write(descriptor, line):
        try:
            while line:
                line = line[os.write(descriptor, line) :]
        except OSError:
            pass  # it ended, which is seen where its answer is waited for

    def _interrupt(self):
        raise NotImplementedError

    def _collect(self, outputs, deadline):
        """What the program said about the end of the code; None when it said nothing in time."""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            for key, _ in self._selector.select(min(left, 0.5)):
                try:
                    data = os.read(key.fd, 1 << 16)
                except OSError:
                    continue
                if key.fd != self._hear:
                    if data:
                        getattr(outputs, self._streams[key.fd]).add(data)
                    else:
                        self._selector.unregister(key.fd)
                    continue
                self._heard += data
                line, mark, rest = self._heard.partition(b"\n")
                if mark:
                    self._heard = rest
                    self._drain(outputs)
                    return json.loads(line)
                if not data or len(self._heard) > HEARD_MAX_BYTES:
                    self._died(outputs)
            if self._process.poll() is not None and not self._heard:
                self._died(outputs)

    def _died(self, outputs):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        code = self._process.poll()
        self._drain(outputs)
        self._restart()
        raise Died(code)

    def _drain(self, outputs):
        """Takes what lies in the pipes, which is what was written before the end; at most a few MiB of it."""
        for number, name in self._streams.items():
            for _ in range(64):
                try:
                    data = os.read(number, 1 << 16)
                except OSError:
                    break
                if not data:
                    break
                if outputs is not None:
                    getattr(outputs, name).add(data)


class Node(Child):
    """JavaScript in one context of Node's `vm`."""

    def __init__(self):
        super().__init__(["node", "--no-warnings", os.path.join(HERE, "node.js")])
        super().run("undefined", Outputs(), START_WITHIN_SECONDS)

    def run(self, code, outputs, seconds):
        ended = super().run(code, outputs, seconds)
        for shown in ended.get("outputs", [])[:64]:
            outputs.show(shown)
        if ended.get("error"):
            outputs.fail(*(ended["error"][key] for key in ("ename", "evalue", "traceback")))
        elif "result" in ended:
            outputs.show(ended["result"], is_result=True)

    def _interrupt(self):
        os.kill(self._process.pid, signal.SIGINT)


# Code ends with a byte that no code holds, so nothing has to be unquoted.
SHELL = r"""
trap : INT
while IFS= read -r -d '' -u 200 __cove_code; do
    eval "$__cove_code" 200<&- 201>&-
    printf '{"exitCode":%d}\n' "$?" >&201
done
"""


class Shell(Child):
    """A bash that keeps its folder, variables and functions from command to command."""

    def __init__(self):
        super().__init__(["bash", "--noprofile", "--norc", "-c", SHELL])
        super().run("true", Outputs(), START_WITHIN_SECONDS)

    def run(self, code, outputs, seconds):
        try:
            return super().run(code, outputs, seconds)["exitCode"]
        except Died as died:
            # `exit 3` is what many scripts end with; the next command gets a new shell
            return died.code if died.code is not None and died.code >= 0 else 128 - (died.code or -9)

    @staticmethod
    def _write(descriptor, line):
        code = json.loads(line)["code"].replace("\0", "")
        Child._write(descriptor, code.encode("utf-8", "replace") + b"\0")

    def _interrupt(self):
        # the shell itself has a trap that does nothing; what it runs ends
        os.killpg(self._process.pid, signal.SIGINT)
