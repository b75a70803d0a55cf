"""A double of a Service Bus namespace, on this machine: the parts that a scaler and a small consumer speak over HTTPS.

Management (ATOM, api-version 2021-05): one queue, one subscription, lists of both in pages of `$skip` and `$top`. Runtime:
`POST /ENTITY/messages` sends, `POST /ENTITY/messages/head` receives and locks, `DELETE` of the `Location` that it gives
completes, `DELETE /ENTITY/messages/head` receives and deletes; a locked message counts until it is completed, and locks do not
end. Every call is checked as Azure checks it: the shared access signature must be by a known key, must not have ended, and must
be for the resource or something above it.

As a program it prints `ready PORT CONTROL_PORT CA_FILE` and ends when its input ends:

    python3 servicebus.py [--directory DIR] [--address IP] [--name HOST]...

The control port speaks plain HTTP, for tests: `PUT /queues/NAME?active=5&dead=0&scheduled=0`, the same below
`/topics/TOPIC/subscriptions/NAME`, `DELETE` of both, `GET /queues/NAME` (the counts as JSON), `POST /queues/NAME/take?count=2`
(takes active messages, as a consumer would), `PUT /keys/NAME?key=SECRET`, `PUT /faults?delay_ms=0&status=0`, and
`GET /calls` (how many management calls came, and how many of them were refused).

Python's standard library and `openssl` for the certificates; nothing else.
"""

import argparse
import base64
import hashlib
import hmac
import http.server
import json
import pathlib
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid
from xml.sax.saxutils import escape

KEY_NAME = "RootManageSharedAccessKey"
KEY = "Y292ZS1kb3VibGUtb2Ytc2VydmljZS1idXMtMDAwMDE="

ENTRY = """<entry xmlns="http://www.w3.org/2005/Atom"><id>{id}</id><title type="text">{title}</title>\
<published>2026-01-01T00:00:00Z</published><updated>2026-01-01T00:00:01Z</updated><author><name>double</name></author>\
<link rel="self" href="{id}"/><content type="application/xml"><{kind} \
xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect" \
xmlns:i="http://www.w3.org/2001/XMLSchema-instance"><LockDuration>PT1M</LockDuration>\
<MaxDeliveryCount>10</MaxDeliveryCount><MessageCount>{total}</MessageCount><Status>Active</Status>\
<CountDetails xmlns:d2p1="http://schemas.microsoft.com/netservices/2011/06/servicebus">\
<d2p1:ActiveMessageCount>{active}</d2p1:ActiveMessageCount>\
<d2p1:DeadLetterMessageCount>{dead}</d2p1:DeadLetterMessageCount>\
<d2p1:ScheduledMessageCount>{scheduled}</d2p1:ScheduledMessageCount>\
<d2p1:TransferDeadLetterMessageCount>0</d2p1:TransferDeadLetterMessageCount>\
<d2p1:TransferMessageCount>0</d2p1:TransferMessageCount></CountDetails></{kind}></content></entry>"""

FEED = """<feed xmlns="http://www.w3.org/2005/Atom"><title type="text">{title}</title><id>{id}</id>\
<updated>2026-01-01T00:00:00Z</updated>{entries}</feed>"""


