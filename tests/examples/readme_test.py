#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import sys
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs


class ReadmeTest(unittest.TestCase):
    def test_every_program_is_compiled(self):
        text = pathlib.Path(programs.path("README.md")).read_text()
        self.assertEqual(text.count("\n```cpp\n"), 2)
        self.assertEqual(text.count("\nint main() {\n"), 2)

    def test_the_scope_and_the_select_do_what_their_comments_say(self):
        for workers in ("1", "2"):
            done = programs.run("tests/readme_scope", env={**os.environ, "WEFT_WORKERS": workers})
            self.assertEqual((done.stderr, done.stdout, done.returncode),
                             ("", "120\nDEADLINE_EXCEEDED: deadline exceeded\npears\n", 0))


unittest.main()
