"""python -m vit summary and python -m vit plots: look inside a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.command.line import installed
from runtime.command.locking import only_writer
from runtime.command.parser import REQUIRED, argument, option
from runtime.command.progress import Step, tell
from runtime.errors import MissingPackageError, install_line
from runtime.text import did_you_mean
from runtime.writing import OutputError, check_folder
from vit.config import ViTConfig

# --- Structure of a model: shapes, parameters and multiply-adds, one row per step ---


@dataclass(frozen=True)
class SummaryRow:
    """One step of the forward pass, for one image."""

    name: str
    output: tuple[int, ...]
    parameters: int
    macs: int  # multiply-adds of the matrix products; norms, softmax and GELU are not counted, as usual


def summary_rows(config: ViTConfig) -> list[SummaryRow]:
    """Return the steps of the model of `config`, in the order of the computation."""
    width, tokens, mlp = config.width, config.tokens, config.mlp_width
    patches = config.grid[0] * config.grid[1]
    patch = 3 * config.patch_size**2
    scale = width if config.layer_scale else 0
    height, breadth = config.image_size
    rows = [
        SummaryRow("pixels", (height, breadth, 3), 0, 0),
        SummaryRow("patch_embedding", (patches, width), width * (patch + 1), patches * patch * width),
        SummaryRow("class_token, position", (tokens, width), width * (tokens + config.class_token), 0),
    ]
    if config.pre_norm:
        rows.append(SummaryRow("pre_norm", (tokens, width), 2 * width, 0))
    inside = 4 * width // config.heads if config.qk_norm else 0
    inside += config.heads * tokens**2 if config.attention_bias else 0
    first = 2 if config.gated else 1  # layers in front of the MLP's product
    for index in range(config.depth):
        # Four projections of every token, then queries by keys and probabilities by values.
        attention = 4 * tokens * width * width + 2 * tokens * tokens * width
        parameters = 2 * width + 4 * width * (width + 1) + scale + inside
        rows.append(SummaryRow(f"blocks.{index}.attention", (tokens, width), parameters, attention))
        parameters = 2 * width + first * mlp * (width + 1) + width * (mlp + 1) + scale
        rows.append(
            SummaryRow(f"blocks.{index}.mlp", (tokens, width), parameters, (1 + first) * tokens * width * mlp)
        )
    features = config.features
    if config.final_norm != "none":
        normed = features if config.final_norm == "after" else width
        rows.append(SummaryRow("norm", (features,), 2 * normed, 0))
    if config.pooling == "attention":
        parameters = width + 3 * width * (width + 1) + 2 * width + mlp * (width + 1) + width * (mlp + 1)
        macs = (2 * tokens + 1) * width * width + 2 * tokens * width + 2 * width * mlp
        rows.append(SummaryRow("pool", (width,), parameters, macs))
    if config.classes and config.representation:
        features = config.representation
        rows.append(
            SummaryRow("head.0", (features,), features * (config.features + 1), features * config.features)
        )
    if config.classes:
        parameters = config.classes * (features + 1)
        rows.append(SummaryRow("head", (config.classes,), parameters, config.classes * features))
    return rows


def summary_text(config: ViTConfig) -> str:
    """Return the rows as a table, and their sums."""
    rows = summary_rows(config)
    lines = [f"{'layer':<24}{'output':>16}{'parameters':>14}{'MMACs':>10}"]
    for row in rows:
        shape = " x ".join(map(str, row.output))
        lines.append(f"{row.name:<24}{shape:>16}{row.parameters:>14,}{row.macs / 1e6:>10.2f}")
    parameters, macs = sum(row.parameters for row in rows), sum(row.macs for row in rows)
    lines.append(f"{'total':<24}{'':>16}{parameters:>14,}{macs / 1e6:>10.2f}")
    lines.append(f"{parameters / 1e6:.2f} M parameters, {macs / 1e9:.3f} GMACs an image, ")
    lines[-1] += f"{4 * parameters / 2**20:.1f} MiB in float32, {parameters / 2**20:.1f} MiB in INT8"
    return "\n".join(lines)


# --- The commands ---


@dataclass(frozen=True, kw_only=True)
class SummaryOptions:
    """Print the layers, shapes, parameters and multiply-adds of a checkpoint or a named size."""

    model: str = argument(REQUIRED, "checkpoint, or one of tiny, small, base, large, huge", metavar="MODEL")


def run_summary(options: SummaryOptions) -> None:
    """Print the structure of a checkpoint or a named size."""
    from vit.config import SIZES
    from vit.document import CheckpointError, read_document

    named = SIZES.get(options.model)
    if named is None and not Path(options.model).exists():
        raise CheckpointError(
            f"{options.model}: expected a checkpoint, or one of {', '.join(SIZES)}, found neither"
            f"{did_you_mean(options.model, SIZES)}"
        )
    print(summary_text(named or read_document(options.model).config))


@dataclass(frozen=True, kw_only=True)
class PlotsOptions:
    """Draw what a run has learned as PNG files and one HTML page that says what to look for in each."""

    run: Path = argument(REQUIRED, "checkpoint or folder of a run", metavar="RUN")
    data: str | None = option(
        None, "images for confusion, attention and mistakes; their test split is used if there is one"
    )
    out: Path | None = option(None, "folder for the plots (default: RUN/plots)")


def run_plots(options: PlotsOptions) -> None:
    """Draw the plots of a run and print the path of their page."""
    if not installed("matplotlib"):
        raise MissingPackageError(f"matplotlib is not installed; {install_line('train,cpu,plots')}")
    from vit.data.datasets import refuse_among_classes
    from vit.data.labels import say_same_names
    from vit.document import existing_checkpoint, read_document
    from vit.training.setup import open_test_images

    labels = read_document(options.run).labels
    out = options.out or existing_checkpoint(options.run).parent / "plots"
    if options.data:
        refuse_among_classes(out, options.data)
    check_folder(out)
    images = open_test_images(options.data, labels) if options.data else None
    if images is not None and (sentence := say_same_names(images)):
        tell(f"note: {sentence}")
    from vit.checkpoint import load_checkpoint

    try:
        from vit.inspect.page import write_plots
    except OSError as error:  # matplotlib, where neither the home nor a temporary folder can be written to
        raise OutputError(
            "matplotlib finds no folder for its cache; set MPLCONFIGDIR or TMPDIR to one that it can write to"
        ) from error

    with only_writer(out), Step("vit", "drawing"):
        page = write_plots(load_checkpoint(options.run), images, out)
    print(page)