class Namespace:
    """Entities and keys; all methods may be called from any thread."""

    def __init__(self):
        self.lock = threading.Lock()
        self.keys = {KEY_NAME: KEY}
        self.queues = {}
        self.topics = {}
        self.locks = {}  # by entity, the tokens of its locked messages
        self.completed = 0
        self.delay_ms = 0
        self.status = 0
        self.calls = 0
        self.refused = 0

    def set_queue(self, name, active, dead=0, scheduled=0):
        with self.lock:
            self.queues[name.lower()] = {"name": name, "active": active, "dead": dead, "scheduled": scheduled}

    def set_subscription(self, topic, name, active, dead=0, scheduled=0):
        with self.lock:
            of_topic = self.topics.setdefault(topic.lower(), {})
            of_topic[name.lower()] = {"name": name, "active": active, "dead": dead, "scheduled": scheduled}

    def entity(self, path):
        """The entity of a path such as `orders` or `sales/subscriptions/europe`; None when there is none."""
        parts = path.lower().split("/")
        if len(parts) == 3 and parts[1] == "subscriptions":
            return self.topics.get(parts[0], {}).get(parts[2])
        return self.queues.get(path.lower())

    def take(self, path, count):
        """Takes up to `count` active messages; how many it were, or None when there is no such entity."""
        with self.lock:
            entity = self.entity(path)
            if entity is None:
                return None
            taken = min(count, entity["active"] - len(self.locks.get(path.lower(), ())))
            entity["active"] -= taken
            return taken

    def lock_one(self, path):
        """The token of a message that nobody else gets now, "" when there is none, None when there is no such entity."""
        with self.lock:
            entity = self.entity(path)
            if entity is None:
                return None
            locks = self.locks.setdefault(path.lower(), set())
            if len(locks) >= entity["active"]:
                return ""
            token = str(uuid.uuid4())
            locks.add(token)
            return token

    def complete(self, path, token):
        """Removes a message that is locked by the token; whether there was one."""
        with self.lock:
            entity, locks = self.entity(path), self.locks.get(path.lower(), set())
            if entity is None or token not in locks:
                return False
            locks.remove(token)
            entity["active"] -= 1
            self.completed += 1
            return True


def refusal(namespace, header, host, path):
    """Why a shared access signature does not do, or None when it does."""
    scheme, _, fields = (header or "").partition(" ")
    if scheme != "SharedAccessSignature":
        return "MissingToken: the call has no shared access signature"
    try:
        raw = dict(field.split("=", 1) for field in fields.split("&"))
        resource, signature, until, name = (raw[key] for key in ("sr", "sig", "se", "skn"))
    except (ValueError, KeyError):
        return "MalformedToken: expected sr, sig, se and skn"
    key = namespace.keys.get(urllib.parse.unquote(name))
    if key is None:
        return "InvalidSignature: there is no such key"
    wanted = hmac.new(key.encode(), f"{resource}\n{until}".encode(), hashlib.sha256).digest()
    if not hmac.compare_digest(base64.b64encode(wanted).decode(), urllib.parse.unquote(signature)):
        return "InvalidSignature: the token has an invalid signature"
    if not until.isdigit() or int(until) <= time.time():
        return "ExpiredToken: the token is expired"
    granted = urllib.parse.unquote(resource).lower().split("://", 1)[-1].rstrip("/")
    asked = f"{host}{path}".lower().rstrip("/")
    if asked != granted and not asked.startswith(granted + "/"):
        return "InvalidAudience: the token is for another resource"
    return None


class Handler(http.server.BaseHTTPRequestHandler):
    """What both ports have in common."""

    protocol_version = "HTTP/1.1"
    timeout = 120
    namespace: Namespace

    def log_message(self, *_):
        pass

    def answer(self, status, body="", media_type="application/atom+xml;type=entry;charset=utf-8", headers=None):
        data = body.encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def split(self):
        url = urllib.parse.urlsplit(self.path)
        query = {key: values[-1] for key, values in urllib.parse.parse_qs(url.query).items()}
        return urllib.parse.unquote(url.path).strip("/"), query, url.path

    def drain(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))


