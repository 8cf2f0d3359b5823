"""Tiny random models of ten families, a byte-level tokenizer in memory, and generators whose adapters matter.

Two blocks and distinct, mostly prime sizes, so that a swapped axis can't pass; windows of a few tokens where a family
has sliding attention; weights large enough that every part of a model shows in its logits.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from generative_adapter.base_model.fingerprint import base_model_fingerprint
from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import GeneratorCheckpoint
from generative_adapter.config import EncoderConfig, GeneratorConfig, PromptConfig
from generative_adapter.generator.protocol import ContextGenerator

GeneratorT = TypeVar("GeneratorT", bound=ContextGenerator)

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, LAYERS = 20, 4, 2, 6, 37, 2
WINDOW = 5  # tokens of sliding attention
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|header|>", "<unk>")
VOCABULARY = 256 + len(SPECIAL)  # 263, a prime
PAD, BEGIN, END, TURN_START, TURN_END = range(5)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS // 2,
    "num_key_value_heads": KV_HEADS // 2,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 1024,
}
_WIDE_HEADS = {
    **_LLAMA_LIKE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
}  # d_in of the attention output (24) differs from d_h (20)
_MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        settings: of its config.
        blocks: path of its Transformer blocks.
        attention_output: name inside a block and (d_in, d_out) of that role.
        feed_forward_down: the same for the other role.
        by_name: another linear that is asked for by the end of its name, with its full name and shape.
    """

    settings: dict[str, Any]
    blocks: str = "model.layers"
    attention_output: tuple[str, tuple[int, int]] = ("self_attn.o_proj", (HEADS * HEAD_DIM, HIDDEN))
    feed_forward_down: tuple[str, tuple[int, int]] = ("mlp.down_proj", (INNER, HIDDEN))
    by_name: tuple[str, str, tuple[int, int]] = ("v_proj", "self_attn.v_proj", (HIDDEN, KV_HEADS * HEAD_DIM))


