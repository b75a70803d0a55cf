"""Sessions that run code: Python, Node and a shell, by plain requests, langchain's tools and the MCP SDK, all unmodified."""

import asyncio
import base64
import concurrent.futures
import functools
import json
import os
import pathlib
import re
import socket
import ssl
import subprocess
import textwrap
import time
import unittest
import urllib.parse

import cove
import requests
from cove import SUBSCRIPTION, TENANT

GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/code"
POOLS = f"{GROUP}/providers/Microsoft.App/sessionPools"
VERSION = "api-version=2025-07-01"
AUDIENCE = "https://dynamicsessions.io"
OLDER, NEWER = "2024-02-02-preview", "2025-10-02-preview"
MIB = 1 << 20
CLIENTS = os.environ.get("COVE_VENV", "/var/cache/cove/venv") + "-interpreter/bin/python"
GUIDE = pathlib.Path(__file__).parents[2] / "docs/guide"
# how many executions may wait for their turn in a session, as its server says
WAITING_MAX = 16
KINDS = {"python": ("PythonLTS", "python"), "node": ("NodeLTS", "node"), "shell": ("Shell", "shell")}
# a session begins with a kernel that has loaded pandas, which takes its time on a busy machine
CONFIG = """
[api]
retry_after = 0

[controller]
provisioning_deadline = "300s"
drain_period = "2s"

[sessions]
ready_deadline = "300s"
"""


def pool_body(kind):
    return {
        "location": "eastus",
        "properties": {
            "poolManagementType": "Dynamic",
            "containerType": kind,
            "scaleConfiguration": {"maxConcurrentSessions": 6, "readySessionInstances": 1},
            "dynamicPoolConfiguration": {
                "lifecycleConfiguration": {"lifecycleType": "Timed", "cooldownPeriodInSeconds": 300}
            },
            "sessionNetworkConfiguration": {"status": "EgressDisabled"},
            "mcpServerSettings": {"isMCPServerEnabled": True},
        },
    }


