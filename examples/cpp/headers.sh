#!/bin/bash
# headers.sh DIR: the C and C++ headers of ONNX Runtime, from Debian's package libonnxruntime-dev, into DIR.
# Nothing is installed and no root is needed: apt gets state and cache of its own. The headers are older than
# the library in the Python package, which keeps the interface of every version since.
set -euo pipefail
RELEASE=trixie # the first release of Debian with the package
OUT=$1

fail() {
    echo "headers.sh: $*" >&2
    exit 1
}

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    fail "expected Debian's apt-get and dpkg-deb, found neither; take the headers from an ONNX Runtime release"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -1)
[ -n "$mirror" ] || fail "expected a Debian archive among apt's sources, found none; run apt-get update"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/lists/partial "$work"/archives/partial
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $RELEASE main" >"$work/sources"
apt=(apt-get --quiet --quiet -o Dir::Etc::sourcelist="$work/sources" -o Dir::Etc::sourceparts=-
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work" -o Dir::Cache::archives="$work/archives"
    -o APT::Sandbox::User=root -o Acquire::Languages=none)
"${apt[@]}" update
(cd "$work" && "${apt[@]}" download libonnxruntime-dev)
dpkg-deb --extract "$work"/libonnxruntime-dev_*.deb "$work/package"
rm -rf "$OUT"
mkdir -p "$(dirname "$OUT")"
mv "$work/package/usr/include/onnxruntime" "$OUT"
touch "$OUT"
