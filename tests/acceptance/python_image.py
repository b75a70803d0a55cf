"""An image with this machine's Python, the standard library and grpcio: servers of HTTP, TCP and gRPC in a few lines."""

import glob
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

LEFT_OUT = {"test", "idlelib", "tkinter", "site-packages", "ensurepip", "lib2to3", "turtledemo", "config"}
# compiled files that this Python takes as they are
COMPILED = f".{sys.implementation.cache_tag}.pyc"
PACKAGES = ["grpc", "typing_extensions.py"]
# clients of servers, which the environment of the scalers' tests has
CLIENTS = os.environ.get("COVE_VENV", "/var/cache/cove/venv") + "-scalers"
HERE = pathlib.Path(__file__).parent


def _libraries(path):
    linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    return {name for name in re.findall(r"(/\S+)", linked) if os.path.exists(name)}


def _whole_seconds(entry):
    """A compiled file counts only while its source has the second in it."""
    entry.mtime = int(entry.mtime)
    return entry


def _tree(archive, folder, target, libraries):
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT and not name.startswith("config-"))
        for name in sorted(files):
            path = os.path.join(root, name)
            if name.endswith(".pyc") and not name.endswith(COMPILED):
                continue
            if name.endswith(".so"):
                # what a package brings along itself it finds beside itself
                libraries |= {library for library in _libraries(path) if "site-packages" not in library}
            archive.add(path, os.path.join(target, os.path.relpath(path, folder)), recursive=False, filter=_whole_seconds)


def _package(archive, site, name, version, libraries):
    path = os.path.join(site, name)
    if os.path.isdir(path):
        _tree(archive, path, f"usr/lib/{version}/{name}", libraries)
        # some ask for their own version when they are imported
        for about in glob.glob(f"{path}-*.dist-info"):
            _tree(archive, about, f"usr/lib/{version}/{os.path.basename(about)}", libraries)
    elif os.path.exists(path):
        archive.add(path, f"usr/lib/{version}/{name}")
    else:
        raise FileNotFoundError(f"{path} is missing: scripts/test installs it")


def _layer(main, programs, clients, packages):
    python = os.path.realpath(sys.executable)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", dereference=True) as archive:
        libraries = _libraries(python)
        archive.add(python, f"usr/bin/{version}")
        _tree(archive, sysconfig.get_path("stdlib", vars={"base": sys.base_prefix}), f"usr/lib/{version}", libraries)
        site = sysconfig.get_path("purelib")
        for package in [*PACKAGES, *packages]:
            _package(archive, site, package, version, libraries)
        for package in clients:
            _package(archive, f"{CLIENTS}/lib/{version}/site-packages", package, version, libraries)
        for program in programs:
            libraries |= _libraries(program)
            archive.add(os.path.realpath(program), f"usr/bin/{os.path.basename(program)}")
        for library in sorted(libraries):
            archive.add(library, library.lstrip("/"))
        archive.add(HERE / main, "app.py")
        archive.add(HERE / "resp.py", "resp.py")
    return whole.getvalue(), version


def parts(programs=(), clients=(), main="python_app.py", packages=()):
    """The layer and the configuration of an image; see [import_into]."""
    layer, version = _layer(main, programs, clients, packages)
    config = json.dumps({
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/bin", "PYTHONHOME=/usr", "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1"],
            "Entrypoint": [f"/usr/bin/{version}", "/app.py"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }).encode()  # fmt: skip
    return layer, config


def import_into(server, name, **contents):
    """Makes the image known to the server under `name`; its command is `main`, for which see there.

    `programs` of this machine go into its `/usr/bin`, `clients` are packages beside the standard library,
    `packages` further ones of the tests' own environment.
    """
    layer, config = parts(**contents)
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
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode != 0:
        raise AssertionError(f"`cove image import` failed: {done.stderr}")
