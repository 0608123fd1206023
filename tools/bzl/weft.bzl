"""How Weft's own targets are compiled, and its tests declared."""

load("@rules_cc//cc:cc_test.bzl", "cc_test")

# These do not leak to dependents.  -Werror is in .bazelrc: it is for us alone.
WEFT_COPTS = [
    "-std=c++20",
    "-Wall",
    "-Wextra",
]

# Lazy binding would run the dynamic linker on a fiber's stack: 3 KiB of its first page.
WEFT_LINKOPTS = [
    "-pthread",
    "-Wl,-z,now",
]

def weft_test(name, srcs, deps = [], size = "small", tags = [], copts = [], linkopts = [],
              finds_leaks = True, **kwargs):
    """A GoogleTest test.

    Args:
      name: ends in `_test`, like its source file.
      srcs: the source files.
      deps: what is tested; GoogleTest and its main() are added.
      size: Bazel's: how long it may take.
      tags: one of "deterministic", "threaded", "stress" where it applies.
      copts: besides WEFT_COPTS.
      linkopts: besides WEFT_LINKOPTS.
      finds_leaks: every test that leaves something behind fails, and names it (//tests/leaks).
      **kwargs: as for cc_test.
    """
    cc_test(
        name = name,
        size = size,
        srcs = srcs,
        copts = WEFT_COPTS + copts,
        linkopts = WEFT_LINKOPTS + linkopts,
        tags = tags,
        deps = deps + ["@com_google_googletest//:gtest_main"] + (["//tests/leaks"] if finds_leaks else []),
        **kwargs
    )
