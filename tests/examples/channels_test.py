#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
import os
import sys
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs

# What each says, whatever the number of workers.
OUTPUTS = {
    "fan_in": "60 words, then silence\n",
    "pipeline": "the squares of 1 to 100 add up to 338350\n",
    "sieve": "".join(f"{n}\n" for n in range(2, 100) if all(n % d for d in range(2, n))),
    "trace_id": "".join(f"[request {i}] {what}\n" for i in (1, 2)
                        for what in ("cache of users", "users", "cache of orders", "orders"))
                + "[no request] done\n",
    "worker_pool": "".join(f"{n} takes {steps} steps\n" for n, steps in (
        (6, 8), (7, 16), (9, 19), (18, 20), (25, 23), (27, 111), (54, 112), (73, 115), (97, 118), (129, 121))),
}


class ChannelsTest(unittest.TestCase):
    def test_each_says_the_same_each_time(self):
        for name, output in OUTPUTS.items():
            for workers in ("1", "2", "3"):
                done = programs.run(f"examples/{name}", env={**os.environ, "WEFT_WORKERS": workers})
                self.assertEqual((done.stderr, done.stdout, done.returncode), ("", output, 0), name)

    def test_the_sieve_finds_as_many_as_it_is_told(self):
        for count in ("0", "1", "300"):
            done = programs.run("examples/sieve", count)
            self.assertEqual((done.stderr, done.returncode), ("", 0))
            self.assertEqual(len(done.stdout.split()), int(count))
        self.assertEqual(done.stdout.split()[-1], "1987")
        for arguments in (["-1"], ["x"], ["5x"], [""], ["1", "2"]):
            done = programs.run("examples/sieve", *arguments)
            self.assertIn("usage", done.stderr)
            self.assertEqual(done.returncode, 2, arguments)


unittest.main()
