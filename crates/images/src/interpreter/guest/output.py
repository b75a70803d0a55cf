"""Text and rich outputs of one execution, bounded.

What comes beyond a bound is dropped while the code runs on, so that a program without end costs neither memory nor disk;
a last line says so.
"""

import ast
import json

STREAM_MAX_BYTES = 1 << 20
RICH_MAX_BYTES = 8 << 20
RICH_MAX = 64


class Text:
    """One stream: the first `STREAM_MAX_BYTES` of it."""

    def __init__(self, name):
        self._name = name
        self._parts = []
        self._room = STREAM_MAX_BYTES
        self.is_cut = False

    def add(self, text):
        if self._room <= 0:
            self.is_cut = self.is_cut or bool(text)
            return
        data = text.encode("utf-8", "replace")
        if len(data) > self._room:
            data, self.is_cut = data[: self._room], True
        self._room -= len(data)
        self._parts.append(data)

    def text(self):
        whole = b"".join(self._parts).decode("utf-8", "ignore" if self.is_cut else "replace")
        if self.is_cut:
            whole += f"\n[{self._name} was cut at {STREAM_MAX_BYTES} bytes]\n"
        return whole


class Outputs:
    """What one execution gives back."""

    def __init__(self):
        self.stdout, self.stderr = Text("stdout"), Text("stderr")
        self.rich = []
        self.result = None
        self.error = None
        self._room = RICH_MAX_BYTES

    def show(self, data, is_result=False):
        """Takes a bundle of media types, as kernels send it."""
        data = {kind: joined(kind, part) for kind, part in data.items()}
        size = sum(len(part) if isinstance(part, str) else 256 for part in data.values())
        if size > self._room or len(self.rich) >= RICH_MAX:
            self.stderr.add(f"[an output of {size} bytes was dropped: at most {RICH_MAX} with {RICH_MAX_BYTES} bytes in all]\n")
            return
        self._room -= size
        self.rich.append(data)
        if is_result:
            self.result = with_value(data)

    def fail(self, name, value, traceback):
        """The error that ended the code; its text also goes to stderr, where every client looks."""
        lines = [clean(line)[:8000] for line in traceback[:200]]
        self.error = {"ename": name[:200], "evalue": clean(value)[:8000], "traceback": lines}
        self.stderr.add("\n".join(lines or [f"{name}: {value}"]) + "\n")


def joined(kind, part):
    """A text may come as a list of its lines; a list that is JSON is a value and stays one."""
    is_json = kind == "application/json" or kind.endswith("+json")
    if is_json or not isinstance(part, list) or not all(isinstance(one, str) for one in part):
        return part
    return "".join(part)


def with_value(data):
    """A result that is a plain value also gets its JSON form, which clients of the API expect: 42, not "42"."""
    text = data.get("text/plain")
    if "application/json" in data or not isinstance(text, str) or len(text) > 1 << 16:
        return data
    try:
        value = ast.literal_eval(text)
        # what is no JSON, such as a set or a tuple as a key, stays a text; so do nan and infinity
        return {**data, "application/json": json.loads(json.dumps(value, allow_nan=False))}
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return data


def clean(text):
    """Without the colours of terminals."""
    out, rest = [], text
    while True:
        head, mark, rest = rest.partition("\x1b[")
        out.append(head)
        if not mark:
            return "".join(out)
        rest = rest.lstrip("0123456789;")[1:]
