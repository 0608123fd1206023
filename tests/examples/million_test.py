#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
import os
import re
import resource
import sys
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs

PROGRAM = "examples/million"
SANITIZER = programs.sanitizer(PROGRAM)
# ThreadSanitizer knows some 8,000 fibers at most.
COUNT = 4000 if SANITIZER == "tsan" else 20000

OUTPUT = re.compile(r"(\d+) fibers parked at once after [0-9.e-]+ s\n"
                    r"(\d+) bytes a fiber: (\d+) resident, (\d+) of page tables\n"
                    r"(\d+) memory mappings, where vm.max_map_count allows (\d+)\n"
                    r"all released and ended after [0-9.e-]+ s more\n"
                    r"(no limit was met|a limit was met: .+)\n")


class MillionTest(unittest.TestCase):
    def check(self, *arguments):
        done = programs.run(PROGRAM, *arguments)
        self.assertEqual(done.stderr, "")
        match = OUTPUT.fullmatch(done.stdout)
        self.assertIsNotNone(match, done.stdout)
        self.assertEqual(int(match[1]), COUNT)
        self.assertEqual(int(match[2]), int(match[3]) + int(match[4]))
        self.assertLess(int(match[5]), int(match[6]))
        self.assertEqual(match[7], "no limit was met")
        self.assertEqual(done.returncode, 0)
        if not SANITIZER:
            # A page of stack, record, wait block, page tables; and what the process needs besides.
            self.assertLessEqual(int(match[2]), 4700 + 200)

    def test_parks_all_at_once(self):
        self.check(str(COUNT))

    def test_parks_all_at_once_with_one_worker(self):
        self.check(str(COUNT), "--workers=1")

    @unittest.skipIf(SANITIZER, "sanitizers need the address space for themselves")
    def test_names_the_limit_it_meets_and_goes_on(self):
        limit = 1 << 30

        def limit_address_space():
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        done = programs.run(PROGRAM, "100000", preexec_fn=limit_address_space)
        match = OUTPUT.fullmatch(done.stdout)
        self.assertIsNotNone(match, done.stdout + done.stderr)
        self.assertGreater(int(match[1]), 1000)
        self.assertLess(int(match[1]), 100000)
        self.assertTrue(match[7].startswith("a limit was met: "), match[7])
        self.assertIn("RLIMIT_AS", done.stderr)
        self.assertEqual(done.returncode, 1)

    def test_does_not_try_what_memory_cannot_hold(self):
        done = programs.run(PROGRAM, "1000000000")
        self.assertIn("a limit was met: memory", done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertEqual(done.returncode, 1)

    def test_bad_arguments_are_named(self):
        for argument in ("0", "-1", "many", "1e6", "--workers=0", "--workers=", "--worker=1", ""):
            done = programs.run(PROGRAM, argument)
            self.assertIn(f"'{argument}'", done.stderr)
            self.assertIn("usage: million", done.stderr)
            self.assertEqual(done.returncode, 2, argument)


unittest.main()