FAMILIES: dict[str, Family] = {
    "llama": Family(_WIDE_HEADS),
    "mistral": Family({**_WIDE_HEADS, "sliding_window": WINDOW}),
    "qwen2": Family(
        {**_LLAMA_LIKE, **_MIXED, "use_sliding_window": True},
        attention_output=("self_attn.o_proj", (HIDDEN, HIDDEN)),
        by_name=("k_proj", "self_attn.k_proj", (HIDDEN, HIDDEN // 2)),
    ),
    "qwen3": Family({**_WIDE_HEADS, "use_sliding_window": False}),
    "gemma2": Family(
        {
            **_WIDE_HEADS,
            **_MIXED,
            "query_pre_attn_scalar": 6,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": False,
        },
        by_name=("gate_proj", "mlp.gate_proj", (HIDDEN, INNER)),
    ),
    "gemma3_text": Family({**_WIDE_HEADS, **_MIXED, "query_pre_attn_scalar": 6}),
    "phi3": Family(
        {**_LLAMA_LIKE, "sliding_window": WINDOW},
        attention_output=("self_attn.o_proj", (HIDDEN, HIDDEN)),
        by_name=("qkv_proj", "self_attn.qkv_proj", (HIDDEN, 2 * HIDDEN)),
    ),
    "olmo2": Family(
        _LLAMA_LIKE,
        attention_output=("self_attn.o_proj", (HIDDEN, HIDDEN)),
        by_name=("v_proj", "self_attn.v_proj", (HIDDEN, HIDDEN // 2)),
    ),
    "gpt_neox": Family(
        {
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_attention_heads": HEADS // 2,
            "num_hidden_layers": LAYERS,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.4},
        },
        blocks="gpt_neox.layers",
        attention_output=("attention.dense", (HIDDEN, HIDDEN)),
        feed_forward_down=("mlp.dense_4h_to_h", (INNER, HIDDEN)),
        by_name=("query_key_value", "attention.query_key_value", (HIDDEN, 3 * HIDDEN)),
    ),
    "gpt2": Family(
        {
            "n_embd": HIDDEN,
            "n_inner": INNER,
            "n_head": HEADS,
            "n_layer": LAYERS,
            "n_positions": 1024,
            "tie_word_embeddings": False,
        },
        blocks="transformer.h",
        attention_output=("attn.c_proj", (HIDDEN, HIDDEN)),
        feed_forward_down=("mlp.c_proj", (INNER, HIDDEN)),
        by_name=("c_attn", "attn.c_attn", (HIDDEN, 3 * HIDDEN)),
    ),
}


def tiny_model(family: str, seed: int = 11) -> nn.Module:
    """A frozen random causal language model of one family in float32."""
    config = AutoConfig.for_model(
        family,
        **FAMILIES[family].settings,
        vocab_size=VOCABULARY,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
    )
    model = AutoModelForCausalLM.from_config(config)
    assert model.dtype == torch.float32
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            elif parameter is model.get_input_embeddings().weight and "gemma" not in family:
                parameter.copy_(noise)
            else:  # Gemma multiplies its embeddings by the square root of their width
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return model.eval().requires_grad_(False)


def tiny_tokenizer(*, begin: bool = False, chat: bool = True) -> PreTrainedTokenizerFast:
    """A token a byte, and special tokens: `<|header|>` is one that no named role mentions.

    Args:
        begin: whether a text starts with `<s>` by itself.
        chat: whether there is a chat template.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *alphabet))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.Fuse()  # a character a token, also where the bytes are no valid UTF-8
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if begin:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>" if chat else "</s>", pad_token="<pad>"
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_base(family: str = "llama", *, seed: int = 11, begin: bool = False, chat: bool = True) -> BaseModel:
    """A tiny model with the byte-level tokenizer."""
    model = tiny_model(family, seed)
    tokenizer = tiny_tokenizer(begin=begin, chat=chat)
    return BaseModel(model, tokenizer, f"tiny-{family}", "tiny", base_model_fingerprint(model))


def tiny_config(**settings: Any) -> GeneratorConfig:
    """Both roles, rank 5 of 7, SVD, chunks of 13 tokens, unless told otherwise."""
    values: dict[str, Any] = {
        "targets": ("attention_output", "feed_forward_down"),
        "state_dim": 7,
        "rank": 5,
        "scale": 0.5,
        "normalization": "svd",
        "chunk_tokens": 13,
        **settings,
    }
    if values["normalization"] != "svd":
        values["rank"] = values["state_dim"]
    return GeneratorConfig(**values)


def tiny_encoder_config(encoder: dict[str, Any] | None = None, **settings: Any) -> GeneratorConfig:
    """A generator with an encoder: both roles, all parts, values of 7 and keys of 11, unless told otherwise."""
    values: dict[str, Any] = {
        "targets": ("attention_output", "feed_forward_down"),
        "state_dim": 11,
        "rank": 7,
        "scale": 0.5,
        "normalization": "ridge",
        "chunk_tokens": 13,
        **settings,
    }
    form: dict[str, Any] = {
        "states": (1,),
        "width": 15,
        "heads": 3,
        "largest_distance": 4,
        "reading_rank": 3,
        "reading_from_layer": 0,
        "constant_rank": 2,
        "constant_from_layer": 1,
        **(encoder or {}),
    }
    return GeneratorConfig(**values, encoder=EncoderConfig(**form))


def randomize(generator: GeneratorT, seed: int = 3) -> GeneratorT:
    """Gives every weight a random value, `output_proj` too, so that adapters aren't zero."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in generator.named_weights().values():
            noise = torch.randn(weight.shape, generator=random)
            weight.copy_(1 + 0.2 * noise if weight.ndim == 1 else noise * weight.shape[-1] ** -0.5)
    return generator


def tiny_checkpoint(
    base: BaseModel, config: GeneratorConfig | None = None, *, seed: int = 3, prompt: PromptConfig | None = None
) -> GeneratorCheckpoint:
    """A random generator for a tiny base model."""
    config = config or tiny_config()
    generator = randomize(build_generator(config, base), seed).eval().requires_grad_(False)
    return GeneratorCheckpoint(generator, config, prompt or PromptConfig(), base.name, base.fingerprint)
