"""An image with this machine's Python, the standard library and grpcio: servers of HTTP, TCP and gRPC in a few lines."""

import hashlib
import io
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile

import cove

LEFT_OUT = {"test", "idlelib", "tkinter", "site-packages", "__pycache__", "ensurepip", "lib2to3", "turtledemo", "config"}
PACKAGES = ["grpc", "typing_extensions.py"]
MAIN = pathlib.Path(__file__).with_name("python_app.py")


def _libraries(path):
    linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    return {name for name in re.findall(r"(/\S+)", linked) if os.path.exists(name)}


def _tree(archive, folder, target, libraries):
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT and not name.startswith("config-"))
        for name in sorted(files):
            path = os.path.join(root, name)
            if name.endswith(".so"):
                libraries |= _libraries(path)
            archive.add(path, os.path.join(target, os.path.relpath(path, folder)), recursive=False)


def _layer(programs):
    python = os.path.realpath(sys.executable)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", dereference=True) as archive:
        libraries = _libraries(python)
        archive.add(python, f"usr/bin/{version}")
        _tree(archive, sysconfig.get_path("stdlib", vars={"base": sys.base_prefix}), f"usr/lib/{version}", libraries)
        site = sysconfig.get_path("purelib")
        for package in PACKAGES:
            path = os.path.join(site, package)
            if os.path.isdir(path):
                _tree(archive, path, f"usr/lib/{version}/{package}", libraries)
            else:
                archive.add(path, f"usr/lib/{version}/{package}")
        for program in programs:
            libraries |= _libraries(program)
            archive.add(os.path.realpath(program), f"usr/bin/{os.path.basename(program)}")
        for library in sorted(libraries):
            archive.add(library, library.lstrip("/"))
        archive.add(MAIN, "app.py")
    return whole.getvalue(), version


def import_into(server, name, programs=()):
    """Makes the image known to the server under `name`; its command is `app.py`, which takes the kind of server and a port.

    `programs` of this machine go into its `/usr/bin`.
    """
    layer, version = _layer(programs)
    config = json.dumps({
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/bin", "PYTHONHOME=/usr", "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1"],
            "Entrypoint": [f"/usr/bin/{version}", "/app.py"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }).encode()  # fmt: skip
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    path = server.directory / "python.tar"
    with tarfile.open(path, "w") as archive:
        for entry, content in ((config_name, config), ("layer.tar", layer), ("manifest.json", manifest)):
            member = tarfile.TarInfo(entry)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    done = subprocess.run(
        [cove.BINARY, "image", "import", str(path), "--data-dir", str(server.data)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode != 0:
        raise AssertionError(f"`cove image import` failed: {done.stderr}")
