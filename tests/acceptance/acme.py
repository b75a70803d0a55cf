"""An ACME server for tests: a process of its own on a free port, with a CA of its own."""

import json
import os
import pathlib
import socket
import struct
import subprocess
import tempfile
import threading

import cove

START_WITHIN_SECONDS = 60


def _openssl(*arguments):
    subprocess.run(["openssl", *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)


class Resolver:
    """A DNS server on a free UDP port of loopback that knows TXT records only: `records[name] = value`."""

    def __init__(self):
        self.records = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                asked, client = self._socket.recvfrom(4096)
            except OSError:
                return  # closed
            labels, at = [], 12
            while asked[at]:
                labels.append(asked[at + 1 : at + 1 + asked[at]].decode())
                at += 1 + asked[at]
            question = asked[12 : at + 5]
            value = self.records.get(".".join(labels).lower())
            answer = asked[:2] + struct.pack(">HHHHH", 0x8180, 1, 1 if value else 0, 0, 0) + question
            if value:
                text = bytes([len(value)]) + value.encode()
                answer += struct.pack(">HHHIH", 0xC00C, 16, 1, 60, len(text)) + text
            self._socket.sendto(answer, client)

    def close(self):
        self._socket.close()


class Authority:
    """Use it as a context manager. `days` is how long its certificates are valid."""

    def __init__(self, days=90):
        self._directory = tempfile.TemporaryDirectory(prefix="cove-acme-")
        self.folder = pathlib.Path(self._directory.name)
        self.days = days
        (self.port,) = cove.free_ports(1)
        self.resolver = Resolver()
        self._process = None

    def __enter__(self):
        folder = self.folder
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650",
            "-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.pem", "-subj", "/CN=ACME test CA",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", f"{folder}/tls.key", "-out", f"{folder}/tls.csr", "-subj", "/CN=localhost",
        )  # fmt: skip
        extension = folder / "tls.ext"
        extension.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        _openssl(
            "x509", "-req", "-in", f"{folder}/tls.csr", "-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca.key",
            "-CAcreateserial", "-days", "30", "-extfile", str(extension), "-out", f"{folder}/tls.pem",
        )  # fmt: skip
        return self

    def __exit__(self, *_):
        self.stop()
        self.resolver.close()
        self._directory.cleanup()

    @property
    def root(self):
        """The certificate that signs both the directory's own and those that are issued."""
        return self.folder / "ca.pem"

    @property
    def url(self):
        return f"https://localhost:{self.port}/directory"

    def config(self):
        """What Cove's configuration says of it."""
        return (
            f'\n[acme]\ndirectory = "{self.url}"\ncontact = ["mailto:test@example.com"]\nterms_agreed = true\n'
            f'root = "{self.root}"\nresolver = "127.0.0.1:{self.resolver.port}"\n'
        )

    def start(self, http_port):
        """Starts it; domains are asked at `http_port` of this machine. Its own port is known before."""
        settings = {"port": self.port, "http_port": http_port, "dns_port": self.resolver.port, "days": self.days}
        (self.folder / "settings.json").write_text(json.dumps(settings))
        python = os.environ["COVE_VENV"] + "-acme/bin/python"
        script = pathlib.Path(__file__).with_name("acme_server.py")
        self._log = open(self.folder / "acme.log", "ab")
        self._process = subprocess.Popen(
            [python, str(script), str(self.folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        said, ended = [], threading.Event()
        threading.Thread(target=self._read, args=(said, ended), daemon=True).start()
        if not ended.wait(START_WITHIN_SECONDS) or not said:
            log = (self.folder / "acme.log").read_text(errors="replace")[-4000:]
            self.stop()
            raise AssertionError(f"the ACME server did not start within {START_WITHIN_SECONDS} s:\n{log}")

    def _read(self, said, ended):
        for line in self._process.stdout:
            if line.startswith("ready "):
                said.append(line)
                ended.set()
        ended.set()

    def stop(self):
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(10)
        self._process.stdout.close()
        self._log.close()
        self._process = None

    def log(self):
        return (self.folder / "acme.log").read_text(errors="replace")[-6000:]
