#!/usr/bin/env python3
"""Trains a small T5 from nothing to summarise package descriptions: the base of the prefix tuning guide.

    python3 pretrain_t5.py PAIRS.jsonl OUT

Rows are {"prompt": description, "completion": summary}. OUT becomes a Hugging Face folder. Needs torch, transformers,
tokenizers and safetensors. Seeds are fixed; another processor or another version of torch may still round differently.
"""

import argparse
import json
import math
import pathlib
import random
import time

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

PAD, EOS = "<pad>", "</s>"
SOURCE, TARGET = 64, 24  # most tokens


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return tokenizer


def padded(rows, fill):
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def loss_of(model, batch):
    sources, targets = zip(*batch)
    ids = padded(sources, 0)
    return model(input_ids=ids, attention_mask=(ids != 0).long(), labels=padded(targets, -100)).loss


def save(model, tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    GenerationConfig(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD, "eos_token": EOS}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--stop", type=int, help="end after so many steps, with the rates of the whole run")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=5e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    rows = [json.loads(line) for line in open(args.pairs, encoding="utf-8")]
    tokenizer = train_tokenizer(text for row in rows for text in (row["prompt"], row["completion"]))

    def ids(text, most):
        found = tokenizer.encode(text).ids
        return found if len(found) <= most else found[: most - 1] + [1]

    pairs = [(ids(row["prompt"], SOURCE), ids(row["completion"], TARGET)) for row in rows]
    held_out, pairs = pairs[:200], pairs[200:] or pairs
    config = T5Config(
        vocab_size=2048, d_model=96, d_kv=24, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=True, dropout_rate=0.0, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1,
    )
    model = T5ForConditionalGeneration(config)
    print(f"{sum(it.numel() for it in model.parameters())} parameters, {len(pairs)} pairs", flush=True)

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    draw, began, running = random.Random(0), time.time(), 0.0
    last = min(args.stop or args.steps, args.steps)
    for step in range(1, last + 1):
        # Rows of like length together: 8 batches' worth, sorted, one of them taken.
        pool = sorted(draw.choices(pairs, k=args.batch * 8), key=lambda it: len(it[0]))
        at = draw.randrange(8) * args.batch
        rate = args.lr * min(1.0, step / args.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, pool[at : at + args.batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running += loss.item()
        if step % 100 == 0:
            print(f"step {step}/{last} loss {running / 100:.4f} {time.time() - began:.0f} s", flush=True)
            running = 0.0
        if step % 500 == 0 or step == last:
            save(model, tokenizer, args.out)
    with torch.no_grad():
        parts = [held_out[at : at + 20] for at in range(0, len(held_out), 20)]
        mean = sum(loss_of(model, part).item() for part in parts) / len(parts)
    print(f"held out: loss {mean:.4f}, perplexity {math.exp(mean):.1f}")


if __name__ == "__main__":
    main()
