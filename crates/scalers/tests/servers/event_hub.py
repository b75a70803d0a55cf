"""A double of an Event Hubs namespace, as far as a scaler sees it: tokens at $cbs, hubs and partitions at $management.

It runs on Debian's python3-qpid-proton. Arguments: a port, the key of `RootManageSharedAccessKey`, then hubs as JSON:
{hub: [[beginning, last], ...]}. With two more, the files of a certificate and its key, it listens under TLS. Input: hubs as
JSON, answered by `ok`.
"""

import base64
import hashlib
import hmac
import json
import sys
import threading
import time
import urllib.parse

from proton import Array, Data, Message, SSLDomain, UNDESCRIBED, int32
from proton.handlers import MessagingHandler
from proton.reactor import Container

NAME = "RootManageSharedAccessKey"


def is_signed(token, key):
    if not token.startswith("SharedAccessSignature "):
        # a token of an identity: whoever has one may enter
        return token == "a token of https://eventhubs.azure.net/"
    fields = dict(field.split("=", 1) for field in token.split(" ", 1)[1].split("&"))
    signed = hmac.new(key.encode(), f"{fields['sr']}\n{fields['se']}".encode(), hashlib.sha256).digest()
    signature = base64.b64decode(urllib.parse.unquote(fields["sig"]))
    return fields["skn"] == NAME and int(fields["se"]) > time.time() and hmac.compare_digest(signature, signed)


class Namespace(MessagingHandler):
    def __init__(self, key, hubs, files):
        super().__init__()
        self.key, self.hubs, self.files = key, hubs, files
        self.entered = set()

    def on_start(self, event):
        domain = None
        if self.files:
            domain = SSLDomain(SSLDomain.MODE_SERVER)
            domain.set_credentials(*self.files, None)
            event.container.ssl.server = domain
        scheme = "amqps" if self.files else "amqp"
        self.acceptor = event.container.listen(f"{scheme}://127.0.0.1:{PORT}")
        print("ready", PORT, flush=True)

    def on_connection_bound(self, event):
        # Microsoft's client must be told
        event.transport.max_frame_size = 65536
        event.transport.channel_max = 255

    def on_link_opening(self, event):
        link = event.link
        link.source.address, link.target.address = link.remote_source.address, link.remote_target.address

    def on_message(self, event):
        asked, properties = event.message, event.message.properties
        if event.link.target.address == "$cbs":
            code, said, body = self.enter(event.connection, asked.body, properties)
        else:
            code, said, body = self.describe(event.connection, properties)
        answer = Message(body=body, correlation_id=asked.id)
        answer.properties = {"status-code": int32(code), "status-description": said}
        node = event.link.target.address
        for link in list(self.answers(event.connection, node)):
            link.send(answer)

    def answers(self, connection, node):
        link = connection.link_head(0)
        while link:
            if link.is_sender and link.source.address == node:
                yield link
            link = link.next(0)

    def enter(self, connection, token, properties):
        if properties["operation"] != "put-token" or not is_signed(token, self.key):
            return 401, "InvalidSignature: The token has an invalid signature.", None
        self.entered.add(connection.remote_container)
        return 202, "Accepted", None

    def describe(self, connection, properties):
        name, kind = properties["name"], properties["type"]
        if connection.remote_container not in self.entered:
            return 401, "Unauthorized access.", None
        if properties["operation"] != "READ" or name not in self.hubs:
            return 404, f"The messaging entity '{name}' could not be found.", None
        partitions = self.hubs[name]
        if kind == "com.microsoft:eventhub":
            ids = Array(UNDESCRIBED, Data.STRING, *[str(number) for number in range(len(partitions))])
            return 200, "OK", {"name": name, "partition_count": int32(len(partitions)), "partition_ids": ids, "created_at": 0}
        beginning, last = partitions[int(properties["partition"])]
        body = {"name": name, "partition": properties["partition"], "begin_sequence_number": beginning}
        body.update(last_enqueued_sequence_number=last, last_enqueued_offset="0", last_enqueued_time_utc=0)
        return 200, "OK", {**body, "is_partition_empty": last < 0}


def listen(namespace):
    for line in sys.stdin:
        namespace.hubs = json.loads(line)
        print("ok", flush=True)


if __name__ == "__main__":
    PORT = int(sys.argv[1])
    namespace = Namespace(sys.argv[2], json.loads(sys.argv[3]), sys.argv[4:6])
    threading.Thread(target=listen, args=[namespace], daemon=True).start()
    Container(namespace).run()
