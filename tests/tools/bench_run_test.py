#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tests/tools"))
import programs

PROGRAM = "tools/bench/run"
BINARIES = ("tools/bench/yardstick", "tools/bench/baselines/epoll_echo", "tools/loadgen/loadgen")

# Stands in for the Go program, which takes a compiler to build.
OTHER = """#!/bin/bash
if [[ "$1" == echo ]]; then exec "$(dirname "$0")/epoll_echo" "$@"; fi
echo "go $1 $2 $3 wall_ns=5 ns_per_op=${OTHER_NS:-7.25} cpu_ms=1.00 rss_peak_kb=2048 \
extra=rss_per_fiber_bytes=2700,max_gap_ms=20.125,go1.21.0"
"""


class BenchRunTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        for binary in BINARIES:
            (self.folder / os.path.basename(binary)).symlink_to(os.path.realpath(programs.path(binary)))

    def run_quick(self, *arguments):
        return programs.run(PROGRAM, "--quick", f"--binaries={self.folder}", *arguments)

    def add_other(self, text):
        other = self.folder / "yardstick_go"
        other.write_text(text)
        other.chmod(0o755)

    def rows(self, done):
        """{first cell: other cells} of the tables."""
        self.assertEqual(done.returncode, 0, done.stderr)
        cells = [[cell.strip() for cell in line.strip("|").split("|")]
                 for line in done.stdout.splitlines() if line.startswith("|")]
        return {row[0]: row[1:] for row in cells}

    def test_leaves_out_what_is_not_there(self):
        rows = self.rows(self.run_quick("yield", "echo"))
        self.assertEqual([bool(cell) for cell in rows["yield"]], [True, True, False, False])
        self.assertEqual([bool(cell) for cell in rows["echo, 20 connections"]], [True, True, False, False, True, True])

    def test_shows_what_each_row_is_about(self):
        self.add_other(OTHER)
        rows = self.rows(self.run_quick())
        for name in ("spawn_join", "spawn_many", "yield", "yield1k", "pingpong", "chan", "mpmc", "mutex",
                     "skynet, and resident", "sleep, CPU a fiber", "park, and resident a fiber", "hog, longest gap"):
            self.assertEqual(len(rows[name]), 4, name)
            self.assertTrue(all(rows[name]), name)
        self.assertEqual(rows["yield"][2:], ["7.25"] * 2)
        self.assertEqual(rows["sleep, CPU a fiber"][2:], ["1000"] * 2)
        self.assertEqual(rows["skynet, and resident"][2:], ["7.25, 2 MB"] * 2)
        self.assertEqual(rows["park, and resident a fiber"][2:], ["7, 2700 B"] * 2)
        self.assertEqual(rows["hog, longest gap"][2:], ["20.1 ms"] * 2)
        self.assertTrue(all(rows["echo, 20 connections"]))

    def test_keeps_the_best_of_several_runs(self):
        self.add_other("""#!/bin/bash
echo run >> "$0.runs"
OTHER_NS="$(sed -n "$(wc -l < "$0.runs")p" <<< $'1000\\n9.5\\n1000\\n1000\\n10.5\\n1000')"
""" + OTHER.split("\n", 1)[1])
        rows = self.rows(programs.run(PROGRAM, "--runs=3", f"--binaries={self.folder}", "mutex", "pingpong"))
        # Two workers alternate with one.
        self.assertEqual(rows["pingpong"][2:], ["10.5", "9.5"])

    def test_a_failure_is_told_and_empties_the_cell(self):
        self.add_other("#!/bin/bash\necho nothing\nexit 1\n")
        done = self.run_quick("mutex")
        self.assertEqual(done.returncode, 1)
        self.assertIn("2 runs failed", done.stderr)

    def test_bad_arguments_are_refused(self):
        for arguments in (["--fast"], ["knit"], ["--runs=0"], ["--binaries="]):
            done = programs.run(PROGRAM, *arguments)
            self.assertIn("tools/bench/run --quick", done.stderr)
            self.assertEqual(done.returncode, 2, arguments)
        done = programs.run(PROGRAM, "--binaries=/nowhere", "yield")
        self.assertIn("/nowhere/yardstick", done.stderr)
        self.assertEqual(done.returncode, 1)


unittest.main()
