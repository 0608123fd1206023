"""Tests of the model build."""

load("@rules_cc//cc:cc_test.bzl", "cc_test")
load("//tools/bzl:weft.bzl", "WEFT_COPTS", "WEFT_LINKOPTS", "weft_test")
load(":planted_bugs.bzl", "PLANTED_BUGS")

_DEFINES = ["WEFT_MODEL"]
_DEPS = [
    ":explorer",
    ":shipped",
]

# Sanitizers know nothing of its switches, and what it finds does not depend on the optimisation.
_TAGS = [
    "deterministic",
    "model",
    "noasan",
    "notsan",
]

def model_test(name, cases, deps = [], shards = 1):
    """Explores each case of a file.

    Args:
      name: ends in `_test`.
      cases: the file; it includes the .cc files that it tests.
      deps: what it includes of others.
      shards: processes that share the cases: one that takes long would be the last, with the other CPUs idle.
    """
    weft_test(
        name = name,
        size = "medium",
        srcs = [
            cases,
            "cases_test.cc",
        ],
        copts = ["-O1"],
        finds_leaks = False,  # what ships is not linked: its Atomic is another
        local_defines = _DEFINES,
        shard_count = shards,
        tags = _TAGS,
        deps = _DEPS + deps + ["@com_google_googletest//:gtest"],
    )

def _quoted(text):
    return "'" + text.replace("'", "'\\''").replace("$", "$$") + "'"

def planted_bug_tests():
    """One test for each of PLANTED_BUGS: it passes if the bug is found, for what it does.

    All but the first of each file of the library are tagged "soak": tools/test leaves them to tools/soak.
    """
    files = {}
    for name, (cases, case, failure, file, old, new) in PLANTED_BUGS.items():
        tags = _TAGS + (["soak"] if file in files else [])
        files[file] = True
        source = "planted_" + name + ".cc"
        native.genrule(
            name = "plant_" + name,
            testonly = True,
            srcs = [
                cases + ".cc",
                "//fiber:sources",
                "//netpoll:sources",
                "//sched:sources",
            ],
            outs = [source],
            cmd = "python3 $(location plant.py) $(location {}) {} > $@".format(
                cases + ".cc",
                " ".join([_quoted(word) for word in [case, file, old, new]]),
            ),
            tags = tags,
            tools = ["plant.py"],
        )
        cc_test(
            name = "planted_" + name + "_test",
            size = "small",
            srcs = [source],
            args = [
                case,
                _quoted(failure),
            ],
            # Compiling takes longer than finding; and what a bug leaves unused is no news.
            copts = WEFT_COPTS + ["-O0", "-w"],
            linkopts = WEFT_LINKOPTS,
            local_defines = _DEFINES,
            tags = tags,
            deps = _DEPS + [":planted_bug_test"],
        )
