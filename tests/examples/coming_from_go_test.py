#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import re
import sys
import textwrap
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs

PAGE = "docs/coming_from_go.md"
SOURCE = "examples/coming_from_go.cc"
OUTPUT = """\
spawned: 42
received: 45, OK
closed and drained
job 7
nothing to do
waited enough
waited enough again
sent
select: OK
parts: 0 6 12
hits: 10
group: NOT_FOUND: page 3
scope: DEADLINE_EXCEEDED
child: CANCELLED: enough
user: gopher
recovered: a panic
deferred
time: OK
"""


def stands_in(snippet, source):
    """Whether it does so letter by letter, but for one indentation of all its lines."""
    return any("\n" + textwrap.indent(snippet, " " * width) in source for width in (0, 2, 4, 6))


class ComingFromGoTest(unittest.TestCase):
    def test_every_snippet_stands_in_what_is_compiled(self):
        source = pathlib.Path(programs.path(SOURCE)).read_text()
        snippets = re.findall(r"^```cpp\n(.*?)^```$", pathlib.Path(programs.path(PAGE)).read_text(), re.M | re.S)
        self.assertGreater(len(snippets), 15)
        for snippet in snippets:
            self.assertTrue(stands_in(snippet, source), f"not in {SOURCE}:\n{snippet}")
        self.assertFalse(stands_in(snippets[0].replace("done", "over"), source))

    def test_does_what_the_page_says(self):
        for workers in ("1", "2"):
            done = programs.run("examples/coming_from_go", env={**os.environ, "WEFT_WORKERS": workers})
            self.assertEqual((done.stderr, done.stdout, done.returncode), ("", OUTPUT, 0))


unittest.main()
