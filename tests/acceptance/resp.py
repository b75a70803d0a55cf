"""As much of Redis' protocol as the tests and their workers need; the standard library alone."""

import socket


class Redis:
    """A connection; call it with the words of a command."""

    def __init__(self, host, port):
        self.socket = socket.create_connection((host, int(port)))
        self.stream = self.socket.makefile("rwb")

    def close(self):
        self.stream.close()
        self.socket.close()

    def __call__(self, *words):
        lines = [f"*{len(words)}"] + [line for word in words for line in (f"${len(word.encode())}", word)]
        self.stream.write(("\r\n".join(lines) + "\r\n").encode())
        self.stream.flush()
        return self.answer()

    def answer(self):
        line = self.stream.readline().decode().rstrip()
        kind, rest = line[:1], line[1:]
        if not kind:
            raise OSError("the server closed the connection")
        if kind == "$":
            return None if rest == "-1" else self.stream.read(int(rest) + 2)[:-2].decode()
        if kind == "*":
            return None if rest == "-1" else [self.answer() for _ in range(int(rest))]
        if kind == "-":
            raise OSError(rest)
        return rest
