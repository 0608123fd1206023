#!/usr/bin/env python3
"""Writes a file of cases with all that it includes of ours in one, and one passage of that replaced: a planted bug.

  plant.py CASES CASE FILE OLD NEW     OLD must stand exactly once in FILE

Of the cases only CASE is kept: compiling all of them takes up to half as long again.
"""

import pathlib
import re
import sys

INCLUDE = re.compile(r'^#include "((?:fiber|sched|netpoll)/[^"]+)"$', re.MULTILINE)
ROW = re.compile(r'^ *\{"(\w+)", \1\b.*\},\n', re.MULTILINE)


def only(text, case):
    names = ROW.findall(text)
    if case not in names:
        sys.exit(f"plant.py: there is no case {case}")
    text = ROW.sub(lambda match: match.group() if match.group(1) == case else "", text)
    for name in names:
        if name != case:
            text = re.sub(rf"^Case {name}\(\) \{{\n.*?^\}}\n", "", text, count=1, flags=re.MULTILINE | re.DOTALL)
    return text


def main():
    cases, case, planted, old, new = sys.argv[1:]
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
        if path == cases:
            text = only(text, case)
        return INCLUDE.sub(lambda match: text_of(match.group(1)), text)

    text = text_of(cases)
    if not is_planted:
        sys.exit(f"plant.py: {cases} does not include {planted}")
    sys.stdout.write(text)


main()
