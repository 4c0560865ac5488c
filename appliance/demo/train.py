"""Train the demo model from nothing: ``python -m appliance.demo.train [--out DIR] [--minutes M]``.

Makes the tokenizer and the weights from ``corpus.py`` alone, with a fixed seed. The weights are stored as bfloat16 and declared
float32: each is a float32 number too, so that engines compute in float32 without any loss.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from appliance.demo import MODEL_DIR
from appliance.demo.corpus import Message, conversations, passages, questions

SEED: Final = 20261124
VOCABULARY: Final = 1536
CONTEXT: Final = 4096
LENGTH, BATCH = 256, 8  # tokens of a training sequence, sequences of a step
PEAK_RATE, WARM_UP_STEPS = 3e-3, 100
SPECIAL: Final = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
END: Final = SPECIAL[0]
TEMPLATE: Final = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: every UTF-8 text can be written with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [line for phrasings, answer in questions() for line in (*phrasings, answer)]
    tokenizer.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=CONTEXT)
    fast.chat_template = TEMPLATE
    return fast


def make_model(vocabulary: int) -> LlamaForCausalLM:
    """Grouped-query attention: 6 heads share 2 KV heads."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).float()


def render(messages: list[Message]) -> str:
    """A chat as the template renders it, the last answer included."""
    return "".join(f"<|{message['role']}|>{message['content']}{END}" for message in messages)


def token_stream(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[int]:
    """Chats and passages without end."""
    texts, chats = passages(), conversations(rng)
    while True:
        text = rng.choice(texts) + END if rng.random() < 0.2 else render(next(chats))
        yield from tokenizer(text)["input_ids"]


def batches(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[torch.Tensor]:
    """``[BATCH, LENGTH]`` token ids."""
    stream = token_stream(tokenizer, rng)
    while True:
        yield torch.tensor([[next(stream) for _ in range(LENGTH)] for _ in range(BATCH)])


def rate(step: int, progress: float) -> float:
    """Learning rate: a short warm-up, then down to a tenth along a cosine of the time used."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    cosine = 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))
    return PEAK_RATE * warm * (0.02 + 0.98 * cosine)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seconds: float) -> float:
    """Train for as long as is given; the last loss. Positions begin anywhere, so that long prompts are no foreign land."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    rng, start, smooth = random.Random(SEED), time.monotonic(), 0.0
    for step, tokens in enumerate(batches(tokenizer, rng)):
        progress = (time.monotonic() - start) / seconds
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate(step, progress)
        first = rng.choice((0, 0, rng.randrange(CONTEXT - LENGTH)))
        positions = torch.arange(first, first + LENGTH).expand(BATCH, -1)
        loss = model(input_ids=tokens, position_ids=positions, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if step == 0 else 0.97 * smooth + 0.03 * loss.item()
        if step % 20 == 0:
            _say(
                f"\r{progress:6.1%}  step {step:5d}  loss {smooth:.3f}  {(step + 1) * BATCH * LENGTH / 1e6:.2f} M tokens"
            )
    _say("\n")
    return smooth


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """A Hugging Face directory; see the module's docstring for the dtypes."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    generation = {"eos_token_id": 0, "pad_token_id": 0}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m appliance.demo.train")
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument("--minutes", type=float, default=6.0)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    _say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens\n")
    loss = train(model, tokenizer, options.minutes * 60)
    save(model, tokenizer, options.out)
    _say(f"loss {loss:.3f}; written to {options.out}\n")


if __name__ == "__main__":
    main()
