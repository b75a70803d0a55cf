"""The IPython kernel of a session, which drops what nobody would be told of what is printed.

ipykernel gathers what is printed for a moment and sends it as one message. Of code that prints without end these messages
grow, and on a busy machine faster than they are read, until the session has no memory left.

Usage: kernel.py -f CONNECTION_FILE
"""

import sys

from ipykernel import iostream, kernelapp

from output import STREAM_MAX_BYTES

# more than the server keeps, so that it sees that something is missing
PRINTED_MAX = 2 * STREAM_MAX_BYTES


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


if __name__ == "__main__":
    # code finds its own modules, not the server's; the kernel itself puts the working folder here
    del sys.path[0], sys.modules["output"]
    # what the kernel looks up when it redirects the streams
    iostream.OutStream = Stream
    kernelapp.launch_new_instance()
