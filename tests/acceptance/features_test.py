"""Ways in that no other test sets: transports, TLS of clients, splits and affinity, paths, who may call, limits, TCP.

`docs/ingress-features.md` says for every feature of the ingress which test proves it.
"""

import concurrent.futures
import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import tempfile
import threading
import time

import cove
import pem
import python_image
from az_test import SAMPLE, ServerCase
from tcp_test import connect, say

IMAGE = "cove.local/python:latest"
GROUP, ENVIRONMENT = "rg", "env"
APPS = f"/subscriptions/{cove.SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/containerApps"
VERSION = "api-version=2025-07-01"
# addresses of this machine that stand for a trusted proxy, and for a load balancer that speaks the PROXY protocol
PROXY, BALANCER = "127.0.0.2", "127.0.0.3"


class Case(ServerCase):
    """One environment for all tests of a class; every test makes its own apps."""

    CONFIG = cove.CONFIG + f"""
[ingress]
redirect_http = true
trusted_proxies = ["{PROXY}/32"]
proxy_protocol_peers = ["{BALANCER}/32"]
tcp_idle_timeout = "5s"
"""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        python_image.import_into(cls.server, IMAGE)
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.az("group", "create", "-n", GROUP, "-l", "eastus")
        made = cls.az(
            "containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus", "--logs-destination", "none"
        )
        cls.environment, cls.domain = made["id"], made["properties"]["defaultDomain"]

    def create(self, name, *arguments, image=IMAGE, serve=("http", "8080"), insecure=True):
        port = "80" if image == SAMPLE else serve[1]
        self.az(
            "containerapp", "create", "-n", name, "-g", GROUP, "--environment", ENVIRONMENT, "--image", image,
            "--ingress", "external", "--target-port", port, "--min-replicas", "0", "--env-vars", f"NAME={name}",
            *(() if image == SAMPLE else ("--args", *serve)), *(("--allow-insecure", "true") if insecure else ()), *arguments,
        )  # fmt: skip

    def app(self, verb, name, *arguments):
        return self.az("containerapp", *verb.split(), "-n", name, "-g", GROUP, *arguments)

    def rest(self, method, path, properties=None, version=VERSION, **more):
        arguments = ["rest", "--method", method, "--url", f"{self.server.api}{path}?{version}", "--resource", f"{self.server.api}/"]
        if properties is not None:
            arguments += ["--body", json.dumps({"properties": properties, **more})]
        return self.az(*arguments)

    def patch(self, name, ingress):
        """Sets what `az containerapp` has no word for."""
        self.rest("patch", f"{APPS}/{name}", {"configuration": {"ingress": ingress}})

    def host(self, name):
        return f"{name}.{self.domain}"

    def ask(self, host, path="/", origin=None, before=b"", **headers):
        """Status, answer (the fields that the app saw, when it says them) and headers; from an address of this machine."""
        address, port = self.server.http.removeprefix("http://").rsplit(":", 1)
        source = (origin, 0) if origin else None
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.sock = socket.create_connection((address, int(port)), timeout=60, source_address=source)
        try:
            connection.sock.sendall(before)
            connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, json.loads(text) if text.startswith("{") else text, fields
        finally:
            connection.close()

    def secure(self, host, context, session=None):
        """A TLS connection for a host."""
        address, port = self.server.https.removeprefix("https://").rsplit(":", 1)
        plain = socket.create_connection((address, int(port)), timeout=60)
        try:
            return context.wrap_socket(plain, server_hostname=host, session=session)
        except BaseException:
            plain.close()
            raise

    def ask_securely(self, host, context, session=None, headers=""):
        """Status and text of `GET /` over TLS; version, session and whether that was an old one."""
        with self.secure(host, context, session) as secure:
            secure.sendall(f"GET / HTTP/1.1\r\nhost: {host}\r\n{headers}connection: close\r\n\r\n".encode())
            head, _, body = secure.makefile().read().partition("\n\n")
            return int(head.split()[1]), body, (secure.version(), secure.session, secure.session_reused)


