"""A test that is a script.

Bazel 9 has no sh_test of its own, and Debian's Bazel cannot load the one that replaces it.
"""

def _script_test_impl(ctx):
    executable = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.symlink(output = executable, target_file = ctx.file.script, is_executable = True)
    runfiles = ctx.runfiles(files = [ctx.file.script] + ctx.files.data)
    for target in ctx.attr.data:
        runfiles = runfiles.merge(target[DefaultInfo].default_runfiles)
    return [DefaultInfo(executable = executable, runfiles = runfiles)]

script_test = rule(
    implementation = _script_test_impl,
    doc = "Passes if the script exits with 0.  `args` may say $(location LABEL) of what is in `data`.",
    attrs = {
        "data": attr.label_list(
            allow_files = True,
            doc = "What the script runs or reads.",
        ),
        "script": attr.label(
            mandatory = True,
            allow_single_file = True,
            doc = "An executable file with a `#!` line.",
        ),
    },
    test = True,
)
