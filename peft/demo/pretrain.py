#!/usr/bin/env python3
"""Trains the demo's base model: a GPT-2 of 1.07 million parameters on six novels by Jane Austen.

    python3 pretrain.py NOVELS OUT

NOVELS holds the six novels as plain text (emma.txt, mansfieldpark.txt, ...). OUT becomes a Hugging Face
folder: config.json, model.safetensors (float16), tokenizer.json, tokenizer_config.json.
Needs torch, transformers, tokenizers and safetensors. Seeds are fixed; one CPU core is enough.
"""

import argparse
import json
import math
import pathlib
import re
import time

import torch
from safetensors.torch import save as to_safetensors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel

NOVELS = ("emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice", "sensesensibility")
EOT = "<|endoftext|>"
CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "vocab_size": 2048,
    "n_positions": 128,
    "n_embd": 128,
    "n_layer": 4,
    "n_head": 4,
    "layer_norm_epsilon": 1e-05,
    "initializer_range": 0.02,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
}


def chapters(text):
    """The chapters of a novel: one paragraph a line, without title pages, headings and notes."""
    text = text.replace("\r\n", "\n").replace("_", "").replace("\u00a3", "L")
    text = text.split("A NOTE ON THE TEXT")[0]
    text = re.sub(r"\[[^\]]*\]", "", text)
    text = re.sub(r"(?m)^(VOLUME [IVX]+|THE END|FINIS|Finis|\*Vide .*|[ *]*\*[ *]*)$", "", text)
    for chapter in re.split(r"(?mi)^chapter [ivxl\d]+\.?$", text)[1:]:
        paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", chapter))
        chapter = "\n".join(part for part in paragraphs if part)
        if chapter:
            yield chapter + "\n"


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # so that any bytes can be encoded
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.token_to_id(EOT) == CONFIG["eos_token_id"]
    return tokenizer


def encode(tokenizer, texts):
    ids = []
    for encoding in tokenizer.encode_batch(texts):
        ids += [CONFIG["bos_token_id"], *encoding.ids]
    return torch.tensor(ids)


def batches(ids, length, size, generator):
    """One epoch: windows of `length` tokens from a random offset on, in random order."""
    start = int(torch.randint(length, (), generator=generator))
    windows = ids[start : start + (len(ids) - start) // length * length].view(-1, length)
    return windows[torch.randperm(len(windows), generator=generator)].split(size)


def loss_of(model, window):
    logits = model(input_ids=window).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())


@torch.no_grad()
def evaluate(model, ids, length):
    windows = ids[: len(ids) // length * length].view(-1, length).split(16)
    return sum(loss_of(model, w).item() * len(w) for w in windows) / sum(len(w) for w in windows)


def pretrain(model, train, held_out, args):
    length = CONFIG["n_positions"]
    generator = torch.Generator().manual_seed(args.seed)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
    total = args.epochs * (len(train) // length // args.batch)
    print(f"{len(train)} training tokens, {len(held_out)} held out, {total} steps", flush=True)

    began, step, running = time.time(), 0, 0.0
    while step < total:
        for window in batches(train, length, args.batch, generator):
            warmup = min(1.0, (step + 1) / args.warmup)
            rate = args.lr * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of(model, window)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            running += loss.item()
            step += 1
            if step % 100 == 0:
                line = f"step {step}/{total} train {running / 100:.4f} {time.time() - began:.0f} s"
                if step % 500 == 0:
                    line += f" held out {evaluate(model, held_out, length):.4f}"
                print(line, flush=True)
                running = 0.0
            if step == total:
                break


def save(model, tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.half().contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to transformer.wte.weight
    }
    (out / "model.safetensors").write_bytes(to_safetensors(tensors, metadata={"format": "pt"}))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONFIG["n_positions"],
        "bos_token": EOT,
        "eos_token": EOT,
        "pad_token": EOT,
        "clean_up_tokenization_spaces": False,
    }
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    compact = json.loads(tokenizer.to_str())
    (out / "tokenizer.json").write_text(json.dumps(compact, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("novels", type=pathlib.Path, help="folder with the six novels")
    parser.add_argument("out", type=pathlib.Path, help="folder for the model")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16, help="windows of 128 tokens in a step")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=200, help="steps of linear warmup")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    train, held_out = [], []
    for novel in NOVELS:
        parts = list(chapters((args.novels / f"{novel}.txt").read_text("utf-8")))
        train += parts[:-1]
        held_out += parts[-1:]  # the last chapter of each novel
    print(f"{len(train)} chapters, {sum(map(len, train))} characters, {len(held_out)} held out")

    tokenizer = train_tokenizer(train)
    config = GPT2Config(**{key: value for key, value in CONFIG.items() if key != "torch_dtype"})
    model = GPT2LMHeadModel(config)
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    ids, held_out_ids = encode(tokenizer, train), encode(tokenizer, held_out)
    pretrain(model, ids, held_out_ids, args)
    save(model, tokenizer, args.out)

    length = CONFIG["n_positions"]
    saved = GPT2LMHeadModel.from_pretrained(args.out, dtype=torch.float32)
    sample = ids[: 64 * length]  # the first 8192 training tokens
    print(f"saved: train {evaluate(saved, sample, length):.4f} held out {evaluate(saved, held_out_ids, length):.4f}")


if __name__ == "__main__":
    main()
