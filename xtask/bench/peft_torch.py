"""The same work in PEFT and torch: the other side of `cargo xtask bench --compare`.

One process, one measurement, and the same conversation as `peft/benches/measure` has: it says
`loaded SECONDS TRAINABLE`, does a step for every line `step` that it reads and says `step SECONDS VALUE`, and at the
end of its input `peak BYTES`.
"""

import argparse
import itertools
import sys
import time


def main():
    args = parse()
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)

    kind = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "seq-cls": transformers.AutoModelForSequenceClassification,
    }[args.task]
    begun = time.perf_counter()
    model = kind.from_pretrained(args.folder, dtype=torch.float32).to(device)
    load = time.perf_counter() - begun

    vocab = model.config.vocab_size
    ids = (torch.arange(args.batch * args.seq, dtype=torch.long) * 7919 % vocab).view(args.batch, args.seq).to(device)
    if args.task == "causal-lm":
        labels = ids
    else:
        labels = torch.arange(args.batch, device=device) % model.config.num_labels

    if args.method == "adapters":
        steps = infer(model, args, ids)
    else:
        steps = train(model, args, ids, labels)
    trainable = next(steps)
    say(f"loaded {load} {trainable}")
    for line in sys.stdin:
        if line.strip() != "step":
            break
        begun = time.perf_counter()
        value = next(steps)
        say(f"step {time.perf_counter() - begun} {value}")
    say(f"peak {peak_bytes()}")


def lora(args):
    from peft import LoraConfig

    return LoraConfig(
        r=args.rank,
        lora_alpha=2 * args.rank,
        target_modules="all-linear" if args.all_linear else None,
        use_dora=args.dora,
        task_type="SEQ_CLS" if args.task == "seq-cls" else "CAUSAL_LM",
    )


def train(model, args, ids, labels):
    """Yields the number of trained parameters, then the loss of every step."""
    import torch
    from peft import get_peft_model

    if args.method == "lora":
        model = get_peft_model(model, lora(args))
    model.train()
    parameters = [it for it in model.parameters() if it.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.01)
    yield sum(it.numel() for it in parameters)
    while True:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield loss.item()


def infer(model, args, ids):
    """Yields the number of trainable parameters, then the last logit of every forward, adapter by adapter."""
    import torch
    from peft import get_peft_model

    names = [f"adapter{it}" for it in range(args.adapters)]
    model = get_peft_model(model, lora(args), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, lora(args))
    model.eval()
    yield sum(it.numel() for it in model.parameters() if it.requires_grad)
    with torch.inference_mode():
        for name in itertools.cycle(names):
            model.set_adapter(name)
            logits = model(input_ids=ids).logits
            yield logits.flatten()[-1].item()


def peak_bytes():
    """What the process has held at most. Not `ru_maxrss`: that one remembers the caller from before the `exec`."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def say(line):
    print(line, flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--task", required=True, choices=["causal-lm", "seq-cls"])
    parser.add_argument("--method", required=True, choices=["lora", "full", "adapters"])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--all-linear", action="store_true")
    parser.add_argument("--dora", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--adapters", type=int, default=1)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seq", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
