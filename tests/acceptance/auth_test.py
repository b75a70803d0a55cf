"""Authentication in front of an app: set by `az`, with a real OpenID Connect provider and a scripted browser."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import unittest
import urllib.parse

import cove
import python_image
from az_test import ServerCase

IMAGE = "cove.local/python:latest"
GROUP, ENVIRONMENT, APP = "rg", "env", "guarded"
HERE = pathlib.Path(__file__).resolve().parent / "js"
PACKAGES = pathlib.Path(os.environ.get("COVE_VENV", "/var/cache/cove/venv") + "-js")
NODE = pathlib.Path(sys.executable).with_name("node")
CLIENT, SECRET = "client", "s3cret-of-the-client"
SESSION = "AppServiceAuthSession"


class Provider:
    """`oidc-provider`, a certified implementation, as a process of its own."""

    def __init__(self, callbacks, logouts):
        self.address = f"http://127.0.0.1:{cove.free_ports(1)[0]}"
        self.discovery = f"{self.address}/.well-known/openid-configuration"
        if not NODE.exists():
            raise AssertionError(f"{NODE} is missing: tests/acceptance/run installs it")
        shutil.copy(HERE / "oidc.mjs", PACKAGES)  # packages are found from the file's own folder
        self._process = subprocess.Popen(
            [str(NODE), "oidc.mjs", self.address, ",".join(callbacks), ",".join(logouts)],
            cwd=PACKAGES, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        self._said, ready = [], threading.Event()
        self._reader = threading.Thread(target=self._read, args=(ready,), daemon=True)
        self._reader.start()
        if not ready.wait(60) or self._process.poll() is not None:
            self.stop()
            raise AssertionError(f"the provider did not start:\n{''.join(self._said)}")

    def _read(self, ready):
        for line in self._process.stdout:
            self._said.append(line)
            if line.strip() == "ready":
                ready.set()
        ready.set()

    def stop(self):
        # `node` is a script that starts the real one: both are ended
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        self._reader.join(10)
        self._process.stdout.close()


class Browser:
    """Keeps cookies by host, follows redirects; names below `localhost` are this machine."""

    def __init__(self, user="alice"):
        self.user = user
        self.cookies = {}
        self.visited = []

    def get(self, url, **headers):
        return self.request("GET", url, None, headers)

    def request(self, method, url, body=None, headers=None):
        """One request: status, headers, text."""
        parts = urllib.parse.urlsplit(url)
        jar = self.cookies.setdefault(parts.hostname, {})
        connection = http.client.HTTPConnection("127.0.0.1", parts.port or 80, timeout=60)
        try:
            path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            headers = {"Host": parts.netloc, "Accept": "text/html", **(headers or {})}
            if jar:
                headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in jar.items())
            if body is not None:
                headers["Content-Type"] = "application/x-www-form-urlencoded"
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            for line in answer.headers.get_all("set-cookie") or []:
                name, value = line.split(";")[0].split("=", 1)
                if value:
                    jar[name] = value
                else:
                    jar.pop(name, None)
            self.visited.append((answer.status, url))
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text
        finally:
            connection.close()

    def open(self, url):
        """Follows redirects, logs in and consents where the provider asks for it; status, headers and text at the end."""
        method, body = "GET", None
        for _ in range(20):
            status, headers, text = self.request(method, url, body)
            method, body = "GET", None
            if status in (301, 302, 303, 307) and "location" in headers:
                url = urllib.parse.urljoin(url, headers["location"])
                continue
            form = re.search(r'<form[^>]*action="([^"]+)"', text)
            prompt = re.search(r'name="prompt" value="([a-z]+)"', text)
            if status == 200 and form and prompt:
                fields = {"prompt": prompt[1]}
                if prompt[1] == "login":
                    fields |= {"login": self.user, "password": "any"}
                method, url, body = "POST", urllib.parse.urljoin(url, form[1]), urllib.parse.urlencode(fields)
                continue
            return status, headers, text
        raise AssertionError(f"redirects without an end: {self.visited}")


class Authentication(ServerCase):
    """One app that is guarded in several ways, one after the other."""

    def test_logins(self):
        python_image.import_into(self.server, IMAGE)
        self.az("group", "create", "-n", GROUP, "-l", "eastus")
        environment = self.az(
            "containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus", "--logs-destination", "none"
        )
        self.host = f"{APP}.{environment['properties']['defaultDomain']}"
        self.az(
            "containerapp", "create", "-n", APP, "-g", GROUP, "--environment", ENVIRONMENT, "--image", IMAGE,
            "--ingress", "external", "--target-port", "8080", "--min-replicas", "0", "--args", "http", "8080",
        )  # fmt: skip
        port = self.server.http.rsplit(":", 1)[1]
        self.site = f"http://{self.host}:{port}"
        callbacks = [f"{self.site}/.auth/login/{name}/callback" for name in ("own", "aad")]
        provider = Provider(callbacks, [f"{self.site}/.auth/logout/complete"])
        self.addCleanup(provider.stop)
        self.configure(provider)
        self.nobody_passes_without_a_login()
        browser = self.browser_logs_in()
        self.bearer_tokens_count(browser)
        self.nobody_writes_the_headers(browser)
        self.session_is_refreshed_and_ended(browser)
        browser = self.microsoft_is_the_same_way(provider)
        self.provider_that_is_down_is_told(provider)
        self.session_outlives_the_server(browser)

    def auth(self, verb, *arguments):
        return self.az("containerapp", "auth", *verb.split(), "-n", APP, "-g", GROUP, *arguments)

    def configure(self, provider):
        self.auth(
            "openid-connect add", "--provider-name", "own", "--client-id", CLIENT, "--client-secret", SECRET,
            "--openid-configuration", provider.discovery, "--scopes", "openid,email,profile", "--yes",
        )  # fmt: skip
        shown = self.auth(
            "update", "--unauthenticated-client-action", "RedirectToLoginPage", "--redirect-provider", "own",
            "--excluded-paths", "/open,/public/*", "--token-store", "true", "--sas-url-secret", "https://unused", "--yes",
        )  # fmt: skip
        self.assertNotIn(SECRET, json.dumps(shown))
        cove.until("the login is asked for", lambda: Browser().get(self.site)[0] == 302)

    def nobody_passes_without_a_login(self):
        status, headers, _ = Browser().get(f"{self.site}/shop?a=b")
        self.assertEqual((status, headers["location"]), (302, "/.auth/login/own?post_login_redirect_uri=%2Fshop%3Fa%3Db"))
        for path in ("/open/../admin", "/public/%2e%2e/admin", "/opened"):
            self.assertEqual(Browser().get(self.site + path)[0], 302, path)
        status, headers, _ = Browser().get(self.site, **{"X-Requested-With": "XMLHttpRequest"})
        self.assertEqual((status, headers["x-cove-reason"]), (401, "login-required"))
        evil = urllib.parse.quote("https://evil.example", safe="")
        self.assertEqual(Browser().get(f"{self.site}/.auth/login/own?post_login_redirect_uri={evil}")[0], 400)
        self.assertEqual(Browser().get(f"{self.site}/open")[0], 200)

    def browser_logs_in(self):
        browser = Browser()
        status, _, text = browser.open(f"{self.site}/shop?a=b")
        self.assertEqual(status, 200, text)
        seen = json.loads(text)
        self.assertEqual(seen["path"], "/shop?a=b")
        self.assertEqual(seen["headers"]["x-ms-client-principal-id"], "alice")
        self.assertEqual(seen["headers"]["x-ms-client-principal-name"], "alice@example.test")
        self.assertEqual(seen["headers"]["x-ms-client-principal-idp"], "own")
        self.assertIn("x-ms-token-own-access-token", seen["headers"])
        me = json.loads(browser.get(f"{self.site}/.auth/me")[2])[0]
        self.assertEqual((me["provider_name"], me["user_id"]), ("own", "alice@example.test"))
        self.assertIn({"typ": "roles", "val": "reader"}, me["user_claims"])
        # the address that the provider sent alice back to is worth nothing to others
        callback = next(url for _, url in browser.visited if "/callback?" in url)
        self.assertEqual(Browser().get(callback)[1]["x-cove-reason"], "login-state-invalid")
        return browser

    def bearer_tokens_count(self, browser):
        token = json.loads(browser.get(f"{self.site}/.auth/me")[2])[0]["id_token"]
        status, _, text = Browser().get(self.site, Authorization=f"Bearer {token}")
        self.assertEqual((status, json.loads(text)["headers"]["x-ms-client-principal-id"]), (200, "alice"))
        head, payload, signature = token.split(".")
        forged = f"{head}.{payload}.{signature[:-8]}AAAAAAAA"
        status, headers, _ = Browser().get(self.site, Authorization=f"Bearer {forged}")
        self.assertEqual((status, headers["x-cove-reason"]), (401, "token-invalid"))

    def nobody_writes_the_headers(self, browser):
        spoofed = {"X-MS-CLIENT-PRINCIPAL-ID": "admin", "X-MS-TOKEN-AAD-ID-TOKEN": "mine", "Connection": "X-MS-CLIENT-PRINCIPAL-ID"}
        seen = json.loads(Browser().get(f"{self.site}/open", **spoofed)[2])["headers"]
        self.assertFalse([name for name in seen if name.startswith("x-ms-")], seen)
        seen = json.loads(browser.get(self.site, **spoofed)[2])["headers"]
        self.assertEqual(seen["x-ms-client-principal-id"], "alice")
        self.assertNotIn("x-ms-token-aad-id-token", seen)
        forged = Browser()
        value = browser.cookies[self.host][SESSION]
        forged.cookies[self.host] = {SESSION: value[:30] + ("A" if value[30] != "A" else "B") + value[31:]}
        self.assertEqual(forged.get(self.site)[0], 302)

    def session_is_refreshed_and_ended(self, browser):
        token = lambda: json.loads(browser.get(self.site)[2])["headers"]["x-ms-token-own-access-token"]  # noqa: E731
        before = token()
        self.assertEqual(browser.get(f"{self.site}/.auth/refresh")[0], 200)
        self.assertNotEqual(token(), before)
        kept = list((self.server.data / "auth-sessions").iterdir())
        self.assertTrue(kept and all(before.encode() not in file.read_bytes() for file in kept), kept)
        thief = Browser()
        thief.cookies = {self.host: dict(browser.cookies[self.host])}
        status, headers, _ = browser.get(f"{self.site}/.auth/logout?post_logout_redirect_uri=/open")
        self.assertEqual(status, 302)
        self.assertIn("/session/end?", headers["location"])
        self.assertEqual(browser.get(self.site)[0], 302)
        self.assertEqual(thief.get(self.site)[0], 302, "a copied cookie ends with the session")

    def microsoft_is_the_same_way(self, provider):
        self.auth(
            "microsoft update", "--client-id", CLIENT, "--client-secret", SECRET, "--issuer", provider.address, "--yes"
        )
        self.auth("update", "--unauthenticated-client-action", "Return401", "--token-store", "false")
        cove.until("401", lambda: Browser().get(self.site)[0] == 401)
        browser = Browser("bob")
        status, _, text = browser.open(f"{self.site}/.auth/login/aad?post_login_redirect_uri=/hello")
        self.assertEqual(status, 200, text)
        seen = json.loads(text)
        self.assertEqual((seen["path"], seen["headers"]["x-ms-client-principal-idp"]), ("/hello", "aad"))
        self.assertEqual(seen["headers"]["x-ms-client-principal-id"], "bob")
        self.assertNotIn("x-ms-token-aad-access-token", seen["headers"])
        self.auth("update", "--unauthenticated-client-action", "AllowAnonymous")
        cove.until("anonymous requests pass", lambda: Browser().get(self.site)[0] == 200)
        self.auth("update", "--enabled", "false")
        cove.until("nobody is named", lambda: "x-ms-client-principal" not in browser.get(self.site)[2])
        self.auth("update", "--enabled", "true", "--unauthenticated-client-action", "Return403")
        cove.until("403", lambda: Browser().get(self.site)[0] == 403)
        return browser

    def provider_that_is_down_is_told(self, provider):
        provider.stop()
        # another address: what was read of the first one is kept for a while
        self.auth(
            "openid-connect add", "--provider-name", "gone", "--client-id", CLIENT, "--client-secret", SECRET,
            "--openid-configuration", provider.discovery + "?gone", "--yes",
        )  # fmt: skip
        known = lambda: Browser().get(f"{self.site}/.auth/login/gone")  # noqa: E731
        cove.until("the provider is known", lambda: known()[0] != 404)
        status, headers, _ = known()
        self.assertEqual((status, headers["x-cove-reason"]), (503, "identity-provider-unavailable"))

    def session_outlives_the_server(self, browser):
        self.server.stop()
        self.server.start()
        site = f"http://{self.host}:{self.server.http.rsplit(':', 1)[1]}"
        status, _, text = browser.get(site)
        self.assertEqual((status, json.loads(text)["headers"]["x-ms-client-principal-id"]), (200, "bob"))
        self.assertEqual(Browser().get(site)[0], 403)


if __name__ == "__main__":
    unittest.main()