class Protocols(Case):
    def test_transports(self):
        self.create("kinds", "--transport", "http")
        host = self.host("kinds")
        self.assertEqual(self.ask(host)[0], 200)
        # an app that speaks HTTP/1.1 alone does not understand the next one
        insecure = ("--allow-insecure", "true")  # what is left out is `false` to az
        self.app("ingress update", "kinds", "--transport", "http2", *insecure)
        cove.until("HTTP/2 to the app", lambda: self.ask(host)[0] == 502)
        self.app("ingress update", "kinds", "--transport", "auto", *insecure)
        cove.until("HTTP/1.1 again", lambda: self.ask(host)[0] == 200)
        (port,) = cove.free_ports(1)
        enable = ("ingress enable", "kinds", "--type", "external", "--target-port", "8080", "--allow-insecure")
        self.app(*enable, "--transport", "tcp", "--exposed-port", str(port))
        said = say(port, "GET /raw HTTP/1.0\r\n\r\n")
        self.assertIn('"path": "/raw"', said)
        status, _, fields = self.ask(host)
        self.assertEqual((status, fields["x-cove-reason"]), (404, "tcp-only"))
        self.app(*enable, "--transport", "auto")
        cove.until("HTTP again", lambda: self.ask(host)[0] == 200)
        cove.until("the port is closed", lambda: connect(port) is None)

    def test_what_clients_speak(self):
        """Each protocol over both doors; the load test says what was lost of it."""
        self.create("sample", image=SAMPLE)
        self.create("calls", "--transport", "http2", image=SAMPLE)
        plain, tls = (f"{self.host('sample')}:{url.rsplit(':', 1)[1]}" for url in (self.server.http, self.server.https))
        calls = plain.replace("sample.", "calls.")
        loads = [
            *(("h1", f"{url}/echo", "--body", "hello", "--check", "echo") for url in (f"http://{plain}", f"https://{tls}")),
            *(("h2", f"{url}/", "--streams", "10") for url in (f"http://{plain}", f"https://{tls}")),
            *(("ws", f"{url}/ws", "--messages", "20") for url in (f"ws://{plain}", f"wss://{tls}")),
            *(("sse", f"{url}/stream?n=20&ms=1", "--messages", "20") for url in (f"http://{plain}", f"https://{tls}")),
            ("grpc", f"http://{calls}/sample.Sample/Echo", "--body", "hello", "--check", "echo"),
        ]  # fmt: skip
        for protocol, url, *more in loads:
            with self.subTest(url):
                load = ("load", url, "--protocol", protocol, "--requests", "100", "--connections", "4", "--strict", *more)
                said = self.server.command(*load)
                self.assertEqual((said["answered"], said["lost"]), (said["sent"], 0), said)
                self.assertGreaterEqual(said["answered"], 100)

    def test_tls_of_clients(self):
        self.create("shown", insecure=False)
        host = self.host("shown")
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.create_default_context(cafile=self.server.ca)
            context.minimum_version = context.maximum_version = version
            status, _, (spoken, session, _) = self.ask_securely(host, context)
            self.assertEqual((status, spoken), (200, version.name.replace("v1_", "v1.")))
            status, _, (_, _, is_resumed) = self.ask_securely(host, context, session)
            self.assertEqual((status, is_resumed), (200, True), version)
        for offered, chosen in ((["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["spdy/3", "h2"], "h2")):
            context = ssl.create_default_context(cafile=self.server.ca)
            context.set_alpn_protocols(offered)
            with self.secure(host, context) as secure:
                self.assertEqual(secure.selected_alpn_protocol(), chosen)
        old = ssl.create_default_context(cafile=self.server.ca)
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with self.assertRaises((ssl.SSLError, ConnectionError)):
            self.secure(host, old)

    def test_tls_that_means_harm(self):
        """Names that are not here, no name, another name than the request's, a second handshake on an open connection."""
        self.create("calm", insecure=False)
        host = self.host("calm")
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        for named, asked, expected in (
            ("nobody.example", "nobody.example", 404),
            (None, "nobody.example", 404),
            (None, host, 200),
            ("nobody.example", host, 200),
        ):
            with self.subTest(named=named, asked=asked), self.secure(named, trusting) as secure:
                secure.sendall(f"GET / HTTP/1.1\r\nhost: {asked}\r\nconnection: close\r\n\r\n".encode())
                self.assertEqual(int(secure.makefile().read().split()[1]), expected)
        checking = ssl.create_default_context(cafile=self.server.ca)
        with self.assertRaises(ssl.SSLError):
            self.secure("nobody.example", checking)
        address = self.server.https.removeprefix("https://")
        again = ["openssl", "s_client", "-tls1_2", "-connect", address, "-servername", host]
        said = subprocess.run(again, input="R\n", capture_output=True, text=True, timeout=60, check=False)
        self.assertIn("RENEGOTIATING", said.stdout + said.stderr)
        self.assertNotEqual(said.returncode, 0, said.stdout + said.stderr)
        self.assertEqual(self.ask_securely(host, checking)[0], 200)

    def test_insecure_requests_are_sent_to_https(self):
        self.create("strict", insecure=False)
        host = self.host("strict")
        status, _, fields = self.ask(host, "/a?b=c")
        port = self.server.https.rsplit(":", 1)[1]
        self.assertEqual((status, fields["location"]), (301, f"https://{host}:{port}/a?b=c"))
        self.assertEqual(self.server.request(host, method="POST")[0], 308)
        context = ssl.create_default_context(cafile=self.server.ca)
        self.assertEqual(self.ask_securely(host, context)[0], 200)
        self.app("ingress update", "strict", "--allow-insecure", "true")
        cove.until("plain HTTP", lambda: self.ask(host)[0] == 200)


class Watch:
    """Asks hosts without a pause while routes change, and says of each answer whether it was ever right.

    A change is in force at some moment between its command's begin and the first answer that only it allows. So an answer is
    right when its revision is in a set that held at some time between the request's begin and its end.
    """

    def __init__(self, asked):
        self._asked = asked
        self._allowed = {host: [(0.0, allowed)] for host, allowed in asked.items()}
        self._over = {host: [] for host in asked}
        self._stop = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(len(asked))

    def __enter__(self):
        return self

    def start(self, ask):
        self._runs = {host: self._pool.submit(self._run, host, ask) for host in self._asked}

    def _run(self, host, ask):
        heard = []
        while not self._stop.is_set():
            begin = time.monotonic()
            revision = ask(host)
            heard.append((begin, time.monotonic(), revision))
        return heard

    def change(self, make, is_in_force, **allowed):
        """Makes a change; `allowed` are the sets that hold from then on, by host."""
        begin = time.monotonic()
        make()
        cove.until("the change", is_in_force)
        for host, revisions in allowed.items():
            self._allowed[host].append((begin, revisions))
            self._over[host].append(time.monotonic())

    def wrong(self):
        """Answers of a revision that had no share while they were asked for, and how many were asked for in all."""
        self._stop.set()
        wrong, count = [], 0
        for host, run in self._runs.items():
            ends = [*self._over[host], float("inf")]
            for begin, end, revision in run.result():
                count += 1
                held = (allowed for (since, allowed), until in zip(self._allowed[host], ends) if since <= end and until >= begin)
                if not any(revision in allowed for allowed in held):
                    wrong.append((host, revision, begin, end))
        return wrong, count

    def __exit__(self, *_):
        self._stop.set()
        self._pool.shutdown()


class Routing(Case):
    def revision(self, host, **headers):
        """Suffix of the revision that answered."""
        status, seen, _ = self.ask(host, **headers)
        self.assertEqual(status, 200, seen)
        return seen["replica"].split("--")[1].split("-")[0]

    def test_split_by_weight_label_and_latest(self):
        self.create("split", "--revision-suffix", "v1", "--min-replicas", "1", "--revisions-mode", "multiple")
        self.app("revision copy", "split", "--revision-suffix", "v2", "--from-revision", "split--v1")
        traffic = lambda *arguments: self.app("ingress traffic set", "split", *arguments)  # noqa: E731
        shares = traffic("--revision-weight", "split--v1=80", "latest=20")
        told = {(share.get("revisionName"), share["weight"]) for share in shares if share["weight"]}
        self.assertEqual(told, {("split--v1", 80), (None, 20)})
        self.assertEqual([share["weight"] for share in shares if share.get("latestRevision")], [20])
        host, green = self.host("split"), self.host("split---green")
        cove.until("both serve", lambda: self.revision(host) == "v2")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            heard = list(pool.map(lambda _: self.revision(host), range(600)))
        # a fifth of 600 is 120; five standard deviations are 49
        self.assertTrue(71 <= heard.count("v2") <= 169, heard.count("v2"))
        for suffix in ("v1", "v2"):
            self.assertEqual({self.revision(self.host(f"split--{suffix}")) for _ in range(10)}, {suffix}, "a revision's own host")

        def label(suffix):
            self.app("revision label add", "split", "--label", "green", "--revision", f"split--{suffix}", "--no-prompt")

        label("v2")
        cove.until("the label", lambda: self.ask(green)[0] == 200)

        with Watch({host: "v1 v2", green: "v2", self.host("split--v1"): "v1"}) as watch:
            watch.start(self.revision)
            # a new latest revision takes over its share, when it is ready
            deploy = lambda: self.app("update", "split", "--revision-suffix", "v3", "--set-env-vars", "N=3")  # noqa: E731
            watch.change(deploy, lambda: self.revision(host) == "v3", **{host: "v1 v3"})
            watch.change(lambda: label("v1"), lambda: self.revision(green) == "v1", **{green: "v1"})
            weigh = lambda: traffic("--revision-weight", "latest=0", "split--v1=0", "--label-weight", "green=100")  # noqa: E731
            watch.change(lambda: label("v2"), lambda: self.revision(green) == "v2", **{green: "v2"})
            watch.change(weigh, lambda: self.revision(host) == "v2", **{host: "v2"})
            wrong, count = watch.wrong()
        self.assertEqual(wrong, [])
        self.assertGreater(count, 100)

    def test_affinity_over_scale_out_and_over_revisions(self):
        """Load is read each second; `az rest` sends what `az containerapp create --yaml` would leave out."""
        template = {
            "revisionSuffix": "v1",
            "containers": [{"name": "main", "image": SAMPLE, "resources": {"cpu": 0.25, "memory": "0.5Gi"}}],
            "scale": {
                "minReplicas": 1, "maxReplicas": 5, "coveSettings": {"loadSamplingSeconds": 1},
                "rules": [{"name": "busy", "http": {"metadata": {"concurrentRequests": "1"}}}],
            },
        }  # fmt: skip
        ingress = {"external": True, "targetPort": 80, "allowInsecure": True}
        configuration = {"activeRevisionsMode": "Multiple", "ingress": ingress}
        properties = {"environmentId": self.environment, "configuration": configuration, "template": template}
        self.rest("put", f"{APPS}/kept", properties, location="eastus")
        cove.until("it serves", lambda: self.ask(self.host("kept"))[0] == 200)
        shown = self.app("ingress sticky-sessions set", "kept", "--affinity", "sticky")
        self.assertEqual(shown["stickySessions"]["affinity"], "sticky")
        cove.until("a cookie", lambda: "set-cookie" in self.ask(self.host("kept"))[2])
        # on a slow machine their own visits have made company before the last of them has come
        first = [self.visit() for _ in range(10)]
        stop = threading.Event()

        def keep_busy(_):
            while not stop.is_set():
                self.ask(self.host("kept"), "/slow?ms=300")

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            try:
                busy = list(map(lambda number: pool.submit(keep_busy, number), range(12)))
                newcomers = {}

                def five():
                    for replica, cookie in [self.visit() for _ in range(5)]:
                        newcomers.setdefault(replica, cookie)
                    for known, kept in [*first, *newcomers.items()]:
                        self.assertEqual(self.visit(kept), (known, None))
                    return len(newcomers) == 5

                cove.until("five replicas, and everybody stays at his own", five, 120)
            finally:
                stop.set()
            for one in busy:
                one.result()
        # a second revision: who is at the first stays there as long as it has a share
        self.app("revision copy", "kept", "--revision-suffix", "v2", "--from-revision", "kept--v1", "--set-env-vars", "N=2")
        self.app("ingress traffic set", "kept", "--revision-weight", "kept--v1=1", "kept--v2=99")
        cove.until("the second serves", lambda: self.visit()[0].startswith("kept--v2"))
        for known, kept in first:
            self.assertEqual(self.visit(kept), (known, None))
        self.app("ingress traffic set", "kept", "--revision-weight", "kept--v1=0", "kept--v2=100")
        again = lambda: (it := self.visit(first[0][1]))[0].startswith("kept--v2") and it  # noqa: E731
        moved, cookie = cove.until("they go on at the second", again)
        self.assertEqual(self.visit(cookie), (moved, None))

    def visit(self, cookie=None):
        """Which replica answered, and the cookie that it set."""
        status, text, fields = self.ask(self.host("kept"), "/env", **({"Cookie": cookie} if cookie else {}))
        self.assertEqual(status, 200, text)
        replica = next(line.split("=", 1)[1] for line in text.splitlines() if line.startswith("CONTAINER_APP_REPLICA_NAME="))
        set_cookie = fields.get("set-cookie")
        return replica, set_cookie and set_cookie.split(";")[0]

    def test_paths_to_apps_revisions_and_labels(self):
        self.create("shop", "--revision-suffix", "v1", "--revisions-mode", "multiple")
        self.app("revision copy", "shop", "--revision-suffix", "v2", "--from-revision", "shop--v1")
        self.app("ingress traffic set", "shop", "--revision-weight", "shop--v1=100", "shop--v2=0")
        self.app("revision label add", "shop", "--label", "next", "--revision", "shop--v2", "--no-prompt")
        own = pem.self_signed(self.folder, "site.test")
        certificate = self.az(
            "containerapp", "env", "certificate", "upload", "-n", ENVIRONMENT, "-g", GROUP, "--certificate-file", own.path,
            "--certificate-name", "site",
        )  # fmt: skip

        def rule(match, *targets, rewrite=None):
            action = {"action": {"prefixRewrite": rewrite}} if rewrite else {}
            return {"routes": [{"match": match, **action}], "targets": [{"containerApp": "shop", **target} for target in targets]}

        rules = [
            rule({"path": "/exact"}, {}),
            rule({"path": "/Any", "caseSensitive": False}, {}, rewrite="/any"),
            rule({"pathSeparatedPrefix": "/api"}, {"label": "next"}, rewrite="/v2"),
            rule({"prefix": "/old"}, {"revision": "shop--v1"}, rewrite="/"),
            rule({"prefix": "/both"}, {"revision": "shop--v1", "weight": 50}, {"label": "next", "weight": 50}),
        ]
        domain = {"name": "site.test", "bindingType": "SniEnabled", "certificateId": certificate["id"]}
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            json.dump({"rules": rules, "customDomains": [domain]}, file)
            file.flush()
            self.az(
                "containerapp", "env", "http-route-config", "create", "-g", GROUP, "-n", ENVIRONMENT, "-r", "site",
                "--yaml", file.name,
            )  # fmt: skip
        cove.until("the routes", lambda: self.led("/exact"))
        self.assertEqual(
            {path: self.led(path) for path in ("/exact", "/exact/", "/ANY", "/api/x?y=1", "/api", "/apis", "/oldest", "/")},
            {
                "/exact": ("v1", "/exact"), "/exact/": None, "/ANY": ("v1", "/any"), "/api/x?y=1": ("v2", "/v2/x?y=1"),
                "/api": ("v2", "/v2"), "/apis": None, "/oldest": ("v1", "/est"), "/": None,
            },
        )  # fmt: skip
        heard = [self.led("/both")[0] for _ in range(60)]
        self.assertTrue(heard.count("v1") > 10 and heard.count("v2") > 10, heard)
        # its own domain, with the certificate that is bound to it
        cove.until("its certificate", lambda: self.leaf("site.test") == own.der)
        self.assertEqual(self.led("/exact", "site.test"), ("v1", "/exact"))

    def leaf(self, name):
        """The certificate that the ingress serves for a name; `None` when it refuses the handshake."""
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            return self.server.leaf(name)

    def led(self, path, host=None):
        """Suffix of the revision that answered, and the path that it saw."""
        status, seen, fields = self.ask(host or self.host("site"), path)
        if status == 404:
            self.assertIn(fields["x-cove-reason"], ("no-path-route", "unknown-host"))
            return None
        self.assertEqual(status, 200, seen)
        return seen["replica"].split("--")[1].split("-")[0], seen["path"]


class Policies(Case):
    def test_client_certificates(self):
        self.create("papers")
        host = self.host("papers")
        own = pem.self_signed(self.folder, "client.test")
        plain = ssl.create_default_context(cafile=self.server.ca)
        shown = ssl.create_default_context(cafile=self.server.ca)
        shown.load_cert_chain(own.path)
        spoofed = "x-forwarded-client-cert: Hash=0\r\n"
        told = lambda body: json.loads(body)["headers"].get("x-forwarded-client-cert")  # noqa: E731

        def answers():
            """What the app is told, or the status, without a certificate and with one."""
            said = [self.ask_securely(host, context, headers=spoofed)[:2] for context in (plain, shown)]
            return [told(body) if status == 200 else status for status, body in said]

        self.assertEqual(answers(), [None, None], "nobody is asked: ignore is the default")
        self.patch("papers", {"clientCertificateMode": "accept"})
        cove.until("it is asked for", lambda: answers()[1] is not None)
        without, with_one = answers()
        self.assertIsNone(without)
        self.assertRegex(with_one, '^Hash=[0-9a-f]{64};Cert="-----BEGIN%20CERTIFICATE-----')
        self.patch("papers", {"clientCertificateMode": "require"})
        cove.until("it is required", lambda: answers() == [403, with_one])
        # `ingress update` changes what it names and leaves the mode
        self.app("ingress update", "papers", "--allow-insecure", "true")
        self.assertEqual(self.ask(host)[0], 403, "plain HTTP has no certificate")
        self.patch("papers", {"clientCertificateMode": "ignore"})
        cove.until("nobody is asked again", lambda: answers() == [None, None])

    def test_who_is_believed_and_who_is_let_in(self):
        self.create("gate")
        host = self.host("gate")
        fields = {"X_Forwarded_For": "203.0.113.9", "X_Forwarded_Proto": "https", "Forwarded": "for=203.0.113.9"}
        told = lambda **more: {  # noqa: E731
            name: value for name, value in self.ask(host, **more)[1]["headers"].items() if "forwarded" in name
        }
        own = {"x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "http", "x-forwarded-host": host}
        self.assertEqual(told(**fields), own, "what a client writes is dropped")
        through = {"x-forwarded-for": f"203.0.113.9, {PROXY}", "x-forwarded-proto": "https", "x-forwarded-host": host}
        self.assertEqual(told(origin=PROXY, **fields), {**through, "forwarded": "for=203.0.113.9"})
        line = b"PROXY TCP4 203.0.113.9 127.0.0.1 4711 80\r\n"
        self.assertEqual(told(origin=BALANCER, before=line), {**own, "x-forwarded-for": "203.0.113.9"})

        rule = ("--rule-name", "one", "--ip-address", "203.0.113.0/24")
        self.app("ingress access-restriction set", "gate", *rule, "--action", "Allow")
        refused = lambda **more: self.ask(host, **more)[2].get("x-cove-reason")  # noqa: E731
        cove.until("the rule", lambda: refused() == "ip-not-allowed")
        # the address counts that a trusted proxy or a balancer names, not what anybody writes
        self.assertEqual(refused(**fields), "ip-not-allowed")
        self.assertIsNone(refused(origin=PROXY, **fields))
        self.assertIsNone(refused(origin=BALANCER, before=line))
        self.app("ingress access-restriction remove", "gate", "--rule-name", "one")
        self.app("ingress access-restriction set", "gate", *rule, "--action", "Deny")
        cove.until("the other rule", lambda: refused() is None)
        self.assertEqual(refused(origin=PROXY, **fields), "ip-not-allowed")

    def test_silence_inside_an_answer(self):
        self.create("quiet", image=SAMPLE)
        self.patch("quiet", {"coveIdleTimeoutSeconds": 1})
        shown = self.app("show", "quiet")["properties"]["configuration"]["ingress"]
        self.assertEqual(shown["coveEffectiveLimits"]["idleTimeoutSeconds"], 1)

        def whole():
            with contextlib.suppress(http.client.IncompleteRead):
                return self.ask(self.host("quiet"), "/stream?n=3&ms=100")[0] == 200
            return False

        # a busy machine may make a long silence of a short one
        cove.until("short silences are not cut", whole)

        def cut():
            with contextlib.suppress(http.client.IncompleteRead):
                self.ask(self.host("quiet"), "/stream?n=2&ms=2500")
                return False
            return True

        cove.until("a silence of two seconds is cut", cut)

    def test_tcp(self):
        (port,) = cove.free_ports(1)
        self.create("line", "--transport", "tcp", "--exposed-port", str(port), serve=("tcp", "9000"), insecure=False)
        self.assertEqual(say(port, "a\n"), "A\nline heard 1 lines\n")
        begin = time.monotonic()
        with contextlib.closing(connect(port)) as silent:
            self.assertEqual(silent.recv(1), b"", "closed by the server, after `tcp_idle_timeout`")
            self.assertGreater(time.monotonic() - begin, 4.5)
        policy = f"{APPS}/line/resiliencyPolicies/policy"
        self.rest("put", policy, {"tcpConnectionPool": {"maxConnections": 2}}, "api-version=2024-02-02-preview")

        def open_ones():
            """How many of four connections at once are served."""
            with contextlib.ExitStack() as stack:
                made = [stack.enter_context(contextlib.closing(connect(port))) for _ in range(4)]
                return sum(self.echoes(one) for one in made)

        cove.until("two at once", lambda: open_ones() == 2)
        self.rest("delete", policy, version="api-version=2024-02-02-preview")
        cove.until("any number", lambda: open_ones() == 4)
        rule = ("--rule-name", "no", "--ip-address", "127.0.0.1/32", "--action", "Deny")
        self.app("ingress access-restriction set", "line", *rule)
        cove.until("the client is refused", lambda: open_ones() == 0)

    def test_tcp_rule(self):
        """Five connections at two each are work for three replicas."""
        (port,) = cove.free_ports(1)
        rule = {"name": "busy", "tcp": {"metadata": {"concurrentConnections": "2"}}}
        template = {
            "containers": [
                {"name": "main", "image": IMAGE, "args": ["tcp", "9000"], "resources": {"cpu": 0.25, "memory": "0.5Gi"}}
            ],
            "scale": {"minReplicas": 0, "maxReplicas": 5, "coveSettings": {"loadSamplingSeconds": 1}, "rules": [rule]},
        }
        ingress = {"external": True, "targetPort": 9000, "exposedPort": port, "transport": "tcp"}
        properties = {"environmentId": self.environment, "configuration": {"ingress": ingress}, "template": template}
        self.rest("put", f"{APPS}/counted", properties, location="eastus")
        self.assertEqual(say(port, ""), " heard 0 lines\n")
        stop = threading.Event()

        def keep_open(_):
            with contextlib.closing(connect(port)) as one:
                answers = self.echoes(one)
                while answers and not stop.wait(0.3):  # silent ones are closed
                    answers = self.echoes(one)
                return answers

        with concurrent.futures.ThreadPoolExecutor(5) as pool:
            try:
                open_ones = [pool.submit(keep_open, number) for number in range(5)]
                cove.until("three replicas", lambda: len(self.app("replica list", "counted")) == 3)
            finally:
                stop.set()
            self.assertTrue(all(one.result() for one in open_ones))

    def echoes(self, connection):
        with contextlib.suppress(OSError):
            connection.sendall(b"x\n")
            return connection.recv(2) == b"X\n"
        return False


if __name__ == "__main__":
    import unittest

    unittest.main()
