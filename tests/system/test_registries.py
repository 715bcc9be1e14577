"""Real servers from the package registry, with random models: LiteLLM, `transformers serve`, llama.cpp.

They are installed anew in environments of their own, which takes minutes and gigabytes: only
``scripts/test -m slow`` runs these tests. Nothing is downloaded but packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import write_lines
from programs import program, unused_port
from services import NO_LIMITS

from parallel_processor import Limits, Processor, RunStoppedError, StopCause, Summary, read_results
from parallel_processor.files.verify import verify_results
from parallel_processor.simulator import Simulator, SimulatorOptions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
AUTO = Limits(requests_per_minute="auto", tokens_per_minute="auto")
# Releases that were tried; of LiteLLM's, 1.107.0 was tampered with.
LITELLM = ("litellm[proxy]==1.108.*",)
TRANSFORMERS = ("torch==2.13.0", "transformers[serving]==5.24.*")
LLAMA_CPP = ("llama-cpp-python[server]==0.3.*", "gguf==0.19.*")
READY_S = 120.0


def installed(name: str, *requirements: str) -> Path:
    """The folder of programs of an environment with these packages; it is made, or used again."""
    listed = subprocess.run([ROOT / "scripts/pythons"], capture_output=True, text=True, check=True)
    pythons = [each for each in listed.stdout.split() if each.endswith("3.11")] or [sys.executable]
    folder = ROOT / f".venv-{name}"
    subprocess.run([ROOT / "scripts/venv", folder, pythons[0], *requirements], check=True)
    return folder / "bin"


KEYS = """
import litellm
from litellm.proxy._types import UserAPIKeyAuth

KEYS = {
    "sk-requests": {"rpm_limit": 300},
    "sk-parallel": {"max_parallel_requests": 4},
    "sk-model": {"metadata": {"model_rpm_limit": {"small": 60}}},
    "sk-poor": {"max_budget": 1.0, "spend": 1.5},
}


async def check(request, api_key):
    made = UserAPIKeyAuth(api_key=api_key, user_id=api_key, **KEYS[api_key])
    if made.max_budget is not None and made.spend >= made.max_budget:
        raise litellm.BudgetExceededError(current_cost=made.spend, max_budget=made.max_budget)
    return made
"""


@pytest.fixture(scope="module")
def litellm() -> Path:
    """LiteLLM's command."""
    return installed("litellm", *LITELLM) / "litellm"


@contextmanager
def proxy(command: Path, simulator: Simulator, folder: Path) -> Iterator[str]:
    """LiteLLM's proxy before the simulator, with a few keys that have limits."""
    (folder / "keys.py").write_text(KEYS, "utf-8")
    models = "".join(
        f"  - model_name: {name}\n    litellm_params:\n      model: openai/{name}\n"
        f"      api_base: {simulator.url}/v1\n      api_key: sk-x\n"
        for name in ("small", "large")
    )
    (folder / "config.yaml").write_text(
        f"model_list:\n{models}general_settings:\n  custom_auth: keys.check\n"
        "litellm_settings:\n  num_retries: 0\n",
        "utf-8",
    )
    port = unused_port()
    words = (command, "--config", folder / "config.yaml", "--host", "127.0.0.1", "--port", port)
    variables = {"LITELLM_MASTER_KEY": "sk-" + "0123456789abcdef" * 2, "PYTHONPATH": str(folder)}
    with program(words, port, folder / "litellm.out", ready_s=READY_S, **variables):
        yield f"http://127.0.0.1:{port}"


def chat(model: str, number: int) -> dict[str, Any]:
    """A small request."""
    return {"model": model, "messages": [{"role": "user", "content": f"text {number}"}]}


