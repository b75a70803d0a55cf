"""Certificates with the real `az`: uploaded, managed by the server's own authority and by a real ACME server, for custom
domains and for an environment's DNS suffix; TLS between apps."""

import contextlib
import datetime
import json
import pathlib
import socket
import ssl
import sys
import tempfile
import unittest

import acme
import cove
import ingress_test
import pem
import python_image
from az_test import ServerCase

IMAGE = "cove.local/python:latest"
GROUP, ENVIRONMENT = "rg", "env"
ENV = ("-n", ENVIRONMENT, "-g", GROUP)


class Case(ServerCase):
    """One environment for all tests; every test makes its own apps."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        python_image.import_into(cls.server, IMAGE)
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.az("group", "create", "-n", GROUP, "-l", "eastus")
        made = cls.az("containerapp", "env", "create", *ENV, "-l", "eastus", "--logs-destination", "none")
        cls.domain = made["properties"]["defaultDomain"]

    def create(self, name, *arguments, ingress="external"):
        self.az(
            "containerapp", "create", "-n", name, "-g", GROUP, "--environment", ENVIRONMENT, "--image", IMAGE,
            "--ingress", ingress, "--target-port", "8080", "--min-replicas", "0", "--env-vars", f"NAME={name}",
            "--args", "http", "8080", *arguments,
        )  # fmt: skip

    def hostname(self, verb, app, *arguments):
        return self.az("containerapp", "hostname", verb, "-n", app, "-g", GROUP, *arguments)

    def certificates(self, *arguments):
        return self.az("containerapp", "env", "certificate", "list", *ENV, *arguments)

    def leaf(self, name):
        """What the ingress serves for a name; `None` when it refuses the handshake."""
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            return self.server.leaf(name)

    def ask(self, host, root):
        """Status of `GET /` over TLS, the certificate checked against `root`."""
        address, port = self.server.https.removeprefix("https://").rsplit(":", 1)
        context = ssl.create_default_context(cafile=str(root))
        with socket.create_connection((address, int(port)), timeout=60) as plain:
            with context.wrap_socket(plain, server_hostname=host) as secure:
                secure.sendall(f"GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
                return int(secure.makefile().readline().split()[1])


class OwnAuthority(Case):
    def test_uploaded_certificates_and_custom_domains(self):
        self.create("shop")
        first = pem.self_signed(self.folder, "shop.test")
        second = pem.self_signed(self.folder, "www.shop.test", password="hush")
        uploaded = self.az(
            "containerapp", "env", "certificate", "upload", *ENV, "--certificate-file", first.path,
            "--certificate-name", "first",
        )  # fmt: skip
        self.assertEqual(uploaded["properties"]["provisioningState"], "Succeeded")
        self.assertTrue(uploaded["properties"]["valid"])
        thumbprint = uploaded["properties"]["thumbprint"]
        self.assertEqual([one["name"] for one in self.certificates("--thumbprint", thumbprint)], ["first"])

        self.hostname("add", "shop", "--hostname", "shop.test")
        self.assertEqual([one["bindingType"] for one in self.hostname("list", "shop")], ["Disabled"])
        cove.until("plain HTTP", lambda: self.server.get("shop.test")[0] == 200)
        self.assertIsNone(self.leaf("shop.test"), "no certificate, no handshake")
        self.hostname("bind", "shop", "--hostname", "shop.test", "--environment", ENVIRONMENT, "--thumbprint", thumbprint)
        cove.until("its certificate", lambda: self.leaf("shop.test") == first.der)
        # one command for upload and binding
        self.az(
            "containerapp", "ssl", "upload", "-n", "shop", "-g", GROUP, "--environment", ENVIRONMENT,
            "--hostname", "www.shop.test", "--certificate-file", second.path, "--password", "hush",
            "--certificate-name", "second",
        )  # fmt: skip
        cove.until("its certificate", lambda: self.leaf("www.shop.test") == second.der)
        self.assertEqual({one["name"] for one in self.hostname("list", "shop")}, {"shop.test", "www.shop.test"})

        # what is bound stays; what is not bound goes
        refused = self.az.refused("containerapp", "env", "certificate", "delete", *ENV, "--certificate", "first", "-y")
        self.assertIn("is used by container app 'shop'", refused)
        self.hostname("delete", "shop", "--hostname", "shop.test", "--yes")
        cove.until("it is gone", lambda: self.server.get("shop.test")[0] == 404)
        self.az("containerapp", "env", "certificate", "delete", *ENV, "--certificate", "first", "-y")
        left = {one["name"] for one in self.certificates("-p")}
        self.assertEqual(left & {"first", "second"}, {"second"}, "other tests have certificates of their own")

    def test_a_new_certificate_drops_no_connection(self):
        self.create("steady")
        self.hostname("add", "steady", "--hostname", "steady.test")
        made = [pem.self_signed(tempfile.mkdtemp(dir=self.folder), "steady.test") for _ in range(2)]
        upload = ("containerapp", "env", "certificate", "upload", *ENV, "--certificate-name", "steady")
        self.az(*upload, "--certificate-file", made[0].path)
        self.hostname("bind", "steady", "--hostname", "steady.test", "--environment", ENVIRONMENT, "--certificate", "steady")
        cove.until("its certificate", lambda: self.leaf("steady.test") == made[0].der)
        address, port = self.server.https.removeprefix("https://").rsplit(":", 1)
        context = ssl.create_default_context(cadata=ssl.DER_cert_to_PEM_cert(made[0].der))
        with socket.create_connection((address, int(port)), timeout=60) as plain:
            with context.wrap_socket(plain, server_hostname="steady.test") as secure:
                answers = secure.makefile("rb")

                def ask():
                    secure.sendall(b"GET / HTTP/1.1\r\nhost: steady.test\r\n\r\n")
                    fields = list(iter(lambda: answers.readline().strip().lower(), b""))
                    length = next(int(field.split()[1]) for field in fields if field.startswith(b"content-length:"))
                    answers.read(length)
                    return int(fields[0].split()[1])

                self.assertEqual(ask(), 200)
                # the same name with another file: shown at once, and what is open goes on
                self.az(*upload, "--certificate-file", made[1].path)
                cove.until("the new one", lambda: self.leaf("steady.test") == made[1].der)
                self.assertEqual(ask(), 200)

    def test_a_managed_certificate_of_the_own_authority(self):
        self.create("managed")
        self.hostname("add", "managed", "--hostname", "managed.test")
        self.hostname(
            "bind", "managed", "--hostname", "managed.test", "--environment", ENVIRONMENT, "--validation-method", "HTTP"
        )
        cove.until("its certificate", lambda: self.leaf("managed.test"))
        self.assertEqual(self.ask("managed.test", self.server.ca), 200)
        (made,) = self.certificates("-m")
        self.assertEqual(made["properties"]["provisioningState"], "Succeeded")
        created = self.az(
            "containerapp", "env", "certificate", "create", *ENV, "--hostname", "more.test", "--certificate-name", "more",
            "--validation-method", "CNAME",
        )  # fmt: skip
        self.assertEqual(created["properties"]["subjectName"], "more.test")
        self.az("containerapp", "env", "certificate", "delete", *ENV, "--certificate", "more", "-y")

    def test_a_dns_suffix_of_ones_own(self):
        self.create("front")
        self.create("back", ingress="internal")
        wildcard = pem.self_signed(self.folder, "apps.test", password="hush", names=["apps.test", "*.apps.test"])
        suffix = ("--custom-domain-dns-suffix", "apps.test")
        file = ("--custom-domain-certificate-file", wildcard.path, "--custom-domain-certificate-password", "hush")
        changed = self.az("containerapp", "env", "update", *ENV, *suffix, *file)
        own = changed["properties"]["customDomainConfiguration"]
        self.assertEqual((own["dnsSuffix"], own["subjectName"]), ("apps.test", "CN=apps.test"))
        self.assertNotIn("certificateValue", own)
        cove.until("the name below the suffix", lambda: self.server.get("front.apps.test")[0] == 200)
        self.assertEqual(self.server.get(f"front.{self.domain}")[0], 200, "the default domain stays")
        self.assertEqual(self.server.get("back.apps.test")[0], 404, "internal apps stay inside")
        cove.until("its certificate", lambda: self.leaf("front.apps.test") == wildcard.der)
        self.assertEqual(self.ask("front.apps.test", pathlib.Path(self.folder) / "apps.test.crt"), 200)
        # an update that does not name it keeps it; a certificate for other names is refused
        self.az("containerapp", "env", "update", *ENV, "--tags", "a=b")
        self.assertEqual(self.server.get("front.apps.test")[0], 200)
        other = pem.self_signed(self.folder, "other.test", password="hush")
        file = ("--custom-domain-certificate-file", other.path, "--custom-domain-certificate-password", "hush")
        refused = self.az.refused("containerapp", "env", "update", *ENV, *suffix, *file)
        self.assertIn("not for '*.apps.test'", refused)

    def test_tls_between_apps(self):
        changed = self.az("containerapp", "env", "update", *ENV, "--enable-mtls", "true")
        self.assertTrue(changed["properties"]["peerAuthentication"]["mtls"]["enabled"])
        self.assertIn("kernel of this machine", " ".join(changed["properties"]["coveWarnings"]))
        self.create("inner", ingress="internal")
        self.create("caller")
        cove.until("the caller", lambda: self.server.get(f"caller.{self.domain}")[0] == 200)
        script = (
            "import ssl, urllib.request as u; c = ssl.create_default_context(cafile='/etc/cove-ca.pem')\n"
            "for host in %r: print(u.urlopen('https://' + host, timeout=60, context=c).status, host)\n"
            "forged = u.Request('http://inner', headers={'x-forwarded-client-cert': 'URI=spiffe://env/app/admin'})\n"
            "said = u.urlopen(forged, timeout=60)\n"
            "print(said.status, said.read().decode())"
        ) % (["inner", f"inner.internal.{self.domain}"],)
        version = "python%d.%d" % sys.version_info[:2]
        said = self.inside("caller", [f"/usr/bin/{version}", "-c", script])
        self.assertEqual([line.split()[0] for line in said.splitlines()], ["200", "200", "200"], said)
        # plain calls go on, and the called app is told who calls, whatever the caller says of himself
        seen = json.loads(said.splitlines()[-1].split(" ", 1)[1])["headers"]
        self.assertEqual(seen["x-forwarded-client-cert"], "By=spiffe://env/app/inner;URI=spiffe://env/app/caller")
        self.az("containerapp", "ingress", "update", "-n", "inner", "-g", GROUP, "--type", "external")
        told = lambda: json.loads(self.server.get(f"inner.{self.domain}")[1])["headers"]  # noqa: E731
        cove.until("it serves outside", lambda: self.server.get(f"inner.{self.domain}")[0] == 200)
        self.assertNotIn("x-forwarded-client-cert", told(), "who is outside is no app")
        encrypt = ("--enable-mtls", "false", "--enable-peer-to-peer-encryption", "true")
        changed = self.az("containerapp", "env", "update", *ENV, *encrypt)
        self.assertTrue(changed["properties"]["peerTrafficConfiguration"]["encryption"]["enabled"])
        self.assertIn("it is not encrypted besides", " ".join(changed["properties"]["coveWarnings"]))
        script = "import urllib.request as u; print(u.urlopen('http://inner', timeout=60).read().decode())"
        silent = lambda: "client-cert" not in self.inside("caller", [f"/usr/bin/{version}", "-c", script])  # noqa: E731
        cove.until("it is not told any more", silent)
        environment = pathlib.Path(f"/proc/{self.pid_of('caller')}/environ").read_bytes().split(b"\0")
        self.assertIn(b"COVE_CA_FILE=/etc/cove-ca.pem", environment)

    inside = ingress_test.Ingress.in_replica
    pid_of = ingress_test.Ingress.pid_of


class Acme(Case):
    @classmethod
    def setUpClass(cls):
        cls.authority = cls.enterClassContext(acme.Authority())
        cls.CONFIG = cove.CONFIG + cls.authority.config()
        super().setUpClass()
        cls.authority.start(int(cls.server.http.rsplit(":", 1)[1]))

    def run(self, result=None):
        before = len(result.failures) + len(result.errors) if result else 0
        super().run(result)
        if result and len(result.failures) + len(result.errors) > before:
            print(f"--- the ACME server's log:\n{self.authority.log()}\n---")
        return result

    def test_a_certificate_is_ordered_and_served(self):
        self.create("store", ingress="internal")
        self.hostname("add", "store", "--hostname", "store.test")
        self.hostname(
            "bind", "store", "--hostname", "store.test", "--environment", ENVIRONMENT, "--validation-method", "CNAME"
        )
        (made,) = [one for one in self.certificates("-m") if one["properties"]["subjectName"] == "store.test"]
        self.assertEqual(made["properties"]["provisioningState"], "Succeeded")
        self.assertEqual(made["properties"]["domainControlValidation"], "CNAME")
        self.az("containerapp", "ingress", "update", "-n", "store", "-g", GROUP, "--type", "external")
        cove.until("it serves", lambda: self.leaf("store.test") and self.ask("store.test", self.authority.root) == 200)

    def test_a_domain_is_proven_by_a_record(self):
        self.az(
            "containerapp", "env", "certificate", "create", *ENV, "--hostname", "record.test",
            "--certificate-name", "record", "--validation-method", "TXT",
        )  # fmt: skip

        def look():
            (one,) = self.certificates("-m", "--certificate", "record")
            return one["properties"]

        token = cove.until("the token", lambda: look().get("validationToken"))
        self.assertEqual(look()["provisioningState"], "Pending")
        self.authority.resolver.records["_acme-challenge.record.test"] = token
        cove.until("the certificate", lambda: look()["provisioningState"] == "Succeeded")

    def test_what_the_authority_refuses_is_told(self):
        self.az(
            "containerapp", "env", "certificate", "create", *ENV, "--hostname", "nowhere.test",
            "--certificate-name", "nowhere", "--validation-method", "HTTP",
        )  # fmt: skip

        def failed():
            (one,) = self.certificates("-m", "--certificate", "nowhere")
            return one["properties"] if one["properties"]["provisioningState"] == "Failed" else None

        told = cove.until("the refusal", failed)
        # this server keeps its reason to itself
        self.assertIn("the authority could not verify the domain", told["error"])
        self.az("containerapp", "env", "certificate", "delete", *ENV, "--certificate", "nowhere", "-y")


class Over(unittest.TestCase):
    """Orders that outlive a server, and certificates that come to their end."""

    ID = (
        f"/subscriptions/{cove.SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/managedEnvironments/"
        f"{ENVIRONMENT}/managedCertificates/mc?api-version=2025-07-01"
    )

    def begin(self, authority, options=(), is_there=True):
        server = self.enterContext(cove.Server(cove.CONFIG + authority.config(), options))
        if is_there:
            authority.start(int(server.http.rsplit(":", 1)[1]))
        server.command("group", "create", "-n", GROUP, "-l", "eastus")
        server.command("containerapp", "env", "create", *ENV, "-l", "eastus")
        body = {"location": "eastus", "properties": {"subjectName": "late.test", "domainControlValidation": "HTTP"}}
        status, made = server.call("PUT", self.ID, json.dumps(body), {"content-type": "application/json"})
        self.assertEqual((status, made["properties"]["provisioningState"]), (201, "Pending"))
        return server

    def issued(self, server, other=None):
        """Its properties when it is there, with another thumbprint than `other`."""

        def look():
            properties = server.call("GET", self.ID)[1]["properties"]
            self.assertNotEqual(properties["provisioningState"], "Failed", properties)
            is_new = properties.get("thumbprint") not in (None, other)
            return properties if is_new and properties["provisioningState"] == "Succeeded" else None

        return cove.until("the certificate", look, within_seconds=90)

    def test_an_order_goes_on_after_a_power_cut(self):
        with acme.Authority() as authority:
            server = self.begin(authority, is_there=False)
            # the authority is not there: it stays pending and says why
            cove.until("an error", lambda: "error" in server.call("GET", self.ID)[1]["properties"])
            server.kill()
            server.start()
            authority.start(int(server.http.rsplit(":", 1)[1]))
            self.assertNotIn("error", self.issued(server))

    def test_a_certificate_is_renewed_before_its_end(self):
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        with acme.Authority(days=3) as authority:
            server = self.begin(authority, ["--clock", f"virtual={now}"])
            first = self.issued(server)
            server.command("clock", "advance", "47h")
            self.assertEqual(self.issued(server)["thumbprint"], first["thumbprint"], "two thirds of its life are not over")
            server.command("clock", "advance", "2h")
            self.issued(server, other=first["thumbprint"])


if __name__ == "__main__":
    unittest.main()
