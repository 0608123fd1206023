# SPDX-License-Identifier: Apache-2.0
"""Runs Weft's programs, and the other ends they are tested against."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import threading

# Long enough for a sanitizer on a busy machine; nothing waits for it to pass.
PATIENCE = 120


def path(program):
    """Where a file named in the test's `data` is: "examples/hello"."""
    return os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], program)


def sanitizer(program):
    """"asan", "tsan" or ""."""
    binary = pathlib.Path(path(program)).read_bytes()
    return "tsan" if b"__tsan_init" in binary else "asan" if b"__asan_init" in binary else ""


def run(program, *arguments, **options):
    """Runs a program to its end."""
    return subprocess.run([path(program), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, timeout=PATIENCE, check=False, **options)


def tool(name, package):
    """A program of the machine's: without it the test fails."""
    found = shutil.which(name)
    if found is None:
        raise AssertionError(f"{name} is missing: apt-get install {package}")
    return found


def fields(line):
    """The NAME=VALUE words of a line."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def receive_all(peer, size):
    """Exactly `size` bytes, or fewer if the stream ends."""
    data = bytearray()
    while len(data) < size:
        part = peer.recv(min(size - len(data), 1 << 16))
        if not part:
            break
        data += part
    return bytes(data)


class Server:
    """A server of ours that says "listening on HOST:PORT", on stdout or (`says_on="stderr"`) there."""

    def __init__(self, program, *arguments, says_on="stdout", **options):
        self._process = subprocess.Popen([path(program), *arguments], text=True,
                                         **{says_on: subprocess.PIPE}, **options)
        said = getattr(self._process, says_on)
        line = said.readline()
        if not line.startswith("listening on "):
            self._process.kill()
            raise AssertionError(f"{program} said {line!r} and ended with {self._process.wait()}")
        self.target = line.split()[2]
        host, port = self.target.rsplit(":", 1)
        self.address = (host, int(port))
        # What it says later, so that the pipe does not fill up.
        self._listener = threading.Thread(target=said.read)
        self._listener.start()

    @property
    def pid(self):
        return self._process.pid

    def connect(self):
        return socket.create_connection(self.address, timeout=PATIENCE)

    def descriptors(self):
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def stop(self, how=signal.SIGTERM):
        """Its exit status."""
        self._process.send_signal(how)
        status = self._process.wait(timeout=PATIENCE)
        self._listener.join()
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def other_server(serve):
    """An echo server of another make: serve(peer, number) has a thread a connection. Gives its target."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    threads = []
    peers = []

    def serve_one(peer, number):
        with peer, contextlib.suppress(OSError):
            serve(peer, number)

    def accept():
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return  # shut down
            thread = threading.Thread(target=serve_one, args=(peer, len(threads)), daemon=True)
            threads.append(thread)
            peers.append(peer)
            thread.start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield "127.0.0.1:%d" % listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        listener.close()
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def echo(peer, _):
    """What other_server() serves if it is to serve well."""
    while data := peer.recv(1 << 16):
        peer.sendall(data)
