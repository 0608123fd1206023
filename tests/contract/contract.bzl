"""The contract's cases and the library, compiled in many ways."""

load("@rules_cc//cc:cc_binary.bzl", "cc_binary")
load("@rules_cc//cc:cc_test.bzl", "cc_test")
load("//tools/bzl:weft.bzl", "WEFT_COPTS", "WEFT_LINKOPTS")

CASES = [
    "backtrace_cases.cc",
    "exception_cases.cc",
    "moving.cc",
    "thread_cases.cc",
]

CASES_DEPS = [
    "@com_google_absl//absl/strings",
    "@com_google_absl//absl/time",
]

# Of the library and the cases when they are compiled anew.
VARIANT_DEPS = [
    ":headers",
    "//tools/bzl:boost_context",
    "@com_google_absl//absl/base:core_headers",
    "@com_google_absl//absl/debugging:symbolize",
    "@com_google_absl//absl/functional:function_ref",
    "@com_google_absl//absl/status",
    "@com_google_absl//absl/status:statusor",
] + CASES_DEPS

WITHOUT_FRAME_POINTERS = [
    "-O2",
    "-fomit-frame-pointer",
    "-fno-stack-protector",
    "-DWEFT_NO_FRAME_POINTERS",
]

def include_all(name, srcs):
    """A source file that includes the .cc files among others.

    Args:
      name: the target; the file is NAME.cc.
      srcs: what to include, and what that includes.
    """
    native.genrule(
        name = name,
        testonly = True,
        srcs = srcs,
        outs = [name + ".cc"],
        cmd = "for file in $(SRCS); do case $$file in *.cc) echo \"#include \\\"$$file\\\"\";; esac; done > $@",
    )

def contract_variant(name, copts, linkopts = [], library = None, is_shared = False):
    """A test whose library and cases are compiled with `copts`, optimised or not as these say.

    Args:
      name: ends in `_test`.
      copts: after the toolchain's.
      linkopts: the linker's.
      library: the library, if something else is linked with it too: compiled with the same.
      is_shared: library and cases are a shared library.
    """
    common = dict(
        testonly = True,
        # Warnings are the ordinary build's; here all of the library is one file, which makes for others.
        copts = WEFT_COPTS + ["-w"] + copts,
        linkopts = WEFT_LINKOPTS + linkopts,
    )
    compiled = [":all_cases"]
    deps = VARIANT_DEPS
    if library == None:
        compiled.append(":all_sources")
    else:
        deps = deps + [library]

    # Sanitizers choose the flags themselves; contract_test is for them.
    tags = [
        "contract",
        "noasan",
        "notsan",
    ]
    if is_shared:
        library = "lib" + name + ".so"
        cc_binary(
            name = library,
            srcs = compiled,
            linkshared = True,
            tags = tags,
            # Debian's archives of Abseil are not for shared libraries: the program has them.
            deps = [":headers"],
            **common
        )
        compiled = [library]
    cc_test(
        name = name,
        size = "small",
        srcs = compiled,
        tags = tags,
        deps = deps + [":contract_main"],
        **common
    )