class Bus(Handler):
    """The namespace's own port."""

    def error(self, status, detail):
        self.answer(status, f"<Error><Code>{status}</Code><Detail>{escape(detail)}</Detail></Error>", "application/xml")

    def permitted(self, raw_path):
        space = self.namespace
        with space.lock:
            space.calls += 1
            delay_ms, status = space.delay_ms, space.status
        if delay_ms:
            time.sleep(delay_ms / 1000)  # a slow service is what the test asked for
        if status:
            self.error(status, "the double was told to fail")
            return False
        why = refusal(space, self.headers.get("Authorization"), self.headers.get("Host"), raw_path)
        if why:
            with space.lock:
                space.refused += 1
            self.error(401, why)
        return why is None

    def entry(self, kind, path, entity):
        total = entity["active"] + entity["dead"] + entity["scheduled"]
        address = f"https://{self.headers.get('Host')}/{urllib.parse.quote(path)}?api-version=2021-05"
        return ENTRY.format(id=escape(address), title=escape(entity["name"]), kind=kind, total=total, **{
            key: entity[key] for key in ("active", "dead", "scheduled")
        })

    def page(self, title, kind, entities, query):
        skip, top = int(query.get("$skip", 0)), min(int(query.get("$top", 100)), 100)
        shown = sorted(entities, key=lambda item: item[1]["name"])[skip : skip + top]
        entries = "".join(self.entry(kind, path, entity) for path, entity in shown)
        self.answer(200, FEED.format(title=title, id=escape(self.path), entries=entries))

    def do_GET(self):
        path, query, raw_path = self.split()
        if not self.permitted(raw_path):
            return
        if "api-version" not in query:
            return self.error(400, "api-version is missing")
        space, parts = self.namespace, path.split("/")
        with space.lock:
            if path.lower() == "$resources/queues":
                return self.page("Queues", "QueueDescription", list(space.queues.items()), query)
            if len(parts) == 2 and parts[1].lower() == "subscriptions":
                if parts[0].lower() not in space.topics:
                    return self.error(404, f"the topic {parts[0]} could not be found")
                found = [(f"{path}/{name}", one) for name, one in space.topics[parts[0].lower()].items()]
                return self.page("Subscriptions", "SubscriptionDescription", found, query)
            entity = space.entity(path)
            if entity is None and len(parts) == 3:
                return self.error(404, f"the subscription {path} could not be found")
            if entity is None:  # Azure answers so for a queue that is not there
                return self.answer(200, FEED.format(title="Publicly Listed Services", id=escape(self.path), entries=""))
            kind = "SubscriptionDescription" if len(parts) == 3 else "QueueDescription"
            return self.answer(200, self.entry(kind, path, entity))

    def do_POST(self):
        path, _, raw_path = self.split()
        self.drain()
        if not self.permitted(raw_path):
            return
        if path.endswith("/messages/head"):
            return self.receive(path, raw_path)
        with self.namespace.lock:
            entity = self.namespace.entity(path.removesuffix("/messages"))
            if entity is None or not path.endswith("/messages"):
                return self.error(404, "there is no such entity")
            entity["active"] += 1
        self.answer(201)

    def receive(self, path, raw_path):
        token = self.namespace.lock_one(path.removesuffix("/messages/head"))
        if token is None:
            return self.error(404, "there is no such entity")
        if not token:
            return self.answer(204)
        place = f"https://{self.headers.get('Host')}{raw_path.removesuffix('head')}{uuid.uuid4().hex}/{token}"
        properties = json.dumps({"DeliveryCount": 1, "LockToken": token, "State": "Active"})
        self.answer(201, "message", "text/plain", {"Location": place, "BrokerProperties": properties})

    def do_DELETE(self):
        path, _, raw_path = self.split()
        if not self.permitted(raw_path):
            return
        parts = path.rsplit("/", 3)
        if len(parts) == 4 and parts[1] == "messages":
            is_done = self.namespace.complete(parts[0], parts[3])
            return self.answer(200) if is_done else self.error(404, "there is no message with this lock")
        taken = self.namespace.take(path.removesuffix("/messages/head"), 1)
        if taken is None:
            return self.error(404, "there is no such entity")
        self.answer(200 if taken else 204, "message" if taken else "", "text/plain")


