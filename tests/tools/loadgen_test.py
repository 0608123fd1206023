#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
import os
import resource
import socket
import sys
import threading
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs

PROGRAM = "tools/loadgen/loadgen"
SANITIZER = programs.sanitizer(PROGRAM)


def load(target, **options):
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return programs.run(PROGRAM, f"--target={target}", *arguments)


class LoadgenTest(unittest.TestCase):
    def check_success(self, done, connections, busy):
        self.assertEqual(done.stderr, "")
        self.assertEqual(done.returncode, 0, done.stdout)
        lines = done.stdout.splitlines()
        self.assertEqual(lines[0], f"open connections={connections}")
        result = programs.fields(lines[-1])
        self.assertEqual(result["connections"], str(connections))
        self.assertEqual(result["idle_alive"], f"{connections - busy}/{connections - busy}")
        self.assertEqual(result["errors"], "0")
        quantiles = [float(result[name]) for name in ("p50_us", "p99_us", "p999_us", "max_us")]
        self.assertEqual(quantiles, sorted(quantiles))
        if busy:
            self.assertGreater(int(result["echoes"]), 0)
            self.assertGreater(quantiles[0], 0)

    def check_failure(self, done):
        self.assertNotEqual(done.stderr, "")
        self.assertEqual(done.returncode, 1, done.stdout)
        result = programs.fields(done.stdout.splitlines()[-1])
        self.assertGreater(int(result["errors"]), 0)
        return result

    def test_loads_our_echo_server(self):
        with programs.Server("examples/echo_server", "--listen=127.0.0.1:0") as server:
            done = load(server.target, connections=200, busy=20, seconds=0.5, size=64, pipeline=4)
            self.check_success(done, 200, 20)
            done = load(server.target, connections=50, seconds=0.2, workers=1)
            self.check_success(done, 50, 50)
            done = load(server.target, connections=50, busy=0, seconds=0.2)
            self.check_success(done, 50, 0)
            self.assertEqual(server.stop(), 0)

    def test_loads_a_hand_written_epoll_server(self):
        with programs.Server("tools/bench/baselines/epoll_echo", "echo", "2", "0",
                             says_on="stderr") as server:
            done = load(server.target, connections=100, busy=20, seconds=0.3, size=5000, pipeline=3)
            self.check_success(done, 100, 20)
            self.assertEqual(server.stop(), 0)

    def test_loads_a_server_of_another_make(self):
        with programs.other_server(programs.echo) as target:
            done = load(target, connections=20, busy=5, seconds=0.3, size=100, pipeline=2)
            self.check_success(done, 20, 5)

    def test_messages_of_all_sizes(self):
        with programs.Server("examples/echo_server", "--listen=127.0.0.1:0") as server:
            for size, pipeline in ((1, 1), (1, 100), (4096, 1), (4097, 3), (65521, 2), (65536, 1),
                                   (65537, 1), (3, 10000), (2000000, 2)):
                # Long enough for one of the largest, with sanitizers on a busy machine.
                seconds = 2 if size > 1000000 else 0.1
                done = load(server.target, connections=3, busy=2, seconds=seconds, size=size, pipeline=pipeline)
                self.check_success(done, 3, 2)
            self.assertEqual(server.stop(), 0)

    def test_reports_progress_each_second(self):
        with programs.other_server(programs.echo) as target:
            done = load(target, connections=2, busy=1, seconds=2.5)
        self.check_success(done, 2, 1)
        progress = done.stdout.splitlines()[1:-1]
        self.assertEqual([line.split()[0] for line in progress], ["t=1s", "t=2s"])
        for line in progress:
            self.assertEqual(list(programs.fields(line)), ["t", "rps", "p50_us", "p99_us", "errors"])

    def test_a_corrupted_byte_is_an_error(self):
        def corrupt(peer, number):
            seen = 0
            while data := bytearray(peer.recv(1 << 16)):
                if number == 0 and seen <= 12345 < seen + len(data):
                    data[12345 - seen] ^= 1
                seen += len(data)
                peer.sendall(data)

        for pipeline in (1, 2000):  # in turn, at once
            with programs.other_server(corrupt) as target:
                done = load(target, connections=3, seconds=0.5, size=100, pipeline=pipeline)
            result = self.check_failure(done)
            self.assertEqual(result["errors"], "1")
            self.assertEqual(result["connections"], "2")
            self.assertIn("byte 12345 came back as", done.stderr)

    def test_echoes_to_the_wrong_connection_are_errors(self):
        first = []
        both = threading.Barrier(2, timeout=programs.PATIENCE)

        def cross(peer, number):
            if number == 0:
                first.append(peer)
            both.wait()
            if number == 1:
                first[0].sendall(peer.recv(64))
                return
            while peer.recv(1 << 16):
                pass

        with programs.other_server(cross) as target:
            done = load(target, connections=2, seconds=0.1)
        self.assertEqual(self.check_failure(done)["connections"], "0")
        self.assertIn("wrong echo", done.stderr)

    def test_bytes_that_were_not_asked_for_are_errors(self):
        def add_one(peer, number):
            data = peer.recv(64, socket.MSG_WAITALL)
            peer.sendall(data + b"!" * (number == 0))
            while peer.recv(1 << 16):
                pass
            peer.sendall(b"!" * (number > 0))

        with programs.other_server(add_one) as target:
            done = load(target, connections=3, busy=0, size=64)
        result = self.check_failure(done)
        self.assertEqual(result["idle_alive"], "3/3")
        self.assertEqual(result["connections"], "0")
        self.assertEqual(result["errors"], "3")
        self.assertIn("not sent", done.stderr)

    def test_a_server_that_closes_is_an_error(self):
        def close_soon(peer, number):
            if number == 1:
                peer.recv(1)
                return
            programs.echo(peer, number)

        with programs.other_server(close_soon) as target:
            done = load(target, connections=4, seconds=0.3)
        result = self.check_failure(done)
        self.assertEqual(result["connections"], "3")
        self.assertEqual(result["errors"], "1")

    def test_idle_connections_that_do_not_echo_are_lost(self):
        def ignore_idle(peer, number):
            if number < 2:
                programs.echo(peer, number)

        with programs.other_server(ignore_idle) as target:
            done = load(target, connections=4, busy=0)
        result = self.check_failure(done)
        self.assertEqual(result["idle_alive"], "2/4")
        self.assertEqual(result["connections"], "2")

    def test_a_refused_connection_is_named(self):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # and does not listen
            done = load("127.0.0.1:%d" % unused.getsockname()[1], connections=3, seconds=0.1)
        result = self.check_failure(done)
        self.assertEqual(result["connections"], "0")
        self.assertEqual(result["errors"], "3")
        self.assertIn("connection 0", done.stderr)
        self.assertIn("errno 111", done.stderr)

    def test_too_few_descriptors_are_named(self):
        def limit_descriptors():
            resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))

        done = programs.run(PROGRAM, "--target=127.0.0.1:1", "--connections=201",
                            preexec_fn=limit_descriptors)
        self.assertIn("at most 200 connections", done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertEqual(done.returncode, 1)

    @unittest.skipIf(SANITIZER, "one sees nothing in it, and takes its time to start")
    def test_bad_arguments_are_refused(self):
        good = {"--target": "127.0.0.1:1", "--connections": "1"}
        for name, value in (("--connections", "0"), ("--connections", "x"), ("--connections", "1.5"),
                            ("--busy", "2"), ("--busy", "-1"), ("--seconds", "0"), ("--seconds", "nan"),
                            ("--size", "0"), ("--pipeline", "0"), ("--workers", "0"),
                            ("--target", "nonsense"), ("--target", ""), ("--target", "127.0.0.1"),
                            ("--speed", "9")):
            arguments = [f"{name}={value}" for name, value in {**good, name: value}.items()]
            done = programs.run(PROGRAM, *arguments)
            self.assertIn("usage: loadgen", done.stderr)
            self.assertEqual(done.stdout, "")
            self.assertEqual(done.returncode, 2, arguments)
        for arguments in ([], ["--target=127.0.0.1:1"], ["--connections=1"],
                          ["--target=127.0.0.1:1", "--connections"]):
            self.assertEqual(programs.run(PROGRAM, *arguments).returncode, 2, arguments)


unittest.main()
