"""A machine beside this one, one hop away: servers of a test that containers reach at the address that rules name.

Replicas reach nothing of this machine but Cove's own ports, so what they talk to stands where a user's database stands: at
an address elsewhere. The machine is a network namespace that lives as long as a process that keeps it. Needs root, `ip` and
`unshare`.
"""

import concurrent.futures
import ctypes
import ipaddress
import itertools
import os
import random
import subprocess
import threading

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
# a range for tests of networks (RFC 2544); each machine takes four addresses of it
RANGE = ipaddress.IPv4Network("198.18.0.0/15")
WITHIN_SECONDS = 120


class Machine:
    """Use it as a context manager; `address` is where its servers listen, `link` this machine's interface to it.

    Another `network` is for one that is not to look like a neighbour.
    """

    def __init__(self, network=RANGE):
        network = ipaddress.IPv4Network(network)
        self._ports, self.link = itertools.count(10001), None
        self._keeper = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo ready; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            if self._keeper.stdout.readline() != b"ready\n":
                raise OSError("`unshare --net` made no network namespace; the tests need root")
            first = self._connect(network)
            self.address = str(first + 2)
            _ip("address", "add", f"{first + 1}/30", "dev", self.link)
            _ip("link", "set", self.link, "up")
            self.inside(self._arrive)
        except BaseException:
            self.__exit__()
            raise

    def _connect(self, network):
        """Makes the link, at a place of the network that nobody has: other tests run beside this one."""
        places = network.num_addresses // 4
        begin = random.randrange(places)
        for place in range(begin, begin + places):
            first = network.network_address + 4 * (place % places)
            link = f"far{int(first):x}"
            try:
                _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", self._keeper.pid)
            except OSError:
                if not os.path.exists(f"/sys/class/net/{link}"):
                    raise
                continue
            self.link = link
            return first
        raise OSError(f"every place of {network} is taken")

    def _arrive(self):
        _ip("address", "add", f"{self.address}/30", "dev", "eth0")
        _ip("link", "set", "eth0", "up")
        _ip("link", "set", "lo", "up")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.link:
            subprocess.run(["ip", "link", "delete", self.link], capture_output=True, check=False)
        self._keeper.communicate()

    def port(self):
        """A port of its address that nobody has yet."""
        return next(self._ports)

    def inside(self, call):
        """Calls `call` there and gives what it gives: sockets and processes that it makes belong to that machine."""
        done = concurrent.futures.Future()

        def run():
            try:
                with open(f"/proc/{self._keeper.pid}/ns/net") as net:
                    if LIBC.setns(net.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

        # the thread alone moves, and ends there
        threading.Thread(target=run, daemon=True).start()
        return done.result(WITHIN_SECONDS)


def _ip(*arguments):
    done = subprocess.run(["ip", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(map(str, arguments))}: {done.stderr.strip()}")
