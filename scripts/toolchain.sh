# Sourced by the scripts at the root: what they all need before they start.
# shellcheck shell=bash

say() { printf '%s\n' "$*" >&2; }

# fail WHAT HINT...: one line of hint each.
fail() {
    say "error: $1"
    shift
    local hint
    for hint in "$@"; do say "hint: $hint"; done
    exit 2
}

# A Rust new enough for this workspace, and a linker.
need_toolchain() {
    local needed found
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    command -v cargo >/dev/null 2>&1 ||
        fail "cargo is not installed" "install Rust $needed or newer with rustup"
    found=$(rustc --version | cut -d' ' -f2)
    [[ $(printf '%s\n%s\n' "$needed" "$found" | sort -V | head -n 1) == "$needed" ]] ||
        fail "Rust is $found, and $needed or newer is needed" "\`rustup update\`"
    command -v cc >/dev/null 2>&1 ||
        fail "there is no C compiler, which Rust links with" "install one, for example \`apt install gcc libc6-dev\`"
}

# Points ORT_DYLIB_PATH at ONNX Runtime: the user's, or the one that was fetched.
need_onnxruntime() {
    if [[ -z ${ORT_DYLIB_PATH:-} ]]; then
        scripts/fetch onnxruntime
        ORT_DYLIB_PATH=$(find "$PWD/data/onnxruntime" -name 'libonnxruntime.*' | head -n 1)
    fi
    [[ -f $ORT_DYLIB_PATH ]] ||
        fail "ORT_DYLIB_PATH is \`$ORT_DYLIB_PATH\`, which is not a file" "unset it, and one is fetched"
    export ORT_DYLIB_PATH
}
