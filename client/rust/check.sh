#!/bin/sh
# Style, faults and tests. Needs ACLSERVE_ADDRESS and the like: see tools/clients.py.
set -eu
cd "$(dirname "$0")"
cargo fmt --check
cargo clippy -q --locked --all-targets -- -D warnings
cargo test -q --locked
