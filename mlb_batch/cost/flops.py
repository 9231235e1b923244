"""The exact cost of a schedule, in whole operations: two a multiply-add, every token, attention over attended pairs.

The primitives below are shared: `price` feeds them the lengths that a schedule declares, the engine the lengths that
it really ran, and the two must meet. Norms, activations, softmax and rotations are not counted (nor does
torch.utils.flop_counter); they are under one per cent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlb_batch.cost.schedule import ClipShape, Rows, Schedule
from mlb_batch.cost.shapes import DecoderShape, ModelShape, PairedShape, VisionShape


@dataclass(frozen=True)
class Bill:
    """Operations by part. The language model's prefill and scoring are what scope `llm` budgets."""

    vision: int = 0
    prefill: int = 0
    scoring: int = 0
    generate: int = 0

    @property
    def parts(self) -> tuple[int, int, int, int]:
        """In the order in which a bill takes them."""
        return self.vision, self.prefill, self.scoring, self.generate

    @property
    def llm(self) -> int:
        return self.prefill + self.scoring

    @property
    def total(self) -> int:
        return sum(self.parts)


# Primitives: one operation each.


def linear(tokens: int, inputs: int, outputs: int) -> int:
    return 2 * tokens * inputs * outputs


def pairs(new: int, past: int = 0) -> int:
    """Query-key pairs when `new` tokens attend to `past` older ones, and each to itself and those before it."""
    return new * past + new * (new + 1) // 2


def attend(heads_dim: int, attended: int) -> int:
    """Scores and weighted sum over `attended` pairs."""
    return 4 * attended * heads_dim


def score_rows(d: DecoderShape, attended: int) -> int:
    """One q . K^T over `attended` pairs, for the scores of the visual tokens."""
    return 2 * attended * d.q_dim


def layer(d: DecoderShape, tokens: int, attended: int) -> int:
    """One decoder layer over `tokens` tokens with `attended` query-key pairs."""
    projections = linear(tokens, d.hidden, d.q_dim) + 2 * linear(tokens, d.hidden, d.kv_dim)
    output = linear(tokens, d.q_dim, d.hidden)
    return projections + output + 3 * linear(tokens, d.hidden, d.ffn) + attend(d.q_dim, attended)


def compare(d: DecoderShape, compared: int) -> int:
    """Inner products between visual tokens, for methods that score them by similarity."""
    return 2 * compared * d.hidden


def head(d: DecoderShape, rows: int) -> int:
    return linear(rows, d.hidden, d.vocab)


def tower(v: VisionShape, images: int) -> int:
    """The vision tower on `images` images, up to the layer whose features are taken (full attention)."""
    n = v.tokens
    patches = linear(v.patches, v.channels * v.patch_size**2, v.hidden)
    one = 4 * linear(n, v.hidden, v.hidden) + 2 * linear(n, v.hidden, v.ffn) + attend(v.hidden, n * n)
    return images * (patches + v.layers * one)


def project(shape: ModelShape, images: int) -> int:
    """The projector, and the bilinear pooling behind it (four taps for each number that comes out)."""
    n, hidden = images * shape.vision.patches, shape.decoder.hidden
    pooling = 8 * images * shape.tokens_per_frame * hidden if shape.pooled else 0
    return linear(n, shape.projector_in, hidden) + linear(n, hidden, hidden) + pooling


def encode(shape: ModelShape, images: int) -> int:
    return tower(shape.vision, images) + project(shape, images)


# The text/vision pair that some methods look through.


def look_at_images(pair: PairedShape, images: int) -> int:
    """The tower, and the head that pools its patches by one learned query."""
    v = pair.vision
    pooled = 2 * linear(v.patches, v.hidden, v.hidden) + 2 * linear(1, v.hidden, v.hidden)
    pooled += attend(v.hidden, v.patches) + 2 * linear(1, v.hidden, v.ffn)
    return tower(v, images) + images * pooled


def look_at_texts(pair: PairedShape, texts: int) -> int:
    """The text tower (full attention over the padded text), and the projection of its last token."""
    n, d = pair.text_tokens, pair.text_hidden
    one = 4 * linear(n, d, d) + 2 * linear(n, d, pair.text_ffn) + attend(d, n * n)
    return texts * (pair.text_layers * one + linear(1, d, pair.width))


def look(pair: PairedShape, images: int, texts: int) -> int:
    """Each frame once, each prompt once, and the likeness of every prompt to every frame: what a clip pays for it."""
    return look_at_images(pair, images) + look_at_texts(pair, texts) + linear(images, pair.width, texts)


# Sequences: a trunk (system prompt and visual tokens) and the branches (one for each prompt) that hang on it.


def tree_layer(d: DecoderShape, trunk: int, branches: tuple[int, ...]) -> int:
    return layer(d, trunk + sum(branches), pairs(trunk) + sum(pairs(b, trunk) for b in branches))


def rows_layer(d: DecoderShape, rows: Rows, trunk: int, branches: Iterable[int]) -> int:
    """Scores of one layer: the last token of each prompt, or every token of it, against all that it may see."""
    if rows == "none":
        return 0
    return score_rows(d, sum(trunk + b if rows == "last" else pairs(b, trunk) for b in branches))


