#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What docs/testing.md says of its program is true: the planted race is found, and replays."""
import os
import re
import shlex
import sys
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs

GUIDE = "tests/testing_guide"


def run(*arguments):
    # Not what Bazel says to the test itself: where to write its report, which part to run.
    env = {name: value for name, value in os.environ.items()
           if not name.startswith(("GTEST_", "TEST_", "XML_", "WEFT_"))}
    return programs.run(GUIDE, *arguments, env=env)


class TestingGuideTest(unittest.TestCase):
    def assert_found_and_replayed(self, name, choice):
        first = run(f"--gtest_filter={name}")
        self.assertEqual(first.returncode, 1, first.stdout)
        command = re.search(r"To replay it:\n *(.*)\n", first.stdout).group(1)
        arguments = shlex.split(command)[1:]
        self.assertEqual(arguments[0], f"--gtest_filter={name}")
        self.assertRegex(arguments[1], f"^--{choice}=")
        again = run(*arguments)
        self.assertEqual(again.returncode, 1, again.stdout)
        self.assertIn("Expected: (is_mine) != (other.Join())", again.stdout)
        self.assertIn(command, again.stdout)

    def test_a_seed_finds_the_race_and_replays_it(self):
        self.assert_found_and_replayed("ShelfSimTest.TheLastItemIsSoldOnce", "seed")
        self.assert_found_and_replayed("ShelfSimTest.TheLastItemIsSoldOnceOnManySeeds", "seed")

    def test_an_exploration_finds_the_race_and_its_schedule_replays_it(self):
        self.assert_found_and_replayed("ShelfExploreTest.TheLastItemIsSoldOnce", "schedule")

    def test_everything_else_passes(self):
        # The race itself may show on a real runtime, too.
        done = run("--gtest_filter=-Shelf*")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"explored \d+ schedules: all with at most 2 preemptions and 0 late timers")
        self.assertIn("[  PASSED  ] 4 tests.", done.stdout)


unittest.main()
