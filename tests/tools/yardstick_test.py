#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
import os
import re
import signal
import sys
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs

PROGRAM = "tools/bench/yardstick"
LINE = re.compile(r"weft (\w+) (\d+) (\d+) wall_ns=(\d+) ns_per_op=([0-9.]+) cpu_ms=([0-9.]+) "
                  r"rss_peak_kb=(\d+) extra=(\S+)\n")


class YardstickTest(unittest.TestCase):
    def test_every_workload_says_one_line(self):
        sizes = {"spawn_join": 2000, "spawn_many": 2000, "yield": 2000, "yield1k": 5000, "pingpong": 2000,
                 "chan": 5001, "mpmc": 5001, "mutex": 2000, "skynet": 1000, "sleep": 200, "park": 2000, "hog": 1}
        for workload, n in sizes.items():
            for workers in (1, 2):
                done = programs.run(PROGRAM, workload, str(workers), str(n))
                self.assertEqual(done.stderr, "")
                self.assertEqual(done.returncode, 0, workload)
                match = LINE.fullmatch(done.stdout)
                self.assertIsNotNone(match, done.stdout)
                self.assertEqual(match.group(1, 2, 3), (workload, str(workers), str(n)))
                self.assertGreater(int(match[4]), 0)
                extra = dict(word.split("=") for word in match[8].split(","))
                if workload == "park":
                    self.assertGreaterEqual(int(extra["rss_per_fiber_bytes"]), 0)
                if workload == "hog":
                    self.assertGreaterEqual(float(extra["max_gap_ms"]), 1)
                    self.assertGreaterEqual(int(match[4]), 10**9)

    def test_a_workload_that_is_unknown_says_so(self):
        done = programs.run(PROGRAM, "knit", "1", "10")
        self.assertEqual(done.stdout, "weft knit 1 10 unsupported=unknown_workload\n")
        self.assertEqual(done.returncode, 3)

    def test_bad_arguments_are_refused(self):
        for arguments in ([], ["yield"], ["yield", "1"], ["yield", "0", "1"], ["yield", "1", "x"],
                          ["yield", "1", "0"], ["echo", "1", "65536"], ["yield", "1", "1", "1"]):
            done = programs.run(PROGRAM, *arguments)
            self.assertNotEqual(done.stderr, "")
            self.assertEqual(done.stdout, "")
            self.assertEqual(done.returncode, 2, arguments)

    def test_the_echo_servers_echo_until_they_are_stopped(self):
        for program in (PROGRAM, "tools/bench/baselines/epoll_echo"):
            for how in (signal.SIGTERM, signal.SIGINT):
                with programs.Server(program, "echo", "2", "0", says_on="stderr") as server:
                    with server.connect() as peer:
                        for data in (b"over", b"x" * 4096, os.urandom(100000)):
                            peer.sendall(data)
                            self.assertEqual(programs.receive_all(peer, len(data)), data)
                        self.assertEqual(server.stop(how), 0)


unittest.main()
