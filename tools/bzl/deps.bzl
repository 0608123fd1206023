"""Dependencies for projects that still use WORKSPACE.

Only http_archive calls and no load() of a fetched repository, so that every
repository named here can be replaced by an earlier definition in the consumer's
own WORKSPACE, or by --override_repository (tools/bazel, offline on Debian).
"""

load("@bazel_tools//tools/build_defs/repo:http.bzl", "http_archive")
load("@bazel_tools//tools/build_defs/repo:utils.bzl", "maybe")

def weft_deps():
    """Repositories @weft needs to build."""
    maybe(
        http_archive,
        name = "rules_cc",
        sha256 = "abc605dd850f813bb37004b77db20106a19311a96b2da1c92b789da529d28fe1",
        strip_prefix = "rules_cc-0.0.17",
        urls = ["https://github.com/bazelbuild/rules_cc/releases/download/0.0.17/rules_cc-0.0.17.tar.gz"],
    )
    maybe(
        http_archive,
        name = "platforms",
        sha256 = "3384eb1c30762704fbe38e440204e114154086c8fc8a8c2e3e28441028c019a8",
        urls = ["https://github.com/bazelbuild/platforms/releases/download/1.0.0/platforms-1.0.0.tar.gz"],
    )
    maybe(
        http_archive,
        name = "bazel_skylib",
        sha256 = "6e78f0e57de26801f6f564fa7c4a48dc8b36873e416257a92bbb0937eeac8446",
        urls = ["https://github.com/bazelbuild/bazel-skylib/releases/download/1.8.2/bazel-skylib-1.8.2.tar.gz"],
    )
    maybe(
        http_archive,
        name = "com_google_absl",
        sha256 = "b396401fd29e2e679cace77867481d388c807671dc2acc602a0259eeb79b7811",
        strip_prefix = "abseil-cpp-20250127.1",
        urls = ["https://github.com/abseil/abseil-cpp/releases/download/20250127.1/abseil-cpp-20250127.1.tar.gz"],
    )
    maybe(
        http_archive,
        name = "boost.context",
        build_file = "@weft//tools/bzl:boost_context.BUILD",
        sha256 = "69272ce5694be4963798054735a81d1eb05055af0d7ec15f65dc373ccfbf4fed",
        strip_prefix = "context-boost-1.90.0",
        urls = ["https://github.com/boostorg/context/archive/refs/tags/boost-1.90.0.tar.gz"],
    )
    maybe(
        http_archive,
        name = "boost.config",
        build_file = "@weft//tools/bzl:boost_config.BUILD",
        sha256 = "1390bd79fbf270e40cfe5ac6b899f4a9c4e47139b6e17b4c1f7f78822adaa9fc",
        strip_prefix = "config-boost-1.90.0",
        urls = ["https://github.com/boostorg/config/archive/refs/tags/boost-1.90.0.tar.gz"],
    )

def weft_test_deps():
    """Repositories for @weft's own tests, and for yours that use @weft//fiber/sim:gtest."""
    maybe(
        http_archive,
        name = "com_google_googletest",
        sha256 = "7b42b4d6ed48810c5362c265a17faebe90dc2373c885e5216439d37927f02926",
        strip_prefix = "googletest-1.15.2",
        urls = ["https://github.com/google/googletest/releases/download/v1.15.2/googletest-1.15.2.tar.gz"],
    )
