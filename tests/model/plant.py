#!/usr/bin/env python3
"""Writes a file of cases with all that it includes of ours in one, and one passage of that replaced: a planted bug.

  plant.py CASES FILE OLD NEW        OLD must stand exactly once in FILE
"""

import pathlib
import re
import sys

INCLUDE = re.compile(r'^#include "((?:fiber|sched|netpoll)/[^"]+)"$', re.MULTILINE)


def main():
    cases, planted, old, new = sys.argv[1:]
    done = set()
    is_planted = False

    def text_of(path):
        nonlocal is_planted
        if path in done:
            return ""
        done.add(path)
        text = pathlib.Path(path).read_text(encoding="utf-8")
        if path == planted:
            if text.count(old) != 1:
                sys.exit(f"plant.py: {path} has {text.count(old)} times what is to be replaced: {old!r}")
            text = text.replace(old, new)
            is_planted = True
        return INCLUDE.sub(lambda match: text_of(match.group(1)), text)

    text = text_of(cases)
    if not is_planted:
        sys.exit(f"plant.py: {cases} does not include {planted}")
    sys.stdout.write(text)


main()
