"""The JavaScript SDK against a real server: the tests are in `js/`, this starts the server for them."""

import os
import pathlib
import shutil
import subprocess
import sys
import unittest

import cove
import pem
from cove import SUBSCRIPTION

HERE = pathlib.Path(__file__).resolve().parent / "js"
# Where the packages are installed: outside the checkout, beside the Python environments.
PACKAGES = pathlib.Path(os.environ.get("COVE_VENV", "/var/cache/cove/venv") + "-js")
NODE = pathlib.Path(sys.executable).with_name("node")


class JavaScript(unittest.TestCase):
    """`@azure/arm-appcontainers`."""

    def test_every_resource_type(self):
        server = self.enterContext(cove.Server())
        certificate = pem.self_signed(server.directory, "js.example.test", password="pw")
        shutil.copy(HERE / "resources.test.mjs", PACKAGES)  # packages are found from the file's own folder
        done = subprocess.run(
            [str(NODE), "--test", "--test-reporter=spec", "resources.test.mjs"],
            cwd=PACKAGES,
            env={
                **os.environ,
                "NODE_EXTRA_CA_CERTS": server.ca,
                "COVE_API": server.api,
                "COVE_SUBSCRIPTION": SUBSCRIPTION,
                "COVE_PFX": certificate.path,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )
        self.assertEqual(done.returncode, 0, f"{done.stdout}\n{done.stderr}\n{server.log()}")


if __name__ == "__main__":
    unittest.main()
