#!/usr/bin/env bash
# Sets up and does the main job: a real search model goes in, a smaller and faster one comes out,
# with what that cost in search quality.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/toolchain.sh
source scripts/toolchain.sh

model=runs/minilm/minilm.onnx
search=data/wordnet-beir

step() {
    say
    say "== $1"
    say "   ${*:2}"
    "${@:2}"
}

need_toolchain
scripts/fetch minilm wordnet
need_onnxruntime
step "build" cargo build --release -p attar-cli
PATH=${CARGO_TARGET_DIR:-$PWD/target}/release:$PATH

mkdir -p runs/minilm
step "import MiniLM-L6: safetensors to ONNX" \
    attar import data/minilm -o "$model"
step "prepare the task: find the gloss of a word in WordNet" \
    attar prepare wordnet data/wordnet -o "$search"
# A run folder is never written over; this one is the demo's own.
rm -rf runs/minilm-int8
step "compress: static int8" \
    attar compress "$model" --step quantize.static --calibration-count 2000 \
    --calibration "$search" --data "$search" -o runs/minilm-int8
