#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Without this, a checker that sees nothing would pass for a suite that leaks nothing."""
import os
import re
import sys
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs

LEAKY = "tests/leaks/leaky"


class LeaksTest(unittest.TestCase):
    def leaks_of(self, test):
        """What one of leaky's tests is told to have left behind; it must be told to have failed."""
        done = programs.run(LEAKY, f"--gtest_filter=LeakyTest.{test}")
        self.assertIn(f"[  FAILED  ] LeakyTest.{test}", done.stdout, done.stderr)
        self.assertNotEqual(done.returncode, 0)
        return done.stdout

    def test_nothing_is_left(self):
        done = programs.run(LEAKY, "--gtest_filter=LeakyTest.Nothing*")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("[  PASSED  ] 3 tests.", done.stdout)

    def test_only_the_one_that_left_it_fails(self):
        done = programs.run(LEAKY, "--gtest_filter=LeakyTest.Descriptor:LeakyTest.NothingMore")
        self.assertIn("[  FAILED  ] LeakyTest.Descriptor", done.stdout)
        self.assertIn("[       OK ] LeakyTest.NothingMore", done.stdout)

    def test_descriptors(self):
        self.assertRegex(self.leaks_of("Descriptor"), r"left behind: descriptor \d+: /dev/zero\n")
        self.assertRegex(self.leaks_of("AnothersDescriptor"), r"closed, though another's: descriptor 0: ")

    @unittest.skipIf(programs.sanitizer(LEAKY), "mappings are not counted under sanitizers")
    def test_mappings(self):
        self.assertRegex(self.leaks_of("Mapping"), r"left behind: mapping of 12345 bytes, by .*LeakyTest_Mapping_Test")

    def test_records(self):
        said = self.leaks_of("Record")
        self.assertRegex(said, r"left behind: record of fiber \d+ .*\(spawned at .*leaky.cc:\d+\), which has ended, "
                               r"but its handle is still there")
        self.assertEqual(said.count("left behind"), 1, said)

    def test_stacks(self):
        said = self.leaks_of("Stack")
        self.assertIn("left behind: stack of 64 KiB", said)
        self.assertEqual(said.count("left behind"), 1, said)

    def test_threads(self):
        self.assertRegex(self.leaks_of("Thread"), r"left behind: thread \d+ 'leaky'")

    def test_fibers(self):
        said = self.leaks_of("FiberThatIsParked")
        self.assertRegex(said, r"left behind: record of fiber \d+.*\(spawned at .*leaky.cc:\d+\), which waits for event")
        self.assertRegex(said, "left behind: stack of (256|1024) KiB")  # sanitizers need more
        self.assertRegex(said, r"left behind: thread \d+ 'weft-worker'")


unittest.main()
