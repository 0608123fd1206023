#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
import os
import sys
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs


class HelloTest(unittest.TestCase):
    def test_says_the_same_each_time(self):
        for workers in ("1", "2", "3"):
            done = programs.run("examples/hello", env={**os.environ, "WEFT_WORKERS": workers})
            self.assertEqual(done.stderr, "")
            self.assertEqual(done.stdout, "a fiber says over\n"
                                          "a fiber says under\n"
                                          "a fiber says over\n"
                                          "another was stopped by a knot\n")
            self.assertEqual(done.returncode, 0)


unittest.main()
