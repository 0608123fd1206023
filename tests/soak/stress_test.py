#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
import os
import re
import sys
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs

PROGRAM = "tests/soak/stress"


class StressTest(unittest.TestCase):
    # Whatever the others promise of one primitive at a time would not hold of all of them at once.
    def test_random_rounds_lose_nothing(self):
        done = programs.run(PROGRAM, "--seconds=3")
        self.assertEqual(done.stderr, "", done.stdout)
        self.assertEqual(done.returncode, 0, done.stdout)
        lines = done.stdout.splitlines()
        self.assertEqual(lines[-1], "nothing failed")
        counts = programs.fields(lines[-2])
        for name in ("transfers", "events", "cancels", "connects", "echoes", "listeners"):
            self.assertGreater(int(counts[name]), 0, name)

    # A failure of an hour's run would be lost if its seed did not bring its round back.
    def test_a_seed_brings_its_round_back(self):
        rounds = [programs.run(PROGRAM, "--seed=12", "--rounds=1").stdout.splitlines()[0] for _ in range(2)]
        self.assertRegex(rounds[0], re.compile(r"round 1 seed=12 workers="))
        # All but what the allocator happened to keep.
        first, again = (line.split(" rss_mib=")[0] for line in rounds)
        self.assertEqual(first, again)

    def test_bad_arguments_are_refused(self):
        for argument in ("--seconds=x", "--seconds", "--speed=9", ""):
            self.assertEqual(programs.run(PROGRAM, argument).returncode, 2, argument)


unittest.main()
