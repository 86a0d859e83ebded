"""Token stream of a canonical graph: its number of tokens, and the blocks that can merge them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from calibration.graph.edit import attribute, constant, producer
from calibration.graph.layers import GraphLayers, Linear, Product, find_layers
from calibration.plan import PlanError

HEADS_FIRST, HEADS_LAST = (1, 0, 2), (1, 2, 0)  # [tokens, batch · heads, d] → queries and values; keys


@dataclass(frozen=True)
class MergeBlock:
    """A block whose tokens can be merged between its attention and its MLP."""

    name: str
    tokens: ir.Value  # the residual stream after attention, float32 [tokens · batch, width]
    key: ir.Value  # attention's keys, float32 [tokens · batch, width]
    heads: int
    features: int  # of one head


@dataclass(frozen=True)
class TokenStream:
    """The tokens of a graph, in rows ordered token by token, and the blocks that can merge them."""

    tokens: int  # per image
    patches: int  # how many of them are patches; the others stand before them and never merge
    blocks: tuple[str, ...]  # every block, also the last, in graph order
    merge_blocks: Mapping[str, MergeBlock]

    @property
    def kept(self) -> int:
        """Number of tokens that never merge: the class token, and registers."""
        return self.tokens - self.patches


def find_token_stream(model: ir.Model) -> TokenStream:
    """Return the tokens of a graph, and the blocks that can merge them: at least one.

    Args:
        model: a canonical float graph.

    Raises:
        PlanError: for a graph without a class token or without blocks of the canonical form.
    """
    layers = find_layers(model)
    patches = _count_patches(layers)
    linears = {linear.node: linear for linear in layers.linears.values()}
    found: dict[str, MergeBlock] = {}
    names, counts = list[str](), set[int]()
    for product in (each for each in layers.products.values() if each.mixes_probabilities):
        tokens, block = _read_attention(product, linears)
        names.append(block.name if block else product.name.removesuffix(".mix").removesuffix(".attention"))
        counts.add(tokens)
        if block is not None:
            found[block.name] = block
    if not found or len(counts) != 1:
        raise PlanError(
            "merging: expected blocks of attention over rows ordered token by token, found "
            f"{len(found)} of {len(names)} in that form; leave merging out for this model"
        )
    (tokens,) = counts
    if tokens <= patches:
        raise PlanError(
            f"merging: expected a class token beside the patches, found {tokens} tokens for {patches} "
            "patches; leave merging out for this model"
        )
    return TokenStream(tokens, patches, tuple(names), found)


def _count_patches(layers: GraphLayers) -> int:
    """Return the number of patches of an image, which must be the last tokens of the sequence."""
    embeddings = [linear for linear in layers.linears.values() if linear.reads_pixels]
    if len(embeddings) != 1:
        raise PlanError(
            f"merging: expected one linear layer that reads the pixels, found {len(embeddings)}; "
            "leave merging out for this model"
        )
    value = embeddings[0].node.outputs[0]
    patches = 0
    while len(uses := list(value.uses())) == 1:
        node, index = uses[0].node, uses[0].idx
        target = constant(node.inputs[1]) if node.op_type == "Reshape" else None
        if target is not None and len(target) == 3 and target[1] == -1:
            patches = patches or int(target[0])
        elif node.op_type == "Concat" and index != len(node.inputs) - 1:
            raise PlanError("merging: expected the patches behind the class token, found tokens after them")
        elif node.op_type not in ("Add", "Concat", "Reshape", "Identity"):
            break
        value = node.outputs[0]
    if not patches:
        raise PlanError(
            "merging: expected tokens in rows, token by token, and logits read from the class token, found "
            "another form, as models have that average over patches; leave merging out for this model"
        )
    return patches


def _read_attention(mix: Product, linears: Mapping[ir.Node, Linear]) -> tuple[int, MergeBlock | None]:
    """Return the number of an attention's tokens, and its block if all of them have a query, too."""
    softmax = producer(mix.left)
    scores = producer(softmax.inputs[0], "MatMul") if softmax is not None else None
    if scores is None:
        return 0, None
    key, keys = _read_heads(scores.inputs[1], HEADS_LAST)
    _, queries = _read_heads(scores.inputs[0], HEADS_FIRST)
    _, values = _read_heads(mix.right, HEADS_FIRST)
    residual = _find_residual(mix, linears)
    if key is None or keys is None or queries is None or values is None or keys[0] != values[0]:
        return 0, None
    # Fewer queries than keys: the last block computes the class token alone.
    if queries[0] != keys[0] or residual is None:
        return keys[0], None
    width = linears[key].weight.shape[1] if key in linears else 0
    if not width or width % keys[1]:
        return keys[0], None
    name = _block_name(mix.name, residual)
    return keys[0], MergeBlock(name, residual, key.outputs[0], width // keys[1], keys[1])


def _read_heads(value: ir.Value | None, perm: Sequence[int]) -> tuple[ir.Node | None, tuple[int, int] | None]:
    """Return the producer of the rows that a product reads by head, and (tokens, features of a head)."""
    transpose = producer(value, "Transpose")
    if transpose is None or tuple(attribute(transpose, "perm", ())) != tuple(perm):
        return None, None
    reshape = producer(transpose.inputs[0], "Reshape")
    target = constant(reshape.inputs[1]) if reshape is not None else None
    if reshape is None or target is None or len(target) != 3 or target[1] != -1:
        return None, None
    return producer(reshape.inputs[0]), (int(target[0]), int(target[2]))


def _find_residual(mix: Product, linears: Mapping[ir.Node, Linear]) -> ir.Value | None:
    """Return the sum of attention's projection and the tokens before it."""
    value = mix.node.outputs[0]
    for expected in ("Transpose", "Reshape", "Gemm", "Add"):
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.op_type != expected:
            return None
        node = uses[0].node
        if expected == "Gemm" and node not in linears:
            return None
        value = node.outputs[0]
    return value


def _block_name(product: str, residual: ir.Value) -> str:
    """Return the words that the names of a block's attention and of its second norm begin with."""
    norms = (str(use.node.name) for use in residual.uses() if use.node.op_type == "LayerNormalization")
    pairs = zip(product.split("."), next(norms, "").split("."), strict=False)
    common = [word for word, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return ".".join(common) or product.removesuffix(".mix")
