"""Images for tests that need more than the sample: made of this machine's own programs, imported as `docker save` would write them."""

import hashlib
import io
import json
import platform
import re
import subprocess
import tarfile

import cove

PROGRAMS = ["sh", "cat", "id", "sleep", "ls", "stty", "touch", "mkdir", "cp"]


def _add(archive, path, content, mode):
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _layer():
    """A root file system with a shell."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        libraries = set()
        for program in PROGRAMS:
            path = f"/bin/{program}"
            linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
            libraries.update(re.findall(r"(/\S+)", linked))
            with open(path, "rb") as file:
                _add(archive, path[1:], file.read(), 0o755)
        for library in sorted(libraries):
            with open(library, "rb") as file:
                _add(archive, library[1:], file.read(), 0o755)
        _add(archive, "etc/passwd", b"root:x:0:0::/root:/bin/sh\n", 0o644)
        _add(archive, "srv/hello", b"hello from the image\n", 0o644)
        # what it does is said by a variable, since `az` takes no `-c` as an argument of a command
        _add(archive, "srv/run", b'#!/bin/sh\neval "$SCRIPT"\n', 0o755)
    return whole.getvalue()


def import_shell(server, name):
    """Makes an image with a shell known to the server under `name`; its command sleeps."""
    layer = _layer()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    config = json.dumps({
        "architecture": machine,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "WorkingDir": "/srv", "Cmd": ["sh", "-c", "echo begun; exec sleep 100000"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    path = server.directory / "shell.tar"
    with tarfile.open(path, "w") as archive:
        _add(archive, config_name, config, 0o644)
        _add(archive, "layer.tar", layer, 0o644)
        _add(archive, "manifest.json", manifest, 0o644)
    done = subprocess.run(
        [cove.BINARY, "image", "import", str(path), "--data-dir", str(server.data)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode != 0:
        raise AssertionError(f"`cove image import` failed: {done.stderr}")
