"""The IPython kernel of a session, which drops what nobody would be told of what is printed.

Twice it would be kept, and a session that prints without end has no memory left. ipykernel gathers what is printed for a
moment and sends it as one message, which grows when it is not read fast enough. IPython keeps whatever was printed since it
began, in case it is asked for a notebook.

Usage: kernel.py -f CONNECTION_FILE
"""

import codecs
import contextlib
import os
import sys

from ipykernel import iostream, kernelapp
from IPython.core.interactiveshell import InteractiveShell

from output import STREAM_MAX_BYTES

# more than the server keeps, so that it sees that something is missing
PRINTED_MAX = 2 * STREAM_MAX_BYTES
PIECE = 1 << 16


class Stream(iostream.OutStream):
    """The first `PRINTED_MAX` characters of every execution."""

    _room = PRINTED_MAX

    def set_parent(self, parent):
        """An execution begins."""
        super().set_parent(parent)
        self._room = PRINTED_MAX

    def write(self, string):
        """Says that all was written: code need not know."""
        if not isinstance(string, str):
            return super().write(string)
        kept = string[: max(self._room, 0)]
        self._room -= len(kept)
        if kept:
            super().write(kept)
        return len(string)

    def _watch_pipe_fd(self):
        """Passes on what programs print; decoded as one text, since a character may begin in one piece and end in the next."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with contextlib.suppress(Exception):
            while self._fid is not None and (piece := os.read(self._fid, PIECE)) and self._should_watch:
                self.write(decoder.decode(piece))
                os.write(self._original_stdstream_copy, piece)


def keep_nothing_printed(_shell, channel):
    """Instead of what puts each piece of text that goes to `channel` into the history of the session."""
    return contextlib.nullcontext(channel)


if __name__ == "__main__":
    # code finds its own modules, not the server's; the kernel itself puts the working folder here
    del sys.path[0], sys.modules["output"]
    # what the kernel looks up when it redirects the streams
    iostream.OutStream = Stream
    # it has no setting; were it renamed, the test of endless output would fail
    InteractiveShell._tee = keep_nothing_printed
    kernelapp.launch_new_instance()
