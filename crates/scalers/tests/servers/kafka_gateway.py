"""Logs clients in before a Kafka broker that cannot: SASL PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512, under TLS where files of a
certificate and its key are given. After the login every byte is passed on, both ways.

The broker must advertise this port. Input: `to PORT` of the broker, answered by `ok`. The user is `app`, the password `pencil`.
"""

import asyncio
import base64
import hashlib
import hmac
import os
import ssl
import struct
import sys

USER, PASSWORD = "app", "pencil"
HASHES = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}
MECHANISMS = ["PLAIN", *HASHES]
ROUNDS = 4096
API_VERSIONS, HANDSHAKE, AUTHENTICATE = 18, 17, 36
UNSUPPORTED_MECHANISM, FAILED = 33, 58
broker = None


def text(value):
    return struct.pack(">h", len(value)) + value.encode()


async def question(reader):
    (length,) = struct.unpack(">i", await reader.readexactly(4))
    frame = await reader.readexactly(length)
    api, version, number, name = struct.unpack(">hhih", frame[:10])
    return api, version, number, frame[10 + max(name, 0) :], struct.pack(">i", length) + frame


def answer(writer, number, body):
    writer.write(struct.pack(">ii", len(body) + 4, number) + body)


def token(of, error, message, data=""):
    number, version = of
    # version 1 adds how long the session lives: for ever
    life = struct.pack(">q", 0) if version else b""
    return number, struct.pack(">h", error) + text(message) + struct.pack(">i", len(data)) + data.encode() + life


class Refused(Exception):
    pass


async def step(reader, writer, last=None):
    """Sends the last answer, if any, and gives the client's next message."""
    if last is not None:
        answer(writer, *token(last[0], 0, "", last[1]))
        await writer.drain()
    api, version, number, body, _ = await question(reader)
    of = (number, version)
    if api != AUTHENTICATE:
        raise Refused(of)
    return of, body[4 : 4 + struct.unpack(">i", body[:4])[0]].decode()


def digest(key, message, name):
    return hmac.new(key, message.encode() if isinstance(message, str) else message, name).digest()


async def scram(reader, writer, name):
    of, first = await step(reader, writer)
    bare = first.split(",", 2)[2]
    fields = dict(field.split("=", 1) for field in bare.split(","))
    nonce, salt = fields["r"] + base64.b64encode(os.urandom(12)).decode(), os.urandom(16)
    challenge = f"r={nonce},s={base64.b64encode(salt).decode()},i={ROUNDS}"
    of, final = await step(reader, writer, (of, challenge))
    without_proof, proof = final.rsplit(",p=", 1)
    salted = hashlib.pbkdf2_hmac(name, PASSWORD.encode(), salt, ROUNDS)
    signed = f"{bare},{challenge},{without_proof}"
    signature = digest(hashlib.new(name, digest(salted, "Client Key", name)).digest(), signed, name)
    key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), signature))
    if fields["n"] != USER or not hmac.compare_digest(key, digest(salted, "Client Key", name)):
        raise Refused(of)
    return of, "v=" + base64.b64encode(digest(digest(salted, "Server Key", name), signed, name)).decode()


async def plain(reader, writer):
    of, message = await step(reader, writer)
    if message.split("\0") != ["", USER, PASSWORD]:
        raise Refused(of)
    return of, ""


async def log_in(reader, writer):
    while True:
        api, version, number, body, frame = await question(reader)
        if api == API_VERSIONS:
            # the broker knows best what it speaks
            its_reader, its_writer = await asyncio.open_connection("127.0.0.1", broker)
            its_writer.write(frame)
            (length,) = struct.unpack(">i", await its_reader.readexactly(4))
            writer.write(struct.pack(">i", length) + await its_reader.readexactly(length))
            its_writer.close()
            continue
        if api != HANDSHAKE:
            return False
        mechanism = body[2:].decode()
        known = struct.pack(">i", len(MECHANISMS)) + b"".join(map(text, MECHANISMS))
        error = 0 if mechanism in MECHANISMS else UNSUPPORTED_MECHANISM
        answer(writer, number, struct.pack(">h", error) + known)
        if error:
            return False
        try:
            of, last = await (plain(reader, writer) if mechanism == "PLAIN" else scram(reader, writer, HASHES[mechanism]))
        except Refused as refused:
            answer(writer, *token(refused.args[0], FAILED, "Authentication failed: invalid credentials"))
            return False
        answer(writer, *token(of, 0, "", last))
        return True


async def pipe(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve(reader, writer):
    try:
        if await log_in(reader, writer):
            its_reader, its_writer = await asyncio.open_connection("127.0.0.1", broker)
            await asyncio.gather(pipe(reader, its_writer), pipe(its_reader, writer))
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main():
    global broker
    context = None
    if len(sys.argv) > 1:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[1], sys.argv[2])
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        broker = int(line.split()[1])
        print("ok", flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