class Interpreters(unittest.TestCase):
    """One server with a pool of each kind."""

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server(CONFIG))
        cls.arm("PUT", GROUP, {"location": "eastus"})
        cls.arm("PUT", f"{POOLS}/early", pool_body("PythonLTS"))
        # nothing was built for this server: the pool says what to do
        cls.early = cls.settled("early")
        cls.arm("DELETE", f"{POOLS}/early")
        cls.built = {}
        for _, word in KINDS.values():
            cls.built[word] = cls.server.command("image", "build-interpreter", word, within_seconds=1800)
        for name, (kind, _) in KINDS.items():
            cls.arm("PUT", f"{POOLS}/{name}", pool_body(kind))
        for name in KINDS:
            state = cls.settled(name)
            if state["provisioningState"] != "Succeeded":
                raise AssertionError(f"{name}: {state}\n{cls.server.log()}")
        cls.token = cls.token_for(AUDIENCE)
        cls.http = cls.enterClassContext(requests.Session())
        # a bundle that the environment names would be taken instead of this one
        cls.http.trust_env, cls.http.verify = False, cls.server.ca
        cls.http.headers["Authorization"] = f"Bearer {cls.token}"

    @classmethod
    def tearDownClass(cls):
        for name in KINDS:
            cls.arm("DELETE", f"{POOLS}/{name}")
            cove.until(f"{name} is gone", lambda name=name: cls.status("GET", f"{POOLS}/{name}")[0] == 404, 120)

    @classmethod
    def status(cls, method, path, body=None):
        headers = {"Content-Type": "application/json", "Authorization": "Bearer anybody"}
        text = None if body is None else json.dumps(body)
        return cls.server.call(method, f"{path}?{VERSION}", text, headers)

    @classmethod
    def arm(cls, method, path, body=None):
        status, answer = cls.status(method, path, body)
        if status >= 300:
            raise AssertionError(f"{method} {path}: {status} {answer}")
        return answer

    @classmethod
    def settled(cls, name):
        seen = {}

        def has_settled():
            seen.update(cls.arm("GET", f"{POOLS}/{name}")["properties"])
            return seen["provisioningState"] in ("Succeeded", "Failed")

        cove.until(f"{name} is settled", has_settled, within_seconds=300)
        return seen

    @classmethod
    def token_for(cls, resource):
        form = urllib.parse.urlencode({
            "grant_type": "client_credentials", "client_id": "agent", "client_secret": "any", "scope": f"{resource}/.default",
        })  # fmt: skip
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        status, answer = cls.server.call("POST", f"/{TENANT}/oauth2/v2.0/token", form, headers)
        if status != 200:
            raise AssertionError(f"no token: {status} {answer}")
        return answer["access_token"]

    @classmethod
    def base(cls, name):
        return f"{cls.server.api}/subscriptions/{SUBSCRIPTION}/resourceGroups/code/sessionPools/{name}"

    def setUp(self):
        self.used = set()

    def tearDown(self):
        """The next test gets the room of this one's sessions."""
        for pool, identifier in self.used:
            parameters = {"api-version": NEWER, "identifier": identifier}
            answer = self.http.delete(f"{self.base(pool)}/session", params=parameters, timeout=60)
            self.assertIn(answer.status_code, (204, 404), answer.text)

    def ask(self, method, pool, path, identifier=None, version=NEWER, expect=200, query=None, **more):
        identifier = identifier or self._testMethodName
        self.used.add((pool, identifier))
        parameters = {"api-version": version, "identifier": identifier, **(query or {})}
        answer = self.http.request(method, f"{self.base(pool)}/{path}", params=parameters, timeout=300, **more)
        self.assertEqual(answer.status_code, expect, f"{answer.text[:1000]}\n{self.server.log(20)}")
        return answer

    def run_code(self, code, pool="python", expect=200, identifier=None, **more):
        body = {"codeInputType": "inline", "executionType": "synchronous", "code": code, **more}
        return self.ask("POST", pool, "executions", json=body, expect=expect, identifier=identifier).json()

    def result(self, code, pool="python", **more):
        ran = self.run_code(code, pool, **more)
        self.assertEqual(ran["status"], "Succeeded", ran)
        return ran["result"]

    def code_of(self, answer):
        return answer.json()["error"]["code"]

    def test_images_are_named_built_once_and_asked_for(self):
        self.assertEqual(self.early["provisioningState"], "Failed")
        self.assertIn("cove image build-interpreter python", self.early["coveFailure"]["message"])
        again = self.server.command("image", "build-interpreter", "python", within_seconds=120)
        self.assertTrue(again["fromCache"])
        self.assertEqual(again["digest"], self.built["python"]["digest"])
        listed = [one["name"] for one in self.server.command("image", "list")]
        for word in ("python", "node", "shell"):
            self.assertIn(f"cove.local/interpreter-{word}:latest", listed)

    def test_python_keeps_state_and_says_what_it_did(self):
        self.assertEqual(self.result("x = 40; x + 2")["executionResult"], 42)
        ran = self.run_code("import sys\nprint('out')\nprint('err', file=sys.stderr)\n[x, 'a', None]")
        self.assertEqual(ran["result"]["stdout"], "out\n")
        self.assertEqual(ran["result"]["stderr"], "err\n")
        self.assertEqual(ran["result"]["executionResult"], [40, "a", None])
        self.assertEqual(ran["identifier"], self._testMethodName)
        printed = [self.result("import os\n_ = os.write(1, ('x' + '€' * 10000).encode())")["stdout"]]
        # what lies in a pipe when code ends comes with the next output
        cove.until("all is read", lambda: printed.append(self.result("None")["stdout"]) or len("".join(printed)) >= 10_001, 60)
        self.assertEqual("".join(printed), "x" + "€" * 10000)
        shown = self.result("from IPython.display import JSON\nJSON(['a', 'b'])")
        self.assertEqual(shown["executionResult"], ["a", "b"])
        again = self.ask("GET", "python", f"executions/{ran['id']}").json()
        self.assertEqual(again, ran)
        self.ask("GET", "python", f"executions/{ran['id']}", identifier="somebody-else", expect=404)
        failed = self.run_code("1/0")
        self.assertEqual(failed["status"], "Failed")
        self.assertIn("ZeroDivisionError", failed["error"]["message"])
        self.assertEqual(failed["rawResult"]["error"]["ename"], "ZeroDivisionError")
        self.assertIn("division by zero", failed["result"]["stderr"])
        self.assertEqual(self.result("x")["executionResult"], 40)
        other = self.run_code("x", identifier="a-second-one")
        self.assertIn("NameError", other["error"]["message"])

    def test_the_older_generation(self):
        body = {"properties": {"codeInputType": "inline", "executionType": "synchronous", "code": "print('a'); 6 * 7"}}
        answer = self.ask("POST", "python", "code/execute", version=OLDER, json=body)
        told = answer.json()["properties"]
        self.assertEqual((told["status"], told["result"], told["stdout"]), ("Success", 42, "a\n"))
        for name in ("operation-id", "x-ms-session-guid", "x-ms-container-execution-duration", "x-ms-overall-execution-time",
                     "x-ms-execution-request-time"):  # fmt: skip
            self.assertIn(name, answer.headers)
        body["properties"]["code"] = "nothing_of_this_name"
        told = self.ask("POST", "python", "code/execute", version=OLDER, json=body).json()["properties"]
        self.assertEqual((told["status"], told["error"]["name"]), ("Failure", "NameError"))
        file = {"file": ("a.csv", b"a,b\n1,2\n")}
        told = self.ask("POST", "python", "files/upload", version=OLDER, files=file).json()
        self.assertEqual(told["value"][0]["properties"]["size"], 8)
        told = self.ask("GET", "python", "files", version=OLDER).json()
        self.assertEqual([one["properties"]["filename"] for one in told["value"]], ["a.csv"])
        self.assertEqual(self.ask("GET", "python", "files/content/a.csv", version=OLDER).content, b"a,b\n1,2\n")

    def test_each_path_works_with_every_version(self):
        """Clients mix them, and Azure answers all."""
        code = {"codeInputType": "inline", "executionType": "synchronous", "code": "6 * 7"}
        told = self.ask("POST", "python", "executions", version=OLDER, json=code).json()
        self.assertEqual((told["status"], told["result"]["executionResult"]), ("Succeeded", 42))
        told = self.ask("POST", "python", "code/execute", version="2024-10-02-preview", json={"properties": code}).json()
        self.assertEqual((told["properties"]["status"], told["properties"]["result"]), ("Success", 42))
        told = self.ask("POST", "python", "files/upload", files={"file": ("a.txt", b"a")}).json()
        self.assertEqual(told["value"][0]["properties"], {**told["value"][0]["properties"], "filename": "a.txt", "size": 1})
        told = self.ask("POST", "python", "files", version=OLDER, files={"file": ("content", b"bc")}).json()
        self.assertEqual((told["name"], told["sizeInBytes"]), ("content", 2))
        for version in (OLDER, NEWER):
            for path in ("files/a.txt/content", "files/content/a.txt"):
                self.assertEqual(self.ask("GET", "python", path, version=version).content, b"a", (path, version))
            self.assertEqual(self.ask("GET", "python", "files/content/content", version=version).content, b"bc")
        self.assertEqual(self.ask("GET", "python", "files/content").json()["sizeInBytes"], 2)

    def test_the_command_line_with_azs_words(self):
        identifier = self._testMethodName
        self.used.add(("python", identifier))
        words = ("-n", "python", "-g", "code", "--identifier", identifier, "--session-pool-location", "eastus")

        def command(verb, *more, within=("containerapp", "session")):
            return self.server.command(*within, "code-interpreter", verb, *words, *more)

        ran = command("execute", "--code", "x = 6 * 7; print(x)", "--timeout-in-seconds", "100")
        self.assertEqual((ran["status"], ran["result"]["stdout"]), ("Succeeded", "42\n"))
        source = self.server.directory / "code of mine.py"
        source.write_text("print(x + 1)")
        ran = command("execute", "--code", f"@{source}", within=("session",))
        self.assertEqual(ran["result"]["stdout"], "43\n")
        self.assertEqual(command("upload-file", "--filepath", str(source), "--path", "folder")["sizeInBytes"], 12)
        place = ("--filename", "code of mine.py", "--path", "folder")
        listed = command("list-files", "--path", "folder")["value"]
        self.assertEqual([one["name"] for one in listed], ["code of mine.py"])
        self.assertEqual(command("show-file-metadata", *place)["sizeInBytes"], 12)
        line = [cove.BINARY, "containerapp", "session", "code-interpreter", "show-file-content", *words, *place]
        shown = subprocess.run([*line, "--data-dir", str(self.server.data)], capture_output=True, timeout=300)
        self.assertEqual((shown.returncode, shown.stdout), (0, b"print(x + 1)"), shown.stderr)
        command("delete-file", *place, "--yes")
        self.assertEqual(command("list-files", "--path", "folder")["value"], [])
        self.server.command("containerapp", "session", "stop", "-n", "python", "-g", "code", "--identifier", identifier)
        self.assertEqual(self.ask("GET", "python", "session", expect=404).status_code, 404)

    def test_shells_take_what_azures_examples_send(self):
        body = {
            "codeInputType": "inline", "executionType": "synchronous", "shellCommand": "echo Hello world!", "timeoutInSeconds": 600,
        }  # fmt: skip
        told = self.ask("POST", "shell", "executions", json=body).json()
        self.assertEqual((told["status"], told["result"]["stdout"]), ("0", "Hello world!\n"))
        told = self.ask("POST", "shell", "executions", json={"command": ["/bin/bash", "-c", "exit 3"]}).json()
        self.assertEqual(told["status"], "3")

    def test_the_packages_and_a_plot(self):
        shown = self.result("import numpy, pandas, matplotlib; pandas.DataFrame({'a': numpy.arange(3)})['a'].sum().item()")
        self.assertEqual(shown["executionResult"], 3)
        code = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()"
        image = self.result(code)["executionResult"]
        self.assertEqual((image["type"], image["format"]), ("image", "png"))
        self.assertTrue(base64.b64decode(image["base64_data"]).startswith(b"\x89PNG\r\n"))
        table = self.run_code("import pandas; pandas.DataFrame({'a': [1]})")
        self.assertIn("<table", table["rawResult"]["result"]["text/html"])

    def test_code_that_takes_too_long_is_interrupted(self):
        self.result("kept = 1")
        begun = time.monotonic()
        ran = self.run_code("while True: pass", timeoutInSeconds=2)
        self.assertEqual((ran["status"], ran["error"]["code"]), ("Failed", "ExecutionTimedOut"))
        self.assertLess(time.monotonic() - begun, 100)
        self.assertEqual(self.result("kept")["executionResult"], 1)
        stubborn = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: time.sleep(1)"
        ran = self.run_code(stubborn, timeoutInSeconds=2)
        self.assertIn("restarted", ran["error"]["message"])
        self.assertIn("NameError", self.run_code("kept")["error"]["message"])
        for wrong in (0, 221, "60", 1.5):
            self.run_code("1", timeoutInSeconds=wrong, expect=400)

    def test_endless_output_is_cut(self):
        peak = "import resource; resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024"
        before = self.result(peak)["executionResult"]
        ran = self.run_code("while True: print('x' * 10000)", timeoutInSeconds=3)
        # not `InterpreterDied`: then the memory below would be that of another process
        self.assertEqual(ran["error"]["code"], "ExecutionTimedOut")
        self.assertLess(len(ran["result"]["stdout"]), 2 * MIB)
        self.assertIn("stdout was cut", ran["result"]["stdout"][-100:])
        # what is dropped takes no memory: a loop prints hundreds of MiB before they could be sent
        self.assertLess(self.result(peak)["executionResult"] - before, 100)
        ran = self.run_code("import os\nwhile True: os.write(1, b'x' * 10000)", timeoutInSeconds=3)
        self.assertIn("stdout was cut", ran["result"]["stdout"][-100:])
        # what lies in the pipe when the code is stopped, 64 KiB at most, may be read with the next output
        after = self.result("print('whole')")["stdout"]
        self.assertIn("whole\n", after)
        self.assertLess(len(after), 100_000)
        ran = self.run_code("while (true) console.log('x'.repeat(10000))", pool="node", timeoutInSeconds=3)
        self.assertEqual(ran["error"]["code"], "ExecutionTimedOut")
        self.assertIn("stdout was cut", ran["result"]["stdout"][-100:])

    def test_results_that_cannot_be_sent_are_dropped_or_texts(self):
        shown = self.result("from IPython.display import JSON\nJSON([0] * 9_000_000)")
        self.assertIn("application/json was dropped", shown["stderr"])
        self.assertEqual(shown["executionResult"], "<IPython.core.display.JSON object>")
        shown = self.result("deep = []\nfor _ in range(150): deep = [deep]\nJSON(deep)")
        self.assertEqual(shown["executionResult"], "<IPython.core.display.JSON object>")
        # no number of those who read JSON is as large, and half a character is no text of theirs
        self.assertRegex(self.result("10 ** 400")["executionResult"], "^10{400}$")
        self.assertEqual(self.result("'\\ud800'")["executionResult"], "?")

    def test_code_that_takes_all_memory_ends_alone(self):
        hungry = {
            "python": "kept = [b'x' * (1 << 20) for _ in range(1 << 16)]",
            "node": "const kept = []; while (true) kept.push(Buffer.alloc(1 << 20, 1))",
        }
        for pool, code in hungry.items():
            self.ask("POST", pool, "files", files={"file": ("kept.txt", b"kept")})
            ran = self.run_code(code, pool=pool)
            self.assertIn("InterpreterDied", ran["error"]["message"], pool)
            self.assertEqual(self.result("2", pool=pool)["executionResult"], 2)
            self.assertEqual(self.ask("GET", pool, "files/kept.txt/content").content, b"kept")

    def test_an_interpreter_that_ends_is_started_anew(self):
        for pool, code in {"python": "import os; os._exit(3)", "node": "process.exit(3)"}.items():
            ran = self.run_code(code, pool=pool)
            self.assertIn("InterpreterDied", ran["error"]["message"], pool)
            self.assertEqual(self.result("2", pool=pool)["executionResult"], 2)

    def test_asynchronous_executions(self):
        body = {"codeInputType": "inline", "executionType": "asynchronous", "code": "import time; time.sleep(2); 'done'"}
        answer = self.ask("POST", "python", "executions", json=body, expect=202)
        self.assertEqual(answer.json()["status"], "Running")
        location = answer.headers["Operation-Location"]
        seen = {}

        def ended():
            seen.update(self.http.get(location, timeout=60).json())
            return seen["status"] != "Running"

        cove.until("the execution has ended", ended, 60)
        self.assertEqual((seen["status"], seen["result"]["executionResult"]), ("Succeeded", "done"))

    def test_executions_of_one_session_take_turns(self):
        self.result("order = []")
        code = "import time; order.append({0}); time.sleep(0.2); order.append({0})"
        with concurrent.futures.ThreadPoolExecutor(5) as pool:
            list(pool.map(lambda number: self.result(code.format(number)), range(5)))
        order = self.result("order")["executionResult"]
        self.assertEqual(order[0::2], order[1::2])

    def test_code_that_nobody_waits_for_does_not_run(self):
        self.result("ran = []")
        # connections of the session's server that their other side closed: port 6000, CLOSE_WAIT
        left = "sum(line.split()[1].endswith(':1770') and line.split()[3] == '08' for line in open('/proc/net/tcp'))"
        code = f"""import time
ran.append(1)
open('/mnt/data/begun', 'w').close()
until = time.monotonic() + 100
while {left} < {WAITING_MAX} and time.monotonic() < until: time.sleep(0.05)
assert time.monotonic() < until"""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit(self.result, code, timeoutInSeconds=120)
            listed = functools.partial(self.ask, "GET", "python", "files")
            cove.until("the first one runs", lambda: "begun" in listed().text, 60)
            # one is refused when all that may wait do
            self.assertEqual(asyncio.run(self.ask_and_leave("ran.append(2)", WAITING_MAX + 1)), [b"429"])
            first.result()

        def ran_when_none_is_left():
            """While some of them have not had their turns there may be no room for one more."""
            url, parameters = f"{self.base('python')}/executions", {"api-version": NEWER, "identifier": self._testMethodName}
            answer = self.http.post(url, params=parameters, json={"code": f"[{left}, ran]"}, timeout=300)
            if answer.status_code == 429:
                return None
            count, ran = answer.json()["result"]["executionResult"]
            return ran if count == 0 else None

        self.assertEqual(cove.until("all have had their turns", ran_when_none_is_left), [1])

    async def ask_and_leave(self, code, count):
        """Asks so many times at once for an execution and leaves all when one is answered; the status of that."""
        parameters = urllib.parse.urlencode({"api-version": NEWER, "identifier": self._testMethodName})
        url = urllib.parse.urlsplit(f"{self.base('python')}/executions?{parameters}")
        body = json.dumps({"code": code})
        head = [f"POST {url.path}?{url.query} HTTP/1.1", f"Host: {url.netloc}", f"Authorization: Bearer {self.token}",
                "Content-Type: application/json", f"Content-Length: {len(body)}"]  # fmt: skip
        request = "\r\n".join([*head, "", body]).encode()
        context = ssl.create_default_context(cafile=self.server.ca)

        async def ask():
            reader, writer = await asyncio.open_connection(url.hostname, url.port, ssl=context)
            try:
                writer.write(request)
                return (await reader.readline()).split()[1]
            finally:
                writer.transport.abort()

        asked = [asyncio.create_task(ask()) for _ in range(count)]
        answered, waiting = await asyncio.wait(asked, timeout=90, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return [task.result() for task in answered]

    def test_files_go_in_and_out(self):
        content = os.urandom(3 * MIB)
        told = self.ask("POST", "python", "files", files={"file": ("a b.bin", content)}).json()
        self.assertEqual((told["name"], told["type"], told["sizeInBytes"]), ("a b.bin", "file", len(content)))
        self.assertEqual(self.ask("GET", "python", "files/a%20b.bin/content").content, content)
        self.assertEqual(self.ask("GET", "python", "files/a%20b.bin").json()["sizeInBytes"], len(content))
        self.ask("POST", "python", "files", files={"file": ("c.txt", b"c")}, query={"path": "/mnt/data/sub"})
        listed = {one["name"]: one["type"] for one in self.ask("GET", "python", "files").json()["value"]}
        self.assertEqual(listed, {"a b.bin": "file", "sub": "directory"})
        self.assertEqual(self.ask("GET", "python", "files", query={"path": "sub"}).json()["value"][0]["name"], "c.txt")
        self.assertEqual(self.result("open('/mnt/data/sub/c.txt').read()")["executionResult"], "c")
        self.result("open('/mnt/data/made.txt', 'w').write('by code')")
        self.assertEqual(self.ask("GET", "python", "files/made.txt/content").text, "by code")
        self.ask("DELETE", "python", "files/made.txt", expect=204)
        self.ask("DELETE", "python", "files/made.txt", expect=404)
        refused = self.ask("GET", "python", "files/sub/content", expect=400)
        self.assertEqual(self.code_of(refused), "InvalidFileName")

    def test_a_full_disk_is_told(self):
        body = {"shellCommand": "head -c 1G /dev/zero > full"}
        self.assertIn("No space left", self.ask("POST", "shell", "executions", json=body).json()["result"]["stderr"])
        refused = self.ask("POST", "shell", "files", files={"file": ("a.bin", bytes(4 * MIB))}, expect=507)
        self.assertEqual(self.code_of(refused), "SessionDiskFull")
        listed = [one["name"] for one in self.ask("GET", "shell", "files").json()["value"]]
        self.assertEqual(listed, ["full"])
        self.ask("DELETE", "shell", "files/full", expect=204)
        self.ask("POST", "shell", "files", files={"file": ("a.bin", bytes(4 * MIB))})

    def test_names_do_not_lead_out(self):
        self.result("import os; os.symlink('/etc', '/mnt/data/out'); os.symlink('/etc/passwd', '/mnt/data/pw')")
        for name in ("..%2F..%2Fetc%2Fpasswd", "%2e%2e/x", "a%00b", "out/passwd", "pw", "x" * 256):
            answer = self.http.get(
                f"{self.base('python')}/files/{name}/content",
                params={"api-version": NEWER, "identifier": self._testMethodName}, timeout=90,
            )  # fmt: skip
            self.assertIn(answer.status_code, (400, 404), f"{name}: {answer.text[:200]}")
            self.assertNotIn("root:", answer.text)
        # a link is no folder here
        self.ask("POST", "python", "files", files={"file": ("out/x", b"x")}, expect=404)
        for name in ("../../tmp/x", "/etc/x/../../x", "."):
            answer = self.ask("POST", "python", "files", files={"file": (name, b"x")}, expect=400)
            self.assertEqual(self.code_of(answer), "InvalidFileName", name)

    def test_an_upload_is_at_most_128_mib(self):
        whole = bytes(128 * MIB)
        told = self.ask("POST", "python", "files", files={"file": ("whole.bin", whole)}).json()
        self.assertEqual(told["sizeInBytes"], len(whole))
        more = self.ask("POST", "python", "files", files={"file": ("more.bin", whole + b"x")}, expect=413)
        self.assertEqual(self.code_of(more), "FileTooLarge")
        listed = [one["name"] for one in self.ask("GET", "python", "files").json()["value"]]
        self.assertEqual(listed, ["whole.bin"])

    def test_node(self):
        shown = self.result("const a = 20; console.log('hello'); a + 1", "node")
        self.assertEqual((shown["executionResult"], shown["stdout"]), (21, "hello\n"))
        self.assertEqual(self.result("({ twice: a * 2 })", "node")["executionResult"], {"twice": 40})
        self.assertEqual(self.result("[1, 2, 3]", "node")["executionResult"], [1, 2, 3])
        self.assertEqual(self.result("['a', 'b']", "node")["executionResult"], ["a", "b"])
        self.assertEqual(self.result("await new Promise(r => setTimeout(() => r('late'), 50))", "node")["executionResult"], "late")
        self.assertEqual(self.result("await (async () => 6)()", "node")["executionResult"], 6)
        each = "await Promise.all([1, 2, 3].map(async i => {\n const v = i;\n await null;\n console.log(v) }))"
        self.assertEqual(self.result(each, "node")["stdout"], "1\n2\n3\n")
        self.result("const kept = await 5, more = `${kept}`;\nlet last = /[`'{]/.test(more)", "node")
        self.assertEqual(self.result("[kept, more, last, typeof v]", "node")["executionResult"], [5, "5", False, "undefined"])
        # what is printed is read in pieces, which end within a character
        self.assertEqual(self.result("console.log('€'.repeat(100000))", "node")["stdout"], "€" * 100_000 + "\n")
        failed = self.run_code("null.x", "node")
        self.assertIn("TypeError", failed["error"]["message"])
        ran = self.run_code("for (;;) {}", "node", timeoutInSeconds=2)
        self.assertEqual(ran["error"]["code"], "ExecutionTimedOut")
        self.assertEqual(self.result("a", "node")["executionResult"], 20)
        path = "require('fs').writeFileSync('/mnt/data/n.txt', 'n'); require('os').userInfo().uid"
        self.assertEqual(self.result(path, "node")["executionResult"], 1000)
        self.assertEqual(self.ask("GET", "node", "files/n.txt/content").text, "n")

    def test_node_always_answers(self):
        shown = self.run_code("const c = {}; c.c = c; display(c); display(5n); display('hi'); display(null); 1", "node")
        texts = [one["text/plain"] for one in shown["rawResult"]["outputs"]]
        self.assertEqual(texts, ["<ref *1> { c: [Circular *1] }", "5n", "hi", "null", "1"])
        shown = self.run_code("display({ 'text/html': '<b>' })", "node")
        self.assertEqual(shown["rawResult"]["outputs"], [{"text/html": "<b>"}])
        for code in ("throw Object.create(null)", "throw { get message() { throw 1 } }", "throw new Error('x'.repeat(17e6))"):
            ran = self.run_code(code, "node")
            self.assertEqual(ran["status"], "Failed", code)
            self.assertNotIn(ran["error"]["code"], ("ExecutionTimedOut", "InterpreterDied"), code)
        shown = self.result("display({ 'text/html': 'x'.repeat(9e6) }); process.stdout.write = () => true; c.c === c", "node")
        self.assertTrue(shown["executionResult"])
        self.assertIn("an output was dropped", shown["stderr"])

    def test_a_shell(self):
        def command(line, **more):
            return self.ask("POST", "shell", "executions", json={"shellCommand": line, **more}).json()

        ran = command("echo out; echo err >&2; exit 3")
        self.assertEqual((ran["status"], ran["result"]["stdout"], ran["result"]["stderr"]), ("3", "out\n", "err\n"))
        command("cd /tmp; A=5")
        self.assertEqual(command("echo $PWD $A")["result"]["stdout"], "/tmp 5\n")
        self.assertEqual(command("id -u")["result"]["stdout"], "1000\n")
        self.assertNotEqual(command("sleep 100", timeoutInSeconds=1)["status"], "0")
        program = self.ask("POST", "shell", "executions", json={"execCommandAndArgs": ["printf", "%s|", "a b", "c"]}).json()
        self.assertEqual((program["status"], program["result"]["stdout"]), ("0", "a b|c|"))
        euros = "€" * 60_000
        self.assertEqual(command(f"printf %s {euros}")["result"]["stdout"], euros)
        program = self.ask("POST", "shell", "executions", json={"execCommandAndArgs": ["echo", "€" * 40_000]}).json()
        self.assertEqual(program["result"]["stdout"], "€" * 40_000 + "\n")
        self.ask("POST", "shell", "executions", json={"code": 5}, expect=400)

    def test_what_programs_leave_behind_is_cleared(self):
        def left(line):
            ran = self.ask("POST", "shell", "executions", json={"shellCommand": line}).json()
            return int(ran["result"]["stdout"])

        count = "grep -l 'State:.*zombie' /proc/[0-9]*/status 2>/dev/null | wc -l"
        self.assertGreaterEqual(left(f"for i in 1 2 3 4 5 6 7 8; do setsid -f true; done; sleep 1; {count}"), 1)
        cove.until("nothing of them is left", lambda: left(count) == 0, 60)

    def test_requests_that_are_none(self):
        for body in ({}, {"code": 1}, {"code": "1", "executionType": "later"}, {"code": "1", "codeInputType": "file"}):
            self.ask("POST", "python", "executions", json=body, expect=400)
        self.ask("POST", "python", "executions", data=b"{", expect=400)
        self.ask("POST", "python", "executions", json={"code": "#" * (5 * MIB)}, expect=413)
        self.ask("POST", "python", "executions", version="yesterday", json={"code": "1"}, expect=400)
        self.ask("GET", "python", "executions", expect=405)
        self.ask("GET", "python", "no/such/path", expect=404)
        self.ask("POST", "python", "files", data=b"no form", expect=400)
        self.ask("POST", "python", "files", files={"other": ("a", b"a")}, expect=400)
        listed = self.http.get(f"{self.base('python')}/listSessions", params={"api-version": NEWER}, timeout=60).json()
        self.assertNotIn("test_requests_that_are_none", [one["identifier"] for one in listed["value"]])

    def clients(self, *arguments, **variables):
        """Runs unmodified clients in their own environment; what they saw."""
        environment = {
            **os.environ, "REQUESTS_CA_BUNDLE": self.server.ca, "SSL_CERT_FILE": self.server.ca, "TOKEN": self.token,
            **variables,
        }  # fmt: skip
        done = subprocess.run(
            [CLIENTS, "interpreter_clients.py", *arguments], env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, f"{done.stderr}\n{self.server.log(30)}")
        return json.loads(done.stdout.splitlines()[-1])

    def test_the_tools_of_langchain(self):
        seen = self.clients("langchain", self.base("python"), self.base("shell"))
        self.assertEqual(seen["answer"], {"result": 42, "stdout": "", "stderr": ""})
        self.assertEqual(seen["files"], [["hello.txt", 5]])
        self.assertEqual(seen["content"], "hello")
        self.assertEqual(seen["image"], {"type": "image", "format": "png"})
        self.assertEqual(seen["bash"], {"stdout": "hello\n", "stderr": "", "exitCode": 0})
        self.assertEqual((seen["bash_file"], seen["bash_content"]), (["b.txt", 3], "abc"))

    def test_the_guides_python(self):
        """What the guide shows runs as it stands there: requests, langchain, MCP."""
        snippets = [re.findall(r"^```python\n(.*?)^```$", (GUIDE / page).read_text(), re.DOTALL | re.MULTILINE)
                    for page in ("session-pools.md", "code-interpreter.md")]  # fmt: skip
        (setup, _), (plain, langchain, mcp) = snippets
        key = self.arm("POST", f"{POOLS}/python/fetchMCPServerCredentials")["apiKey"]
        inside = textwrap.indent(mcp, "    ")
        endpoint = self.arm("GET", f"{POOLS}/python")["properties"]["mcpServerSettings"]["mcpServerEndpoint"]
        program = f"{setup}{plain}{langchain}"
        program += f"async def launch():\n{inside}    print(launched.structured_content)\nimport asyncio\nasyncio.run(launch())\n"
        environment = {
            "PATH": os.environ["PATH"], "COVE_API": self.server.api, "COVE_CA": self.server.ca, "COVE_POOL": self.base("python"),
            "REQUESTS_CA_BUNDLE": self.server.ca, "SSL_CERT_FILE": self.server.ca, "MCP_KEY": key, "MCP_URL": endpoint,
        }  # fmt: skip
        done = subprocess.run([CLIENTS, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, f"{done.stderr}\n{self.server.log(20)}")
        lines = done.stdout.splitlines()
        self.assertEqual(lines[0], "6")
        self.assertEqual(json.loads("".join(lines[1:-1]))["result"], 42)
        self.assertIn("environmentId", lines[-1])

    def test_the_mcp_sdk(self):
        key = self.arm("POST", f"{POOLS}/python/fetchMCPServerCredentials")["apiKey"]
        seen = self.clients("mcp", f"{self.base('python')}/mcp", key)
        names = ["launchShell", "runShellCommandInRemoteEnvironment", "runPythonCodeInRemoteEnvironment"]
        self.assertEqual(seen["tools"], names)
        self.assertEqual(seen["server"], "Microsoft Container Apps MCP Server")
        self.assertEqual(seen["python"]["stdout"], "hello\n")
        self.assertEqual(seen["python"]["result"], 42)
        self.assertEqual(seen["shell"]["stdout"], "hello\n")
        self.assertTrue(seen["unknown_is_error"])
        for wrong in ({}, {"x-ms-apikey": "wrong"}, {"Authorization": f"Bearer {self.token}"}):
            body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            with requests.Session() as plain:
                plain.trust_env, plain.verify = False, self.server.ca
                answer = plain.post(f"{self.base('python')}/mcp", json=body, headers=wrong, timeout=60)
            self.assertEqual(answer.status_code, 401)

    def test_the_e2b_sdk(self):
        key = self.arm("POST", f"{POOLS}/python/fetchMCPServerCredentials")["apiKey"]
        api = self.server.api + "/e2b"
        seen = self.clients("e2b", key, E2B_API_KEY=key, E2B_API_URL=api, E2B_SANDBOX_URL=f"{api}/sandbox")
        self.assertEqual((seen["stdout"], seen["text"], seen["main"]), (["hello\n"], "42", [True]))
        self.assertEqual((seen["heard"], seen["kept"]), (["hello\n"], "41"))
        self.assertEqual(seen["error"], ["ZeroDivisionError", "division by zero", True, []])
        self.assertEqual(base64.b64decode(seen["png"])[:4], b"\x89PNG")
        self.assertEqual((seen["own_env"], seen["gone_env"]), ("'now'", ["None\n"]))
        self.assertEqual(seen["bash"], ["hello\n", "/mnt/data\n"])
        self.assertIn("do not speak `r`", seen["language"])
        self.assertEqual(seen["written"], ["a b.txt", "/mnt/data/folder/a b.txt"])
        self.assertEqual((seen["read"], seen["bytes"]), ("text", True))
        self.assertEqual(seen["listed"], [["bytes", "file", 10_240_000], ["folder", "dir", 60]])
        self.assertEqual((seen["made"], seen["exist"]), ([True, False], [False, True]))
        self.assertEqual(seen["moved"], ["/mnt/data/deep/er/c.txt", 4, "rw-r--r--"])
        self.assertEqual((seen["missing"], seen["folder"]), ("FileNotFoundException", "InvalidArgumentException"))
        self.assertEqual(seen["command"], ["out\nhello you\n", "err\n", 0])
        self.assertEqual((seen["exit"], seen["answered"]), (3, "got words\n"))
        self.assertEqual((seen["commands"], seen["killed"]), ([True], [True, False]))
        self.assertEqual((seen["watched"], seen["terminal"]), ("again words\n", [4, True]))
        self.assertEqual(seen["info"], [True, {"user": "4711"}, "running", 1024])
        self.assertTrue(seen["longer"] and seen["gone"] and seen["pause"] and seen["wrong_key"], seen)
        self.assertEqual((seen["of_list"], seen["connected"]), ([True], "41"))
        self.assertEqual((seen["other"], seen["running"]), ("False", [True, True, False, False]))
        self.assertFalse(seen["killed_by_with"])

    def test_the_e2b_sdk_with_an_image_of_ones_own(self):
        environment = f"{GROUP}/providers/Microsoft.App/managedEnvironments/env"
        self.arm("PUT", environment, {"location": "eastus", "properties": {}})
        body = pool_body("CustomContainer")
        container = {"name": "main", "image": "cove.local/interpreter-shell:latest", "resources": {"cpu": 0.25, "memory": "0.5Gi"}}
        body["properties"]["environmentId"] = environment
        body["properties"]["customContainerTemplate"] = {"containers": [container], "ingress": {"targetPort": 6000}}
        self.arm("PUT", f"{POOLS}/custom", body)
        self.assertEqual(self.settled("custom")["provisioningState"], "Succeeded")
        shown = self.arm("GET", f"{POOLS}/custom")["properties"]
        self.assertEqual(shown["mcpServerSettings"], {"isMCPServerEnabled": True})
        key = self.arm("POST", f"{POOLS}/custom/fetchMCPServerCredentials")["apiKey"]
        api = self.server.api + "/e2b"
        seen = self.clients("e2b_custom", E2B_API_KEY=key, E2B_API_URL=api, E2B_SANDBOX_URL=f"{api}/sandbox")
        self.assertEqual(seen["command"], ["out\n", "err\n", 0])
        self.assertEqual((seen["read"], seen["listed"]), ("text", ["a.txt"]))
        self.assertTrue(seen["code"], "code is for interpreters")
        self.arm("DELETE", f"{POOLS}/custom")
        cove.until("the pool is gone", lambda: self.status("GET", f"{POOLS}/custom")[0] == 404, 120)
        self.arm("DELETE", environment)

    def test_an_upload_to_e2b_that_is_cut_off_leaves_nothing(self):
        key = self.arm("POST", f"{POOLS}/python/fetchMCPServerCredentials")["apiKey"]
        api = self.server.api + "/e2b"
        made = self.http.post(f"{api}/sandboxes", json={"templateID": "python"}, headers={"X-API-Key": key}, timeout=300)
        self.assertEqual(made.status_code, 201, made.text)
        made = made.json()
        self.addCleanup(self.http.delete, f"{api}/sandboxes/{made['sandboxID']}", headers={"X-API-Key": key}, timeout=60)
        headers = {
            "E2b-Sandbox-Id": made["sandboxID"],
            "E2b-Sandbox-Port": "49983",
            "X-Access-Token": made["envdAccessToken"],
        }

        def names():
            url = f"{api}/sandbox/filesystem.Filesystem/ListDir"
            answer = self.http.post(url, json={"path": "/mnt/data"}, headers=headers, timeout=60)
            self.assertEqual(answer.status_code, 200, answer.text)
            return [entry["name"] for entry in answer.json().get("entries", [])]

        host = self.server.api.removeprefix("https://")
        address = (host.rsplit(":", 1)[0], int(host.rsplit(":", 1)[1]))
        context = ssl.create_default_context(cafile=self.server.ca)
        with context.wrap_socket(socket.create_connection(address, timeout=60), server_hostname=address[0]) as client:
            lines = ["POST /e2b/sandbox/files?path=cut HTTP/1.1", f"Host: {host}", f"Content-Length: {MIB}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            client.sendall("\r\n".join(lines + ["", ""]).encode() + b"x" * 1000)
            part = cove.until("a part is there", names)
        self.assertTrue(len(part) == 1 and part[0].startswith(".cove-"), part)
        cove.until("it is gone", lambda: not names())


if __name__ == "__main__":
    unittest.main()
