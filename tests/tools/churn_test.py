#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
import os
import socket
import sys
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs

PROGRAM = "tools/loadgen/churn"
SANITIZER = programs.sanitizer(PROGRAM)
# AddressSanitizer keeps what was freed for a while, which looks like growth.
SLACK_KIB = 500_000 if SANITIZER else 4096


def churn(target, server, **options):
    options = {"held": 500, "per-second": 100 if SANITIZER else 300, "seconds": 3, "slack-kib": SLACK_KIB, **options}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return programs.run(PROGRAM, f"--target={target}", f"--server={server}", *arguments)


class ChurnTest(unittest.TestCase):
    # Would not hold if one that comes and goes could take another's place, bytes or wake-up with it.
    def test_those_who_stay_and_those_who_go_are_all_served(self):
        with programs.Server("examples/echo_server", "--listen=127.0.0.1:0") as server:
            done = churn(server.target, server.pid)
            self.assertEqual(done.stderr, "")
            self.assertEqual(done.returncode, 0, done.stdout)
            lines = done.stdout.splitlines()
            self.assertEqual(lines[0], "held connections=500")
            result = programs.fields(lines[-1])
            self.assertEqual(result["held_alive"], "500/500")
            self.assertEqual(len(set(result["visitors"].split("/"))), 1)
            self.assertEqual((result["lost"], result["wrong"]), ("0", "0"))
            self.assertEqual((result["flat"], result["descriptors"]), ("yes", "ok"))
            self.assertEqual(server.stop(), 0)


# What is wrong with a server would go unnoticed. Nothing of it depends on a sanitizer.
@unittest.skipIf(SANITIZER, "runs without one")
class BadServerTest(unittest.TestCase):
    def check_failure(self, done):
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        return programs.fields(done.stdout.splitlines()[-1])

    def test_a_lost_connection_is_an_error(self):
        def drop_one(peer, number):
            if number == 7:
                peer.sendall(programs.receive_all(peer, 64))
            else:
                programs.echo(peer, number)

        with programs.other_server(drop_one) as target:
            done = churn(target, os.getpid(), held=20, seconds=1, **{"per-second": 20})
        result = self.check_failure(done)
        self.assertEqual((result["held_alive"], result["lost"], result["wrong"]), ("19/20", "1", "0"))

    def test_a_wrong_byte_is_an_error(self):
        def corrupt(peer, number):
            while data := bytearray(peer.recv(1 << 16)):
                if number == 25:
                    data[0] ^= 1
                peer.sendall(data)

        with programs.other_server(corrupt) as target:
            done = churn(target, os.getpid(), held=20, seconds=1, **{"per-second": 20})
        result = self.check_failure(done)
        self.assertEqual((result["held_alive"], result["lost"], result["wrong"]), ("20/20", "0", "1"))
        self.assertEqual(result["visitors"], "19/20")

    def test_a_server_that_grows_is_an_error(self):
        kept = []

        def keep(peer, number):
            if number >= 20:
                kept.append(os.urandom(1 << 20))
            programs.echo(peer, number)

        with programs.other_server(keep) as target:
            done = churn(target, os.getpid(), held=20, seconds=3, **{"per-second": 20, "slack-kib": 4096})
        self.assertEqual(self.check_failure(done)["flat"], "no")

    def test_a_server_that_keeps_descriptors_is_an_error(self):
        kept = []

        def keep(peer, number):
            if number == 25:  # more than what starting a process holds for a moment
                kept.extend(socket.socket() for _ in range(20))
            programs.echo(peer, number)

        with programs.other_server(keep) as target:
            done = churn(target, os.getpid(), held=20, seconds=1, **{"per-second": 20})
        self.assertEqual(self.check_failure(done)["descriptors"], "kept")
        for one in kept:
            one.close()


unittest.main()