def run_through(url: str, folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Summary:
    """Send ``rows``; all must be answered, and on record once."""
    source, save = write_lines(folder / "in.jsonl", rows), folder / "out.jsonl"
    options: dict[str, Any] = {"limits": AUTO} | settings
    processor = Processor(request_url=f"{url}/v1/chat/completions", **options)
    summary = processor.process_file(source, save, progress=False)
    assert verify_results(source, save).ok
    return summary


def test_a_keys_limit_is_read_and_used(litellm: Path, tmp_path: Path) -> None:
    """Its headers name 300 a minute: two minutes of work are not refused, and most of it is used."""
    with Simulator(SimulatorOptions(latency_s=0.1)) as simulator:
        with proxy(litellm, simulator, tmp_path) as url:
            rows = [chat("small", number) for number in range(600)]
            summary = run_through(url, tmp_path, rows, api_key="sk-requests")
        (seconds,) = simulator.timeline().values()
    counts = [admitted for admitted, *_ in seconds]
    used, refused = sum(counts[:90]) / 450, summary.rate_limited / 600
    print(f"{used:.1%} used, {refused:.1%} refused, {len(counts)} s")
    assert used >= 0.85
    assert refused <= 0.03


def test_a_limit_of_one_model_is_not_the_others(litellm: Path, tmp_path: Path) -> None:
    """The key's 60 a minute for one model are kept, and the other model's requests don't wait."""
    with Simulator(SimulatorOptions(latency_s=0.1)) as simulator:
        with proxy(litellm, simulator, tmp_path) as url:
            rows = [chat(("small", "large")[number % 10 > 0], number) for number in range(900)]
            summary = run_through(url, tmp_path, rows, api_key="sk-model")
        timeline = simulator.timeline()
    print(f"{summary.rate_limited} refused; { ({m: len(s) for m, s in timeline.items()}) } s")
    assert summary.rate_limited <= 30
    assert len(timeline["large"]) < len(timeline["small"])


def test_parallel_requests_are_kept_to(litellm: Path, tmp_path: Path) -> None:
    """Four at once, as the headers say: few are refused, though each refusal asks for a minute."""
    with Simulator(SimulatorOptions(latency_s=0.3)) as simulator:
        with proxy(litellm, simulator, tmp_path) as url:
            rows = [chat("small", number) for number in range(200)]
            summary = run_through(url, tmp_path, rows, api_key="sk-parallel")
        (seconds,) = simulator.timeline().values()
    print(f"{summary.rate_limited} refused, {len(seconds)} s, where 15 s would do")
    assert summary.rate_limited <= 20
    assert len(seconds) <= 30


def test_a_budget_that_is_spent_stops_the_run(litellm: Path, tmp_path: Path, many: Path) -> None:
    """It is told as what it is, before a hundred requests were sent."""
    with Simulator() as simulator, proxy(litellm, simulator, tmp_path) as url:
        processor = Processor(request_url=f"{url}/v1/embeddings", api_key="sk-poor")
        with pytest.raises(RunStoppedError, match="Budget has been exceeded") as stopped:
            processor.process_file(many, tmp_path / "out.jsonl", progress=False)
    assert stopped.value.stop_cause is StopCause.QUOTA
    sent = (tmp_path / "litellm.out").read_text("utf-8").count('"POST /v1/embeddings')
    assert 0 < sent <= 100


MODEL = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

letters = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
made.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
made.save_pretrained(sys.argv[1])
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
LlamaForCausalLM(LlamaConfig(vocab_size=len(letters), **sizes)).save_pretrained(sys.argv[1])
"""


def test_an_inference_server_answers(tmp_path: Path) -> None:
    """`transformers serve` with a model that was made on the spot: every answer holds a text."""
    programs, offline = installed("transformers", *TRANSFORMERS), {"HF_HUB_OFFLINE": "1"}
    model = tmp_path / "model"
    subprocess.run([programs / "python", "-c", MODEL, model], check=True, env=os.environ | offline)
    port = unused_port()
    words = (programs / "transformers", "serve", model, "--host", "127.0.0.1", "--port", port)
    rows = [chat(str(model), number) | {"max_tokens": 8} for number in range(200)]
    with program(words, port, tmp_path / "serve.out", ready_s=READY_S, **offline):
        run_through(f"http://127.0.0.1:{port}", tmp_path, rows)
    results = list(read_results(tmp_path / "out.jsonl"))
    assert len(results) == len(rows)
    assert all(isinstance(result.text, str) for result in results)


EMBEDDER = """
import sys

import gguf
import numpy

WIDTH, LAYERS, INNER, CONTEXT = 64, 2, 128, 512
random = numpy.random.default_rng(7)
letters = "abcdefghijklmnopqrstuvwxyz0123456789"
tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *("\\u2581" + each for each in letters), *letters]
made = gguf.GGUFWriter(sys.argv[1], "bert")
made.add_context_length(CONTEXT)
made.add_embedding_length(WIDTH)
made.add_feed_forward_length(INNER)
made.add_block_count(LAYERS)
made.add_head_count(4)
made.add_layer_norm_eps(1e-12)
made.add_causal_attention(False)
made.add_pooling_type(gguf.PoolingType.MEAN)
made.add_tokenizer_model("bert")
made.add_tokenizer_pre("default")
made.add_token_list(tokens)
made.add_token_types([3] * 5 + [1] * (len(tokens) - 5))
made.add_token_type_count(2)
made.add_bos_token_id(2)
made.add_eos_token_id(3)
made.add_unk_token_id(1)
made.add_sep_token_id(3)
made.add_pad_token_id(0)


