#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What gdb and perf show of fibers ends at the entry of the fiber's stack.

Else a profile has a garbage caller under every fiber, and a debugger says that the stack is corrupt.
"""

import os
import subprocess
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs

WITH_FRAME_POINTERS = "tests/contract/stacks"
WITHOUT = "tests/contract/stacks_o2"

# Boost.Context's layout: control words, r12 to r15, rbx, rbp, rip, from where the stack went on.
GO_TO_PARKED = [
    "set $saved = (unsigned long)parked_context",
    *[f"set ${name} = *(unsigned long*)($saved + {8 * (i + 1)})"
      for i, name in enumerate(["r12", "r13", "r14", "r15", "rbx", "rbp", "rip"])],
    "set $rsp = $saved + 64",
]


def command(*words):
    return subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=programs.PATIENCE, check=False)


class StacksTest(unittest.TestCase):
    def assert_ends_at_entry(self, frames, innermost, text):
        self.assertGreaterEqual(len(frames), 3, text)
        self.assertLess(len(frames), 30, text)
        self.assertTrue(any(innermost in frame for frame in frames), text)
        self.assertIn("FiberEntry", frames[-1], text)

    def test_gdb_sees_the_entry_of_a_fiber_that_runs_and_of_one_that_is_parked(self):
        gdb = programs.tool("gdb", "gdb")
        script = ["set debuginfod enabled off", "break RunsHere", "run", "bt", "echo ==parked\\n", *GO_TO_PARKED, "bt",
                  "kill"]
        words = [word for line in script for word in ("-ex", line)]
        for program in (WITH_FRAME_POINTERS, WITHOUT):
            with self.subTest(program):
                done = command(gdb, "-nx", "-batch", *words, programs.path(program))
                text = done.stdout
                if "ptrace: Operation not permitted" in text:
                    self.skipTest("gdb may not trace here: " + text)
                running, _, parked = text.partition("==parked")
                for part, innermost in ((running, "RunsHere"), (parked, "ParksHere")):
                    frames = [line for line in part.splitlines() if line.startswith("#")]
                    self.assert_ends_at_entry(frames, innermost, text)
                    self.assertNotIn("corrupt", part, text)
                    self.assertNotIn("??", "".join(frames), text)

    def test_perf_sees_the_entry(self):
        perf = programs.tool("perf", "linux-perf")
        record = [perf, "record", "--no-buildid-cache", "-q", "-e", "cpu-clock:u", "-F", "500"]
        with tempfile.TemporaryDirectory() as folder:
            data = os.path.join(folder, "perf.data")
            probe = command(*record, "-o", data, "true")
            if probe.returncode != 0:
                self.skipTest("perf may not sample here: " + probe.stdout)
            for program, way in ((WITH_FRAME_POINTERS, "fp"), (WITH_FRAME_POINTERS, "dwarf,4096"),
                                 (WITHOUT, "dwarf,4096")):
                with self.subTest(program=program, way=way):
                    done = command(*record, "--call-graph", way, "-o", data, programs.path(program), "100000000")
                    self.assertEqual(done.returncode, 0, done.stdout)
                    text = command(perf, "script", "--no-inline", "-F", "ip,sym", "-i", data).stdout
                    samples = [sample.strip().splitlines() for sample in text.split("\n\n")]
                    samples = [sample for sample in samples if sample and "RunsHere" in sample[0]]
                    self.assertGreater(len(samples), 5, text)
                    for sample in samples:
                        self.assert_ends_at_entry(sample, "RunsHere", "\n".join(sample))


if __name__ == "__main__":
    unittest.main()
