"""Text and rich outputs of one execution, bounded.

What comes beyond a bound is dropped while the code runs on, so that a program without end costs neither memory nor disk;
a last line says so.
"""

import ast
import codecs
import json
import re

STREAM_MAX_BYTES = 1 << 20
RICH_MAX_BYTES = 8 << 20
RICH_MAX = 64
# what one element takes at least where the answer is read, however short it is written
ELEMENT_BYTES = 32
# who reads the answer takes 128 levels, some of them around this, and no number that is beyond a float
LEVELS_MAX = 100
NUMBER_MAX = 10**300
LINE_MAX = 8000
COLOUR = re.compile(r"\x1b\[[0-9;]*.?", re.DOTALL)


class Text:
    """One stream: the first `STREAM_MAX_BYTES` of it."""

    def __init__(self, name):
        self._name = name
        self._parts = []
        self._room = STREAM_MAX_BYTES
        self.is_cut = False

    def add(self, data):
        """Takes text, or bytes as they were read: a character may begin in these and end in the next."""
        if self._room <= 0:
            self.is_cut = self.is_cut or bool(data)
            return
        if isinstance(data, str):
            data = data.encode("utf-8", "replace")
        if len(data) > self._room:
            data, self.is_cut = data[: self._room], True
        self._room -= len(data)
        self._parts.append(data)

    def text(self):
        # a character that the cut divided is left out
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        whole = decoder.decode(b"".join(self._parts), final=not self.is_cut)
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
        if len(self.rich) >= RICH_MAX:
            self.stderr.add(f"[an output was dropped: at most {RICH_MAX} are kept]\n")
            return
        kept = {}
        for kind, part in data.items():
            part = joined(kind, part)
            size = size_of(part, self._room)
            if size is None:
                words = f"at most {RICH_MAX_BYTES} bytes in all and {LEVELS_MAX} levels are kept"
                self.stderr.add(f"[an output of {kind[:80]} was dropped: {words}]\n")
                continue
            self._room -= size
            kept[kind] = part
        if not kept:
            return
        self.rich.append(kept)
        if is_result:
            self.result = with_value(kept)

    def fail(self, name, value, traceback):
        """The error that ended the code; its text also goes to stderr, where every client looks."""
        # cut first, since all of it may be long
        lines = [clean(line[: 4 * LINE_MAX])[:LINE_MAX] for line in traceback[:200]]
        value = clean(value[: 4 * LINE_MAX])[:LINE_MAX]
        self.error = {"ename": name[:200], "evalue": value, "traceback": lines}
        self.stderr.add("\n".join(lines or [f"{name}: {value}"]) + "\n")


def joined(kind, part):
    """A text may come as a list of its lines; a list that is JSON is a value and stays one."""
    is_json = kind == "application/json" or kind.endswith("+json")
    if is_json or not isinstance(part, list) or not all(isinstance(one, str) for one in part):
        return part
    return "".join(part)


def written(value):
    """JSON as it is sent: half a character is no UTF-8, and escaped it would make the whole answer unreadable."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def size_of(part, room):
    """What a part takes of the room; None when that is more, which is found without looking at all of it, or unreadable."""
    size, left = 0, [(part, 0)]
    while left:
        one, level = left.pop()
        if isinstance(one, str):
            # what is written is never shorter
            size += max(len(written(one)) if len(one) <= room else len(one), ELEMENT_BYTES)
        elif isinstance(one, (dict, list)):
            if level >= LEVELS_MAX or ELEMENT_BYTES * len(one) > room:
                return None
            size += ELEMENT_BYTES
            left += ((below, level + 1) for below in one)
            if isinstance(one, dict):
                left += ((below, level + 1) for below in one.values())
        else:
            if isinstance(one, (int, float)) and not abs(one) <= NUMBER_MAX:
                return None
            size += max(len(str(one)), ELEMENT_BYTES)
        if size > room:
            return None
    return size


def with_value(data):
    """A result that is a plain value also gets its JSON form, which clients of the API expect: 42, not "42"."""
    text = data.get("text/plain")
    if "application/json" in data or not isinstance(text, str) or len(text) > 1 << 16:
        return data
    try:
        value = ast.literal_eval(text)
        # what is no JSON, such as a set or a tuple as a key, stays a text; so do nan and infinity
        value = json.loads(json.dumps(value, allow_nan=False))
        return data if size_of(value, RICH_MAX_BYTES) is None else {**data, "application/json": value}
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return data


def clean(text):
    """Without the colours of terminals."""
    return COLOUR.sub("", text)
