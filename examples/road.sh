#!/bin/sh
# The whole road on your own images: import pretrained weights, fine-tune, export, label.
#
#   examples/road.sh WEIGHTS PHOTOS OUT
#
#   WEIGHTS  a pretrained ViT: a folder of Hugging Face, or a file of timm, torchvision or Google
#   PHOTOS   one folder per class, at best as PHOTOS/train/<class>/… and PHOTOS/test/<class>/…
#   OUT      a new folder for everything that this makes
#
# Run it in a checkout with its environment (python tools/install.py export; . .venv/bin/activate).
# PYTHON, EPOCHS and SAMPLES may be set: EPOCHS=1 SAMPLES=32 is a quick look.
set -eu
if [ $# -ne 3 ]; then
    echo "expected 3 arguments (WEIGHTS PHOTOS OUT), found $#; examples/road.sh says more at its top" >&2
    exit 2
fi
weights=$1 photos=$2 out=$3
python=${PYTHON:-python}

# 1. Import. The notes on standard error say what was guessed about the weights. Read them: a wrong guess about
#    the preprocessing costs more accuracy than INT8.
"$python" -m vit import "$weights" --out "$out/base"

# 2. Fine-tune on your classes. The best epoch on validation images is kept.
"$python" -m vit train --data "$photos" --from "$out/base" --out "$out/tuned" ${EPOCHS:+--epochs "$EPOCHS"}

# 3. Look at the model before it is exported: attention maps and the images that it gets wrong.
"$python" -m vit plots "$out/tuned" --data "$photos"

# 4. Export to ONNX in float32 and INT8. Calibration and measurement take different images. The report says how
#    many labels INT8 changed, and what it gained.
"$python" -m export "$out/tuned" --quantize --calibration "$photos" --out "$out/model" \
    ${SAMPLES:+--samples "$SAMPLES"}

# 5. Label images as a device does: onnxruntime, numpy and Pillow, no PyTorch. One line of JSON per image.
"$python" -m runtime "$out/model" "$photos" --output "$out/labels.jsonl"
echo "open $out/model/report.html; the device needs $out/model/model.int8.onnx alone" >&2