def add(name, *shape):
    values = numpy.ones(shape) if name.endswith("norm.weight") else random.standard_normal(shape) * 0.3
    made.add_tensor(name, values.astype(numpy.float32))


def layer(name, out, *inner):
    add(name + ".weight", out, *inner)
    add(name + ".bias", out)


add("token_embd.weight", len(tokens), WIDTH)
add("position_embd.weight", CONTEXT, WIDTH)
add("token_types.weight", 2, WIDTH)
layer("token_embd_norm", WIDTH)
for number in range(LAYERS):
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        layer(f"blk.{number}.{part}", WIDTH, WIDTH)
    layer(f"blk.{number}.ffn_up", INNER, WIDTH)
    layer(f"blk.{number}.ffn_down", WIDTH, INNER)
    for part in ("attn_output_norm", "layer_output_norm"):
        layer(f"blk.{number}.{part}", WIDTH)
made.write_header_to_file()
made.write_kv_data_to_file()
made.write_tensors_to_file()
made.close()
"""


def test_packed_vectors_of_a_real_embedder_are_those_of_single_texts(tmp_path: Path) -> None:
    """llama.cpp's server, with a random model: 12 requests instead of 600."""
    folder = installed("embedder", *LLAMA_CPP)
    subprocess.run([folder / "python", "-c", EMBEDDER, tmp_path / "m.gguf"], check=True)
    port = unused_port()
    words = (folder / "python", "-m", "llama_cpp.server", "--model", tmp_path / "m.gguf")
    flags = ("--embedding", "true", "--n_ctx", 512, "--host", "127.0.0.1", "--port", port)
    rows = [{"model": "m", "input": f"text number {number}"} for number in range(600)]
    found = []
    with program((*words, *flags), port, tmp_path / "server.out", ready_s=READY_S):
        for settings in ({"pack_inputs": 50}, {}):
            url, limits = f"http://127.0.0.1:{port}/v1/embeddings", NO_LIMITS
            with Processor(request_url=url, limits=limits, max_workers=4, **settings) as made:
                found.append(made.map(rows))
                attempts = made.stats().attempts
            assert attempts == (12 if settings else 600)
    for packed, alone in zip(*found, strict=True):
        assert packed.embedding == pytest.approx(alone.embedding, abs=1e-2)
        assert set(packed.response) == set(alone.response)
    used = [sum(outcome.used_tokens or 0 for outcome in outcomes) for outcomes in found]
    assert used[0] == used[1] > 0
