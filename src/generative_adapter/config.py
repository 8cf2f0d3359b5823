"""Settings of generators, prompts and training runs as frozen dataclasses.

Leaves out: anything that needs torch, and how settings are read from files (`config_mapping.py`). Values are checked
when an object is made, so that a wrong setting is reported before any model is loaded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from generative_adapter.errors import ConfigError

NORMALIZATIONS = ("svd", "frobenius", "newton_schulz", "ridge")
MEMORY_DTYPES = ("float64", "bfloat16", "int8")  # the forms a memory is stored in
DEFAULT_MEMORY_DTYPE = "float64"  # docs/architecture.md says why
# Settings of `GeneratorConfig` that form the paper's keys and values, which an encoder makes in its own way.
_PAPER_ONLY = ("hidden_norm", "value_shift", "value_layer", "key_windows", "window_gates", "write_gate")


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_memory_dtype(dtype: str) -> None:
    """Raises ConfigError unless a memory can be stored in that form."""
    choices = f"{', '.join(MEMORY_DTYPES[:-1])} or {MEMORY_DTYPES[-1]}"
    require(dtype in MEMORY_DTYPES, f"a memory is stored as {choices}, not as {dtype!r}; give one of these")


@dataclass(frozen=True)
class TargetShape:
    """One adapted linear layer: where it is and how wide.

    Attributes:
        name: module path in the base model, such as `model.layers.7.self_attn.o_proj`.
        layer: index of the Transformer block that holds it; the block's input feeds its generator.
        in_features: d_in, width of the layer's input.
        out_features: d_out, width of the layer's output.
    """

    name: str
    layer: int
    in_features: int
    out_features: int


@dataclass(frozen=True)
class EncoderConfig:
    """The form of a generator that reads a context with layers of its own (docs/method.md, "Beyond the paper").

    Attributes:
        states: blocks whose inputs the encoder reads beside the embeddings, ascending.
        width: of the encoder's layers.
        layers: how many bidirectional Transformer layers it has.
        heads: attention heads of a layer.
        largest_distance: tokens further apart than this are all equally far for its attention.
        reading_rank: rank of the trained adapter that the base model reads contexts under; 0: the plain base model.
        reading_from_layer: lowest block of that adapter, which changes all linears up to the last of `states`.
        constant_rank: rank of the part of every adapter that is learned once, whatever the context; 0: none.
        constant_targets: linears which that part changes, by role or name, as `GeneratorConfig.targets`.
        constant_from_layer: lowest block of that part.
        unit_layers: blocks whose feed-forward units each take one token of the context (`token_units`), which makes
            memories grow with what is read; none: the memory is a sum.
        token_share: part of a chunk's tokens that are remembered, those with the longest keys; below 1 only where units
            take tokens.
        least_tokens: but at least so many of a chunk, or all it has.
        surroundings_dim: part of the `state_dim` numbers of a key that says, by a fixed code, which rare words stand
            around its token; above 0 only where units alone read.
    """

    states: tuple[int, ...] = (6, 12, 18, 24)
    width: int = 384
    layers: int = 2
    heads: int = 6
    largest_distance: int = 64
    reading_rank: int = 0
    reading_from_layer: int = 8
    constant_rank: int = 16
    constant_targets: tuple[str, ...] = ("attention_output", "feed_forward_down")
    constant_from_layer: int = 6
    unit_layers: tuple[int, ...] = ()
    token_share: float = 1.0
    least_tokens: int = 64
    surroundings_dim: int = 0

    def __post_init__(self) -> None:
        where = "generator.encoder"
        require(
            0 < self.token_share <= 1 and (self.token_share == 1 or len(self.unit_layers) > 0),
            f"{where}.token_share must lie in (0, 1], and be 1 without unit_layers, got {self.token_share}",
        )
        require(
            len(self.states) > 0 and list(self.states) == sorted(set(self.states)) and min(self.states) > 0,
            f"{where}.states must be ascending block indices above 0 (the embeddings are read anyway), got "
            f"{list(self.states)}",
        )
        for name in ("width", "heads", "largest_distance"):
            require(getattr(self, name) > 0, f"{where}.{name} must be positive, got {getattr(self, name)}")
        for name in (
            "layers",
            "reading_rank",
            "reading_from_layer",
            "constant_rank",
            "constant_from_layer",
            "least_tokens",
            "surroundings_dim",
        ):
            require(getattr(self, name) >= 0, f"{where}.{name} must not be negative, got {getattr(self, name)}")
        require(
            len(set(self.unit_layers)) == len(self.unit_layers) and min(self.unit_layers, default=0) >= 0,
            f"{where}.unit_layers must be different block indices, got {list(self.unit_layers)}",
        )
        require(
            self.width % self.heads == 0,
            f"{where}.width must be a multiple of heads ({self.heads}), got {self.width}",
        )
        require(
            self.reading_rank == 0 or self.reading_from_layer < max(self.states),
            f"{where}.reading_from_layer must lie below the last of states ({max(self.states)}), or that adapter "
            f"changes nothing that is read; got {self.reading_from_layer}",
        )
        require(
            self.constant_rank == 0 or len(self.constant_targets) > 0,
            f"{where}.constant_targets is empty; name at least one, or set constant_rank to 0",
        )


@dataclass(frozen=True)
class GeneratorConfig:
    """Everything that decides a generator's form, apart from the base model's own sizes.

    Attributes:
        targets: target linears, by role (`attention_output`, `feed_forward_down`) or by name inside a block
            (`self_attn.v_proj`, `v_proj`).
        layers: indices of the adapted Transformer blocks; None means all, empty none (where units of an encoder read).
        state_dim: d_r, width of the square memory of one target; with an encoder, of the keys.
        rank: r, rank of the generated update; all but `svd` keep all directions, so there it equals `state_dim`. With
            an encoder it is the width d_v of the values, and the rank of what is generated.
        scale: factor on the generated update (the paper: 1/16 Mistral, 1/8 Llama-2).
        normalization: `svd`, `frobenius` or `newton_schulz` (eqs. 6-9), or `ridge`, the least-squares map from keys to
            values instead.
        hidden_norm: learned RMSNorm on the hidden states before the projections.
        value_shift: the value of token i comes from token i + value_shift of the same chunk (0 in the paper).
        value_layer: block whose input the values are taken from, at or below the lowest adapted block; None: the input
            of the target's own block (the paper).
        key_windows: exponential averages over neighbouring tokens of the same chunk that a key holds beside the token
            itself (none in the paper): w > 0 averages about w tokens up to the token, w < 0 about |w| after it.
        window_gates: learned gates that end these averages, as at the end of a sentence (none in the paper).
        write_gate: learned gate on how strongly a token is written to the memory (none in the paper).
        chunk_tokens: length of a context chunk in tokens.
        subspace_iterations: how many subspace iterations find the directions of `svd`; 0: an exact SVD, which is far
            slower on a GPU at the paper's sizes.
        encoder: of a generator that encodes contexts with layers of its own, into one memory that all targets read;
            None: the paper's generator. With one, `normalization` is `ridge`, and what forms the paper's keys and
            values (`hidden_norm`, `value_shift`, `value_layer`, `key_windows`, gates) stays at its default.
    """

    targets: tuple[str, ...] = ("attention_output",)
    layers: tuple[int, ...] | None = None
    state_dim: int = 128
    rank: int = 128
    scale: float = 1 / 16
    normalization: str = "newton_schulz"
    hidden_norm: bool = True
    value_shift: int = 0
    value_layer: int | None = None
    key_windows: tuple[int, ...] = ()
    window_gates: bool = False
    write_gate: bool = False
    chunk_tokens: int = 1024
    subspace_iterations: int = 0
    encoder: EncoderConfig | None = None

    def __post_init__(self) -> None:
        require(len(self.targets) > 0, "generator.targets is empty; name at least one, such as attention_output")
        require(len(set(self.targets)) == len(self.targets), f"generator.targets repeats a name: {self.targets}")
        require(self.state_dim > 0, f"generator.state_dim must be positive, got {self.state_dim}")
        require(
            0 < self.rank <= self.state_dim,
            f"generator.rank must lie in 1..state_dim ({self.state_dim}), got {self.rank}",
        )
        require(
            self.normalization in NORMALIZATIONS,
            f"generator.normalization must be one of {', '.join(NORMALIZATIONS)}, got {self.normalization!r}",
        )
        require(
            self.encoder is not None or self.normalization == "svd" or self.rank == self.state_dim,
            f"{self.normalization} keeps all {self.state_dim} directions: set generator.rank to {self.state_dim}, "
            "or use normalization: svd for a smaller rank",
        )
        require(self.scale > 0, f"generator.scale must be positive, got {self.scale}")
        require(self.value_shift >= 0, f"generator.value_shift must not be negative, got {self.value_shift}")
        require(
            self.value_layer is None or self.value_layer >= 0,
            f"generator.value_layer must not be negative, got {self.value_layer}",
        )
        require(
            0 not in self.key_windows and len(set(self.key_windows)) == len(self.key_windows),
            f"generator.key_windows must be different non-zero token counts, got {list(self.key_windows)}",
        )
        require(
            not self.window_gates or len(self.key_windows) > 0, "generator.window_gates needs generator.key_windows"
        )
        require(self.chunk_tokens > 0, f"generator.chunk_tokens must be positive, got {self.chunk_tokens}")
        require(
            self.subspace_iterations >= 0,
            f"generator.subspace_iterations must not be negative, got {self.subspace_iterations}",
        )
        require(
            self.subspace_iterations == 0 or self.normalization == "svd",
            f"generator.subspace_iterations belongs to normalization: svd; remove it for {self.normalization}",
        )
        if self.encoder is not None:
            self._check_encoder_form()

    def _check_encoder_form(self) -> None:
        require(
            self.normalization == "ridge",
            f"a generator with an encoder needs generator.normalization: ridge, got {self.normalization!r}",
        )
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in _PAPER_ONLY:
            require(
                getattr(self, name) == defaults[name],
                f"generator.{name} belongs to the paper's generator; remove it, or generator.encoder",
            )
        assert self.encoder is not None
        coded = self.encoder.surroundings_dim
        require(
            coded == 0 or (coded < self.state_dim and len(self.encoder.unit_layers) > 0 and self.layers == ()),
            f"generator.encoder.surroundings_dim must lie below state_dim ({self.state_dim}) and needs unit_layers and "
            f"no other layers (generator.layers: []), got {coded}",
        )


@dataclass(frozen=True)
class PromptConfig:
    """How a question is put to the base model; a generator keeps the wording it was trained with.

    Attributes:
        question: closed-book and adapter prompt, with `{question}`; special tokens such as `<|im_start|>` are read as
            such. None: the tokenizer's chat template with the question as the user's message, or the paper's
            "Question: ... / Answer:" (Figure 7) where there is no template.
        context: full-context prompt text, with `{context}` and `{question}`, put in the question's place (Figure 7).
        end: text that ends an answer; None: the tokenizer's end-of-sequence token.
    """

    question: str | None = None
    context: str = (
        "{context}\n\nInstruction: Answer the question based on the context above. Respond with a short phrase only. "
        "Keep the answer short and concise, without any explanation or additional words\n\n"
        "Question: {question}\n\nAnswer:"
    )
    end: str | None = None

    def __post_init__(self) -> None:
        require(
            self.question is None or "{question}" in self.question,
            f"prompt.question must hold {{question}}, got {self.question!r}",
        )
        for field in ("{context}", "{question}"):
            require(field in self.context, f"prompt.context must hold {field}, got {self.context!r}")
