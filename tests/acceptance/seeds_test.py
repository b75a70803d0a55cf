"""Every command of `seeds.py` runs with `cove`, verbatim, and with the unmodified `az` in its own spelling."""

import hashlib
import http.client
import json
import os
import pathlib
import shlex
import ssl
import subprocess
import unittest

import az_test
import cove
import seeds

# names of the images on the server, with a tag where it is not `latest`, and the port that each listens on
IMAGES = {
    "ai-model": 8080,
    "batch-processor": 8080,
    "my-container-image:1.0": 80,
    "myapp": 8080,
    "stable-diffusion": 7860,
    "training": 8080,
    "training-job": 8080,
    "vllm/vllm-openai": 8080,
}
# as much room as the commands ask for together; what does not fit waits, which other tests show
CONFIG = cove.CONFIG + """
[capacity]
cores = 64
memory = "512GiB"

[registries.mirrors]
"myregistry.azurecr.io" = "cove.local"
"docker.io" = "cove.local"
"""
TABLE = pathlib.Path(__file__).parents[2] / "docs" / "seed-commands.md"


class Registry:
    """The embedded registry, as a client that copies one image under other names sees it."""

    def __init__(self, server):
        self._address = server.api.removeprefix("https://")
        self._context = ssl.create_default_context(cafile=server.ca)

    def _call(self, method, path, body=None, headers=None):
        connection = http.client.HTTPSConnection(self._address, context=self._context, timeout=60)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status < 300, f"{method} {path}: {answer.status} {content[:300]}"
            return content, answer.headers
        finally:
            connection.close()

    def _push_blob(self, name, content):
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        _, headers = self._call("POST", f"/v2/{name}/blobs/uploads/")
        location = headers["Location"]
        location = location[location.index("/v2/") :]
        separator = "&" if "?" in location else "?"
        self._call("PUT", f"{location}{separator}digest={digest}", content, {"Content-Type": "application/octet-stream"})
        return digest

    def copy(self, name, port):
        """The sample under another name, listening on another port."""
        accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
        name, _, tag = name.partition(":")
        content, headers = self._call("GET", "/v2/sample/manifests/latest", headers={"Accept": accept})
        manifest, kind = json.loads(content), headers["Content-Type"]
        config = json.loads(self._call("GET", f"/v2/sample/blobs/{manifest['config']['digest']}")[0])
        config["config"].setdefault("Env", []).append(f"PORT={port}")
        config["config"]["ExposedPorts"] = {f"{port}/tcp": {}}
        content = json.dumps(config).encode()
        manifest["config"].update(digest=self._push_blob(name, content), size=len(content))
        for layer in manifest["layers"]:
            self._push_blob(name, self._call("GET", f"/v2/sample/blobs/{layer['digest']}")[0])
        self._call("PUT", f"/v2/{name}/manifests/{tag or 'latest'}", json.dumps(manifest).encode(), {"Content-Type": kind})


class Seeds(unittest.TestCase):
    """The table, with either program."""

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server(config=CONFIG))
        registry = Registry(cls.server)
        for name, port in IMAGES.items():
            registry.copy(name, port)
        for name, content in seeds.FILES.items():
            (cls.server.directory / name).write_text(content)

    def bash(self, line, program, environment):
        """Runs lines in which `az` is `program`."""
        script = f'set -e\naz() {{ {program} "$@"; }}\n{line}\n'
        done = subprocess.run(
            ["bash", "-c", script], env=environment, cwd=self.server.directory, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def run_all(self, program, environment, is_az):
        results = {}
        code, out, error = self.bash("az group create --name MyRG --location eastus", program, environment)
        self.assertEqual(code, 0, error)
        for command in seeds.COMMANDS:
            with self.subTest(command=command.name):
                results[command.name] = self.run_one(command, program, environment, is_az)
        return results

    def run_one(self, command, program, environment, is_az):
        values = dict(command.values)
        text = command.az if is_az and command.az else command.text
        if "<revision-name>" in text:
            query = "az containerapp show -g MyRG -n myapp-gpu --query properties.latestRevisionName -o tsv"
            values["<revision-name>"] = self.bash(query, program, environment)[1].strip()
        line = seeds.joined(seeds.fill(text, values))
        if is_az and command.before:
            code, _, error = self.bash(command.before, program, environment)
            self.assertEqual(code, 0, error)
        said = "done"
        if command.secrets:
            code, _, error = self.bash(line, program, environment)
            self.assertNotEqual(code, 0, f"{command.name}: the secret {command.secrets} does not exist")
            self.assertIn(command.secrets, error)
            line += f" --secrets {command.secrets}={shlex.quote('a-value')}"
            said = f"refused, as the secret `{command.secrets}` is missing; done with `--secrets {command.secrets}=…`"
        code, out, error = self.bash(line, program, environment)
        self.assertEqual(code, 0, f"{line}\n{error}\n{out}")
        return said

    def test_cove(self):
        environment = {**os.environ, "COVE_DATA_DIR": str(self.server.data), "HOME": str(self.server.directory)}
        binary = shlex.quote(str(pathlib.Path(cove.BINARY).resolve()))
        results = self.run_all(binary, environment, is_az=False)
        self.assertEqual(len(results), len(seeds.COMMANDS))
        if os.environ.get("COVE_WRITE_TABLE"):
            TABLE.write_text(table(results))
        self.assertEqual(TABLE.read_text(), table(results), "write it anew with COVE_WRITE_TABLE=1")


class SeedsWithAz(Seeds):
    """The same with the unmodified az, on a server of its own."""

    def test_cove(self):
        az = az_test.Az(self.server)
        self.addCleanup(az.close)
        code, out, error = az.run(
            "login", "--service-principal", "-u", "cove", "-p", "local", "--tenant", cove.TENANT, "--output", "none"
        )
        self.assertEqual(code, 0, error)
        self.run_all(shlex.quote(az_test.AZ), az.environment, is_az=True)


def table(results):
    """The commands and what became of them, as Markdown."""
    lines = [
        "# Commands as they are written down",
        "",
        "Every command below runs with `cove` in place of `az`, word for word, and with the unmodified `az` in the spelling",
        "that is shown under it where `az` wants another. `tests/acceptance/seeds_test.py` runs them all and writes this page.",
        "",
        "A shell ends a command at a comment line, also after a backslash: where comments stand between the lines of a",
        "command, take them out first. The same goes for a line without its backslash.",
        "",
    ]
    for command in seeds.COMMANDS:
        lines += [f"## {command.name}", "", "```", seeds.joined(command.text), "```", ""]
        if command.az:
            lines += [f"In `az` ({command.why}):", "", "```"]
            lines += [seeds.joined(part) for part in (command.before, command.az) if part]
            lines += ["```", ""]
        lines += [f"Result: {results.get(command.name, 'not run')}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    unittest.main()