class Control(Handler):
    """The port of the test."""

    def said(self, status, value):
        self.answer(status, json.dumps(value), "application/json")

    def place(self):
        path, query, _ = self.split()
        parts = path.split("/")
        entity = None
        if parts[0] == "queues" and len(parts) >= 2:
            entity = parts[1]
        elif parts[0] == "topics" and len(parts) >= 4:
            entity = f"{parts[1]}/subscriptions/{parts[3]}"
        return parts, query, entity

    def do_PUT(self):
        self.drain()
        parts, query, entity = self.place()
        space = self.namespace
        counts = [int(query.get(key, 0)) for key in ("active", "dead", "scheduled")]
        if parts[0] == "keys":
            with space.lock:
                space.keys[parts[1]] = query["key"]
        elif parts[0] == "faults":
            with space.lock:
                space.delay_ms, space.status = int(query.get("delay_ms", 0)), int(query.get("status", 0))
        elif entity and parts[0] == "queues":
            space.set_queue(parts[1], *counts)
        elif entity:
            space.set_subscription(parts[1], parts[3], *counts)
        else:
            return self.said(404, {"error": "expected queues, topics, keys or faults"})
        self.said(200, {})

    def do_GET(self):
        parts, _, entity = self.place()
        space = self.namespace
        with space.lock:
            if parts[0] == "calls":
                return self.said(200, {"calls": space.calls, "refused": space.refused})
            found = entity and space.entity(entity)
            self.said(200 if found else 404, found or {})

    def do_POST(self):
        self.drain()
        parts, query, entity = self.place()
        taken = self.namespace.take(entity, int(query.get("count", 1))) if entity and parts[-1] == "take" else None
        self.said(404 if taken is None else 200, {"taken": taken})

    def do_DELETE(self):
        parts, _, entity = self.place()
        with self.namespace.lock:
            if parts[0] == "queues":
                gone = self.namespace.queues.pop(parts[1].lower(), None)
            else:
                gone = self.namespace.topics.get(parts[1].lower(), {}).pop(parts[-1].lower(), None)
        self.said(200 if gone and entity else 404, {})


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a client that went away, or that does not trust the certificate


class ServiceBus:
    """The double, running; a context manager."""

    def __init__(self, directory=None, address="127.0.0.1", names=()):
        self._folder = None if directory else tempfile.TemporaryDirectory(prefix="cove-servicebus-")
        self.directory = pathlib.Path(directory or self._folder.name)
        self.namespace = Namespace()
        self.ca = self.directory / "ca.pem"
        self._certificates([f"IP:{ip}" for ip in {address, "127.0.0.1"}] + [f"DNS:{name}" for name in ("localhost", *names)])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "server.pem", self.directory / "server.key")
        self._bus = Server((address, 0), type("OwnBus", (Bus,), {"namespace": self.namespace}))
        # the handshake happens in the connection's own thread: one that stalls holds up nobody
        self._bus.socket = context.wrap_socket(self._bus.socket, server_side=True, do_handshake_on_connect=False)
        self._control = Server((address, 0), type("OwnControl", (Control,), {"namespace": self.namespace}))
        self.address = address
        self.port = self._bus.server_address[1]
        self.control_port = self._control.server_address[1]
        for server in (self._bus, self._control):
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def connection_string(self, key_name=KEY_NAME):
        key = self.namespace.keys[key_name]
        host = f"{self.address}:{self.port}"
        return f"Endpoint=sb://{host}/;SharedAccessKeyName={key_name};SharedAccessKey={key}"

    def close(self):
        for server in (self._bus, self._control):
            server.shutdown()
            server.server_close()
        if self._folder:
            self._folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _certificates(self, names):
        def openssl(*arguments):
            subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=self.directory)

        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=double CA",
                "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
        openssl("req", "-new", *curve, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=double")
        extensions = f"subjectAltName={','.join(names)}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n"
        (self.directory / "server.ext").write_text(extensions)
        openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                "-out", "server.pem", "-extfile", "server.ext")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--name", action="append", default=[])
    given = parser.parse_args()
    with ServiceBus(given.directory, given.address, given.name) as double:
        print(f"ready {double.port} {double.control_port} {double.ca}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
