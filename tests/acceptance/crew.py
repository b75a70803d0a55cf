"""Replicas that do the work of a queue, as a test sees them: who is there, what each is allowed to do, what each has done.

On a virtual clock work takes no time: replicas would empty a queue between two polls. So they wait until the test allows
each of them a share, which stands for the time that the work takes. They report to a Redis of their own, beside the sources.
"""

import subprocess

import cove
import python_image
from resp import Redis

IMAGE = "cove.local/workers:latest"


def import_into(server, *clients):
    """Makes the image of `workers.py` known to the server, with the packages that its kinds need."""
    python_image.import_into(server, IMAGE, clients=clients, main="workers.py")


class Crew:
    """Where replicas report; a context manager."""

    def __init__(self, machine):
        self.address = f"{machine.address}:{machine.port()}"
        host, port = self.address.split(":")
        self._ask = None
        command = ["redis-server", "--port", port, "--bind", host, "--save", "", "--protected-mode", "no"]
        self._process = machine.inside(
            lambda: subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        )
        try:
            self._ask = cove.until("the crew's Redis answers", lambda: self._connect(host, port))
        except BaseException:
            self.__exit__()
            raise

    def _connect(self, host, port):
        if self._process.poll() is not None:
            raise RuntimeError(f"redis-server ended with {self._process.returncode}")
        try:
            return Redis(host, port)
        except OSError:
            return None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._ask:
            self._ask.close()
        self._process.kill()
        self._process.wait(30)

    def variables(self, source):
        """Of a container that works at `source`."""
        return [f"SOURCE={source}", f"CREW={self.address}"]

    def done(self, app):
        """Jobs that each replica has done since `begin`."""
        return {name: int(count) for name, count in self._pairs(f"done:{app}").items()}

    def _pairs(self, key):
        pairs = self._ask("HGETALL", key)
        return dict(zip(pairs[::2], pairs[1::2]))

    def come(self, app, count):
        """Waits until so many replicas are there; gives their names."""
        return list(cove.until(f"{count} replicas of {app} are at work", lambda: self._if(count, self.done(app)), 120))

    def settle(self, app, count, parts):
        """Waits until so many replicas have so many parts of the source each."""
        told = lambda: self._if(count, [one for one in self._pairs(f"parts:{app}").values() if one == str(parts)])
        cove.until(f"each of {count} replicas of {app} has {parts} parts", told, 120)

    def _if(self, count, found):
        return found if len(found) == count else None

    def begin(self, app):
        """Forgets the replicas that are gone."""
        self._ask("DEL", f"done:{app}", f"parts:{app}")

    def work(self, app, share):
        """Lets each replica that is there do `share` jobs, waits until they are done, and says how many each did."""
        names = list(self.done(app))
        for name in names:
            self._ask("RPUSH", f"tap:{name}", str(share))
        jobs = share * len(names)
        cove.until(f"{app} has done {jobs} jobs", lambda: sum(self.done(app).values()) >= jobs, 120)
        return self.done(app)
