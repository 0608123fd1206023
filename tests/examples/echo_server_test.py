#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs

PROGRAM = "examples/echo_server"


def serve(**options):
    return programs.Server(PROGRAM, "--listen=127.0.0.1:0", **options)


def echo_and_end(peer, data):
    """What comes back until the end, if `data` and an end are sent meanwhile."""
    def send():
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    back = programs.receive_all(peer, len(data) + 1)
    sender.join()
    return back


class EchoServerTest(unittest.TestCase):
    def test_echoes_a_line_at_a_time(self):
        with serve() as server, server.connect() as peer:
            for line in (b"over\n", b"under\n", b"x" * 4095 + b"\n", b"y" * 4096 + b"\n"):
                peer.sendall(line)
                self.assertEqual(programs.receive_all(peer, len(line)), line)
            self.assertEqual(server.stop(), 0)

    def test_echoes_megabytes_and_then_the_end(self):
        data = os.urandom(4 << 20)
        with serve() as server, server.connect() as peer:
            self.assertEqual(echo_and_end(peer, data), data)
            self.assertEqual(server.stop(), 0)

    def test_echoes_to_socat(self):
        self.check_client([programs.tool("socat", "socat"), "-t60", "-", "TCP:{target}"])

    def test_echoes_to_netcat(self):
        self.check_client([programs.tool("nc", "netcat-openbsd"), "-N", "{host}", "{port}"])

    def check_client(self, command):
        data = os.urandom(300000)
        with serve() as server:
            host, port = server.address
            words = [word.format(target=server.target, host=host, port=port) for word in command]
            client = subprocess.run(words, input=data, stdout=subprocess.PIPE, check=False,
                                    timeout=programs.PATIENCE)
            self.assertEqual(client.stdout, data)
            self.assertEqual(client.returncode, 0)
            self.assertEqual(server.stop(), 0)

    def test_serves_hundreds_at_once_and_gives_their_descriptors_back(self):
        with serve() as server:
            with server.connect() as first:  # brings the poller with it
                first.sendall(b"!")
                self.assertEqual(first.recv(1), b"!")
            before = self.wait_for_descriptors(server, lambda _: True)
            peers = [server.connect() for _ in range(300)]
            for i, peer in enumerate(peers):
                peer.sendall(b"I am number %03d" % i)
            for i, peer in enumerate(peers):
                self.assertEqual(programs.receive_all(peer, 15), b"I am number %03d" % i)
            self.assertGreaterEqual(server.descriptors(), 300)
            for peer in peers:
                peer.close()
            self.wait_for_descriptors(server, lambda now: now <= before)
            self.assertEqual(server.stop(), 0)

    def wait_for_descriptors(self, server, is_reached):
        end = time.monotonic() + programs.PATIENCE
        while not is_reached(now := server.descriptors()):
            self.assertLess(time.monotonic(), end, f"{now} descriptors")
            time.sleep(0.01)
        return now

    def test_one_who_does_not_read_holds_up_nobody(self):
        with serve() as server, server.connect() as silent, server.connect() as other:
            silent.settimeout(1)
            with self.assertRaises(TimeoutError):
                while True:
                    silent.sendall(b"z" * 65536)
            other.sendall(b"over")
            self.assertEqual(programs.receive_all(other, 4), b"over")
            self.assertEqual(server.stop(), 0)

    def test_survives_resets(self):
        with serve() as server:
            for _ in range(50):
                peer = server.connect()
                peer.sendall(b"to be lost" * 1000)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()
            with server.connect() as peer:
                peer.sendall(b"over")
                self.assertEqual(programs.receive_all(peer, 4), b"over")
            self.assertEqual(server.stop(), 0)

    def test_ends_on_signals_with_connections_open(self):
        for how in (signal.SIGTERM, signal.SIGINT):
            with serve() as server:
                peers = [server.connect() for _ in range(20)]
                for peer in peers:
                    peer.sendall(b"over")
                    self.assertEqual(programs.receive_all(peer, 4), b"over")
                self.assertEqual(server.stop(how), 0)
                for peer in peers:
                    self.assertEqual(peer.recv(1), b"")
                    peer.close()

    @unittest.skipIf(programs.sanitizer(PROGRAM) == "asan", "it makes pipes to look whether memory is there")
    def test_ends_on_signals_though_no_descriptor_is_left(self):
        with serve() as server:
            enough = server.descriptors()
            self.assertEqual(server.stop(), 0)

        def limit_descriptors():
            resource.setrlimit(resource.RLIMIT_NOFILE, (enough, enough))

        for how in (signal.SIGTERM, signal.SIGINT):
            with serve(preexec_fn=limit_descriptors) as server, server.connect():
                self.assertEqual(server.stop(how), 0)

    def test_a_port_in_use_is_an_error_that_names_it(self):
        with socket.create_server(("127.0.0.1", 0)) as other:
            address = "127.0.0.1:%d" % other.getsockname()[1]
            done = programs.run(PROGRAM, f"--listen={address}")
            self.assertIn(address, done.stderr)
            self.assertIn("in use", done.stderr)
            self.assertEqual(done.stdout, "")
            self.assertEqual(done.returncode, 1)

    def test_bad_arguments_are_refused(self):
        for argument in ("--help", "--listen", "--listen=", "--listen=127.0.0.1", "--listen=127.0.0.1:x",
                         "--listen=127.0.0.1:65536", "127.0.0.1:0"):
            done = programs.run(PROGRAM, argument)
            self.assertNotEqual(done.stderr, "")
            self.assertEqual(done.stdout, "")
            self.assertEqual(done.returncode, 2, argument)


unittest.main()
