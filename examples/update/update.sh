#!/bin/sh
# Install the model that a static web server offers, where it is another one. Made for cron; README.md says more.
#
#     update.sh URL FOLDER PUBLIC_KEY        URL/model.int8.onnx and URL/model.int8.onnx.sig
#
# FILE is another name than model.int8.onnx, VIT_EDGE another command than vit-edge.
set -eu
url=$1 folder=$2 key=$3 file=${FILE:-model.int8.onnx}

mkdir -p "$folder"
rm -rf "$folder"/.fetch.* # of a script that was killed
aside=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$aside"' EXIT

get() {
    curl --fail --silent --show-error --retry 3 --max-time 3600 --max-filesize 2147483647 \
        --output "$aside/$1" "$url/$1"
}

get "$file.sig"
# The signature changes with the model: where there is nothing new, 600 bytes are all that is fetched.
if cmp -s "$aside/$file.sig" "$folder/offered.sig"; then exit 0; fi
get "$file"
${VIT_EDGE:-vit-edge} install "$aside/$file" --into "$folder" --key "$key"
mv "$aside/$file.sig" "$folder/offered.sig"
