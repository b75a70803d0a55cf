"""Into running containers and onto shares: `cove containerapp exec|debug|port-forward|cp`, and storages by `az`."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import textwrap
import unittest

import cove
import images
from az_test import SAMPLE, Az
from cove import TENANT

GROUP, ENVIRONMENT, SHELL = "MyRG", "myenv", "cove.test/shell:latest"

CONFIG = """
[api]
retry_after = 0

[controller]
provisioning_deadline = "60s"
drain_period = "2s"

[[storage.shares]]
account = "elsewhere"
share = "data"
directory = "{directory}"
"""

_shared = {}


def setUpModule():
    elsewhere = tempfile.TemporaryDirectory(prefix="cove-share-")
    unittest.addModuleCleanup(elsewhere.cleanup)
    os.chmod(elsewhere.name, 0o777)
    server = cove.Server(CONFIG.format(directory=elsewhere.name)).__enter__()
    unittest.addModuleCleanup(server.__exit__, None, None, None)
    az = Az(server)
    unittest.addModuleCleanup(az.close)
    az("login", "--service-principal", "-u", "any", "-p", "any", "--tenant", TENANT)
    az("group", "create", "-n", GROUP, "-l", "eastus")
    az("containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus", "--logs-destination", "none")
    images.import_shell(server, SHELL)
    _shared.update(server=server, az=az, elsewhere=elsewhere.name)


class Inside(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.server, self.az = _shared["server"], _shared["az"]

    def cove(self, *arguments, given=None):
        """One command of the CLI: exit code, output, errors."""
        command = [cove.BINARY, "containerapp", *arguments, "--data-dir", str(self.server.data)]
        done = subprocess.run(command, input=given or b"", capture_output=True, timeout=120)
        return done.returncode, done.stdout, done.stderr.decode()

    def sh(self, name, script, *more):
        code, out, error = self.cove("exec", "-n", name, "-g", GROUP, "--command", f"sh -c '{script}'", *more)
        return code, out.decode(), error

    def create(self, name, image, *more):
        app = self.az("containerapp", "create", "-n", name, "-g", GROUP, "--environment", ENVIRONMENT, "--image", image,
                      "--min-replicas", "1", "--cpu", "0.25", "--memory", "0.5Gi", *more)  # fmt: skip
        self.addCleanup(self.az, "containerapp", "delete", "-n", name, "-g", GROUP, "--yes")
        cove.until("a replica is ready", lambda: self.ready(name))
        return app

    def ready(self, name):
        replicas = self.az("containerapp", "replica", "list", "-n", name, "-g", GROUP)
        return [r for r in replicas if all(c["ready"] for c in r["properties"]["containers"])]

    def yaml(self, text):
        path = self.server.directory / "app.yaml"
        path.write_text(textwrap.dedent(text))
        return str(path)

    def test_exec_passes_bytes_and_the_exit_code(self):
        self.create("shell", SHELL)
        self.assertEqual(self.sh("shell", "echo out; echo err >&2; exit 7"), (7, "out\n", "err\n"))
        blob = bytes(range(256)) * 2000
        code, out, error = self.cove("exec", "-n", "shell", "-g", GROUP, "--command", "cat", given=blob)
        self.assertEqual((code, error), (0, ""))
        self.assertEqual(out, blob)
        code, _, error = self.cove("exec", "-n", "shell", "-g", GROUP, "--command", "/nope")
        self.assertIn("`/nope` does not exist in the image", error)
        self.assertNotEqual(code, 0)

    def test_files_go_in_and_out(self):
        self.create("files", SHELL)
        source = self.server.directory / "conf"
        (source / "sub").mkdir(parents=True)
        (source / "sub" / "a").write_bytes(b"x" * 300_000)
        (source / "run").write_text("#!/bin/sh\necho ran\n")
        (source / "run").chmod(0o755)
        os.symlink("run", source / "link")
        code, _, error = self.cove("cp", "-g", GROUP, str(source), "files:/etc/app")
        self.assertEqual(code, 0, error)
        self.assertEqual(self.sh("files", "/etc/app/link; ls /etc/app")[1], "ran\nlink\nrun\nsub\n")
        back = self.server.directory / "back"
        code, _, error = self.cove("cp", "-g", GROUP, "files:/etc/app", str(back))
        self.assertEqual(code, 0, error)
        self.assertEqual((back / "sub" / "a").read_bytes(), b"x" * 300_000)
        self.assertEqual(os.readlink(back / "link"), "run")
        code, _, error = self.cove("cp", "-g", GROUP, str(source / "run"), "files:/etc/other")
        self.assertEqual((code, self.sh("files", "/etc/other")[1]), (0, "ran\n"), error)
        # a link of the container leads nowhere on this machine
        self.sh("files", "cd /etc/app && cp -s /etc/passwd stolen")
        code, _, error = self.cove("cp", "-g", GROUP, "files:/etc/app/stolen", str(self.server.directory / "stolen"))
        self.assertEqual((self.server.directory / "stolen").read_text(), "root:x:0:0::/root:/bin/sh\n", error)
        code, _, error = self.cove("cp", "-g", GROUP, "files:/nope", str(back))
        self.assertEqual(code, 3, error)

    def test_a_port_is_forwarded_and_a_shell_brought_along(self):
        self.create("web", SAMPLE, "--ingress", "internal", "--target-port", "80")
        command = [cove.BINARY, "containerapp", "port-forward", "-n", "web", "-g", GROUP, "0:80", "--data-dir", str(self.server.data)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            port = int(re.search(r"127\.0\.0\.1:(\d+)", process.stderr.readline()).group(1))
            for _ in range(3):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("GET", "/healthz")
                self.assertEqual(connection.getresponse().status, 200)
                connection.close()
        finally:
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(30), 0)
            process.stderr.close()
        code, out, error = self.cove("debug", "-n", "web", "-g", GROUP, "--command", "id -u; hostname; exit 4")
        if shutil.which("busybox") and "not a dynamic" in subprocess.run(
            ["ldd", shutil.which("busybox")], capture_output=True, text=True
        ).stderr:  # fmt: skip
            self.assertEqual((code, out.decode().splitlines()[0]), (4, "0"), error)
        else:
            self.assertIn("busybox-static", error)

    def test_storages_are_shared_and_stay(self):
        env = lambda *words: self.az("containerapp", "env", *words, "-n", ENVIRONMENT, "-g", GROUP)  # noqa: E731
        for name, account, mode in [("here", "acct", "ReadWrite"), ("there", "elsewhere", "ReadOnly")]:
            env("storage", "set", "--storage-name", name, "--azure-file-account-name", account, "--azure-file-share-name",
                "data", "--azure-file-account-key", "c2VjcmV0", "--access-mode", mode)  # fmt: skip
        self.assertNotIn("c2VjcmV0", json.dumps(env("storage", "list")))
        with open(os.path.join(_shared["elsewhere"], "given"), "w") as file:
            file.write("from outside\n")
        environment = env("show")["id"]
        body = """\
            properties:
              environmentId: %s
              template:
                containers:
                - {name: main, image: %s, resources: {cpu: 0.25, memory: 0.5Gi},
                   volumeMounts: [{volumeName: one, mountPath: /one}, {volumeName: two, mountPath: /two},
                                  {volumeName: one, mountPath: /part, subPath: a/b}]}
                volumes:
                - {name: one, storageType: AzureFile, storageName: here}
                - {name: two, storageType: %s, storageName: %s}
                scale: {minReplicas: 2, maxReplicas: 2}
            """
        for kind, name, words in [("AzureFile", "none", "no storage 'none'"), ("NfsAzureFile", "there", "is of type AzureFile")]:
            path = self.yaml(body % (environment, SHELL, kind, name))
            self.assertIn(words, self.az.refused("containerapp", "create", "-n", "stored", "-g", GROUP, "--yaml", path))
        path = self.yaml(body % (environment, SHELL, "AzureFile", "there"))
        self.az("containerapp", "create", "-n", "stored", "-g", GROUP, "--yaml", path)
        self.addCleanup(lambda: self.az.run("containerapp", "delete", "-n", "stored", "-g", GROUP, "--yes"))
        cove.until("two replicas are ready", lambda: len(self.ready("stored")) == 2)
        first, second = (replica["name"] for replica in self.ready("stored"))
        self.assertEqual(self.sh("stored", "echo kept > /one/file; echo part > /part/x; cat /two/given", "--replica", first)[1], "from outside\n")
        self.assertEqual(self.sh("stored", "cat /one/file /one/a/b/x", "--replica", second)[1], "kept\npart\n")
        self.assertIn("Read-only", self.sh("stored", "touch /two/x", "--replica", second)[2])
        self.assertIn("is used by volumes", self.az.refused("containerapp", "env", "storage", "remove", "-n", ENVIRONMENT, "-g", GROUP, "--storage-name", "here", "--yes"))
        share = self.server.data / "shares" / "acct" / "data" / "file"
        self.assertEqual(share.read_text(), "kept\n")
        self.az("containerapp", "delete", "-n", "stored", "-g", GROUP, "--yes")
        for name in ("here", "there"):
            env("storage", "remove", "--storage-name", name, "--yes")
        self.assertEqual(share.read_text(), "kept\n")

    def test_a_changed_secret_waits_for_a_restart(self):
        self.create("secret", SHELL, "--secrets", "pw=old", "--env-vars", "PW=secretref:pw", "--secret-volume-mount", "/secrets")
        read = lambda: self.sh("secret", "echo $PW; cat /secrets/pw")[1].split()  # noqa: E731
        self.assertEqual(read(), ["old", "old"])
        revisions = lambda: [r["name"] for r in self.az("containerapp", "revision", "list", "-n", "secret", "-g", GROUP, "--all")]  # noqa: E731
        before = revisions()
        self.az("containerapp", "secret", "set", "-n", "secret", "-g", GROUP, "--secrets", "pw=new")
        self.assertEqual((revisions(), read()), (before, ["old", "old"]))
        words = ["containerapp", "logs", "show", "-n", "secret", "-g", GROUP, "--type", "system", "--tail", "50"]
        cove.until("an event tells of it", lambda: "restart" in self.az.run(*words)[1])
        self.az("containerapp", "revision", "restart", "-n", "secret", "-g", GROUP, "--revision", before[0])

        def is_new():
            with contextlib.suppress(AssertionError):
                return read() == ["new", "new"]

        cove.until("the restarted replica has the new value", is_new)
        self.assertEqual(revisions(), before)


if __name__ == "__main__":
    unittest.main()
