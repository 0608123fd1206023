#!/usr/bin/env python3
"""Writes the tables of docs/correctness.md anew, from what the tests of the model build printed.

  bazel test --config=model //tests/... && tests/model/tables.py "$(bazel info bazel-testlogs)"
"""

import itertools
import pathlib
import re
import sys

TITLES = {
    "waiting": "Primitives, by threads",
    "primitive": "More primitives, by threads",
    "fiber": "Parking, claims, timers, cancellation, join, by fibers",
    "channel": "Channels and selects, by fibers",
    "cancel": "Nodes, callbacks, tokens, shields, a scope, by fibers",
    "slot": "Poll slots",
    "descriptor": "Sockets",
    "event": "Events of sockets whose record is used again",
    "queue": "Queues, idle workers, keepers, free stacks",
    "worker": "Workers",
    "stack": "New fibers and stacks",
    "poller": "The poller's permits",
}
CASE = re.compile(
    r"(\d+) threads, (\d+) orders, (\d+) of them redundant: all (?:there are|with at most (\d+) preemptions)\n"
    r"\[       OK \] CasesTest\.HoldsInEveryOrder/(\w+)"
)


def found(test):
    """What the test printed of each case, in the order of the cases: its shards take them in turn."""
    shards = [CASE.findall(log.read_text()) for log in sorted(test.rglob("test.log"))]
    if not shards:
        sys.exit(f"tables.py: {test} has no test.log")
    return [case for turn in itertools.zip_longest(*shards) for case in turn if case]


def cases(logs):
    rows = []
    for name, title in TITLES.items():
        rows.append(f"| **{title}** (`{name}_cases.cc`) | | | | |")
        for threads, orders, redundant, bound, case in found(logs / f"{name}_test"):
            redundant = "–" if bound else f"{int(redundant):,}"
            rows.append(f"| {case} | {threads} | {int(orders):,} | {redundant} | {bound or 'none'} |")
    return rows


def bugs(logs):
    names = {}
    exec(pathlib.Path("tests/model/planted_bugs.bzl").read_text(), names)
    rows = []
    for name, (_, case, failure, file, _, _) in names["PLANTED_BUGS"].items():
        log = (logs / f"planted_{name}_test/test.log").read_text()
        order = int(re.search(r"found in order (\d+)", log).group(1))
        rows.append(f"| {name.replace('_', ' ')} | `{file}` | {case} | {failure} | {order:,} |")
    return rows


def with_table(text, head, rows):
    """`text` with the rows of the table under `head` replaced."""
    begin = text.index(head) + len(head)
    begin = text.index("\n", begin) + 1  # the line of dashes
    end = begin
    while text.startswith("|", end):
        end = text.index("\n", end) + 1
    return text[:begin] + "".join(row + "\n" for row in rows) + text[end:]


def main():
    logs = pathlib.Path(sys.argv[1]) / "tests/model"
    page = pathlib.Path("docs/correctness.md")
    text = page.read_text()
    text = with_table(text, "| case | threads | orders | of them redundant | most preemptions |\n", rows := cases(logs))
    text = with_table(text, "| bug | in | found by | what happens | in order |\n", planted := bugs(logs))
    page.write_text(text)
    count = len(rows) - len(TITLES)
    print(f"{sum(row.endswith('| none |') for row in rows)} of {count} cases have no bound; {len(planted)} bugs")


main()
