"""A real ACME server, acme2certifier, over TLS on loopback: `acme_server.py DIRECTORY`.

It runs in an environment of its own (requirements-acme.txt). The folder holds `settings.json` (see acme.py) and gets the
server's database. Everything of the protocol is the server's own: nonces, signatures, orders, authorizations, http-01. Only
the world outside is stood in for, as there is no DNS and no port 80 in a test: every name below `.test` is this machine,
where plain HTTP and DNS are at the ports of `settings.json`, and `nowhere.test` does not exist.
"""

import json
import os
import pathlib
import ssl
import sys
import urllib.error
import urllib.request
import wsgiref.simple_server

CONFIG = """
[DEFAULT]
debug: False
[CAhandler]
handler_module: acme2certifier.cahandlers.openssl_ca_handler
issuing_ca_key: {folder}/ca.key
issuing_ca_cert: {folder}/ca.pem
issuing_ca_crl: {folder}/ca.crl
cert_save_path: {folder}/certificates
cert_validity_days: {days}
[DBhandler]
handler: wsgi
dbfile: {folder}/acme.db
[Challenge]
challenge_validation_timeout: 60
"""


def resolve(logger, host, dnssrv=None, catch_all=False):
    if host == "nowhere.test":
        return (None, True, "no such domain")
    return (["127.0.0.1"], False, None)


def fetch_from(port):
    def fetch(logger, host, path, pinned_ips, verify=True, timeout=20):
        request = urllib.request.Request(f"http://{pinned_ips[0]}:{port}{path}", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return (answer.read().decode(), answer.status, None)
        except urllib.error.HTTPError as error:
            return (None, error.code, str(error))
        except OSError as error:
            return (None, 500, str(error))

    return fetch


def records_of(port):
    """TXT records as a resolver on loopback tells them."""

    def txt(logger, fqdn, dns_srv=None):
        import dns.message
        import dns.query

        answer = dns.query.udp(dns.message.make_query(fqdn, "TXT"), "127.0.0.1", timeout=5, port=port)
        return [record.strings[0] for rrset in answer.answer for record in rrset]

    return txt


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def address_string(self):
        return self.client_address[0]

    def get_environ(self):
        return {**super().get_environ(), "HTTPS": "on"}


def main():
    folder = pathlib.Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "certificates").mkdir(exist_ok=True)
    config = folder / "acme_srv.cfg"
    config.write_text(CONFIG.format(folder=folder, days=settings["days"]))
    os.environ["ACME_SRV_CONFIGFILE"] = str(config)
    os.environ["ACME2CERTIFIER_BASE_DIR"] = str(folder)

    from acme2certifier.acme_srv import helper
    from acme2certifier.share import acme2certifier_wsgi as server

    helper.fqdn_resolve = resolve
    helper.url_get_dns_pinned = fetch_from(settings["http_port"])
    helper.txt_get = records_of(settings["dns_port"])
    listener = wsgiref.simple_server.make_server("127.0.0.1", settings["port"], server.application, handler_class=Quiet)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.pem", folder / "tls.key")
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    print("ready", listener.server_port, flush=True)
    listener.serve_forever()


if __name__ == "__main__":
    main()