# The price of a clip.


def price(shape: ModelShape, clip: ClipShape, schedule: Schedule, new_tokens: tuple[int, ...] = (),
          features: int = 0) -> Bill:  # fmt: skip
    """What one clip with all its prompts costs. `new_tokens` are generated per prompt; none leaves generation out.

    `features` is what the clip pays for the paired text/vision model (see budget.feature_price).
    """
    prefill, scoring = _scan_price(shape, clip, schedule) if schedule.scan else _cuts_price(shape, clip, schedule)
    scoring += compare(shape.decoder, schedule.compared)
    vision = encode(shape, schedule.encoded(clip)) + features
    generated = sum(
        generate(shape.decoder, cache_lengths(shape, clip, schedule, i), n) for i, n in enumerate(new_tokens)
    )
    return Bill(vision, prefill, scoring, generated)


def vanilla(shape: ModelShape, clip: ClipShape, new_tokens: tuple[int, ...] = ()) -> Bill:
    """The same clip with nothing pruned, and everything shared between its prompts that can be."""
    return price(shape, clip, Schedule(frames=clip.frames), new_tokens)


def trunk_lengths(shape: ModelShape, clip: ClipShape, schedule: Schedule) -> list[tuple[int, bool]]:
    """For each layer of a one-pass schedule: the trunk's length, and whether every prompt has one of its own."""
    text, alive = clip.text, schedule.frames * clip.tokens_per_frame
    forked, out = False, []
    cuts = {c.at: c.keep for c in schedule.cuts}
    if 0 not in cuts and schedule.frames < clip.frames:
        assert not cuts, "frames that were left out leave before the first layer"
    for index in range(shape.decoder.layers):
        if index in cuts:
            alive, forked = cuts[index], forked or schedule.fork
        out.append((text + alive, forked))
    return out


def _cuts_price(shape: ModelShape, clip: ClipShape, schedule: Schedule) -> tuple[int, int]:
    d, trunks = shape.decoder, trunk_lengths(shape, clip, schedule)
    prefill = 0
    for trunk, forked in trunks:
        trees = [(s,) for s in clip.suffixes] if forked else [clip.suffixes]
        prefill += sum(tree_layer(d, trunk, t) for t in trees)
    scored = [trunks[c.at - 1][0] for c in schedule.cuts if c.at > 0]
    scoring = sum(rows_layer(d, schedule.rows, trunk, clip.suffixes) for trunk in scored)
    if schedule.null_layers:
        whole = trunks[0][0]
        scoring += schedule.null_layers * tree_layer(d, whole, clip.suffixes)
        scoring += rows_layer(d, schedule.rows, whole, clip.suffixes)
    return prefill, scoring


def _scan_price(shape: ModelShape, clip: ClipShape, schedule: Schedule) -> tuple[int, int]:
    assert schedule.scan
    d, scan = shape.decoder, schedule.scan
    segments = [clip.text + frames * clip.tokens_per_frame for frames in scan.segments]
    passes = scan.layers * sum(tree_layer(d, trunk, clip.suffixes) for trunk in segments)
    rows = sum(rows_layer(d, schedule.rows, trunk, clip.suffixes) for trunk in segments)
    joined = clip.text + sum(scan.kept)
    trees = [(s,) for s in clip.suffixes] if schedule.fork else [clip.suffixes]
    layers = d.layers if scan.refeed else d.layers - scan.layers
    second = layers * sum(tree_layer(d, joined, t) for t in trees)
    # Where the tokens start again, the first stage was only for scoring; where they go on, it was their prefill.
    return (second, passes + rows) if scan.refeed else (passes + second, rows)


def cache_lengths(shape: ModelShape, clip: ClipShape, schedule: Schedule, prompt: int) -> list[int]:
    """Keys that a prompt's first generated token finds in each layer."""
    kept = clip.text + schedule.kept(clip) + clip.suffixes[prompt]
    if schedule.scan or schedule.compact:
        return [kept] * shape.decoder.layers
    return [trunk + clip.suffixes[prompt] for trunk, _ in trunk_lengths(shape, clip, schedule)]


def generate(d: DecoderShape, cached: list[int], new_tokens: int) -> int:
    """`new_tokens` generated tokens: each is one row of the head, and all but the last pass through the layers."""
    passes = max(new_tokens - 1, 0)
    attended = passes * sum(cached) + d.layers * pairs(passes)
    linear_part = passes * d.layers * layer(d, 1, 0)
    return head(d, new_tokens) + linear_part + attend(d.q_dim, attended)


def evenly(amount: int, ways: int) -> list[int]:
    """In whole numbers that add up to it; the first ones carry the remainder."""
    return [amount // ways + (i < amount % ways) for i in range(ways)]


def split(bill: Bill, ways: int) -> list[Bill]:
    """One bill over `ways` rows, part by part."""
    return [Bill(*parts) for parts in zip(*(evenly(part, ways) for part in bill.parts), strict=True)]
