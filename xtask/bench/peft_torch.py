"""The same work in PEFT and torch: the other side of `cargo xtask bench --compare`.

One process, one measurement, and the same conversation as `peft/benches/measure` has: it says
`loaded SECONDS TRAINABLE`, does a step for every line `step` that it reads and says `step SECONDS VALUE`, and at the
end of its input `peak BYTES CARD_BYTES`.
"""

import argparse
import itertools
import sys
import time

MEDIA = ["image-cls", "semantic-seg", "speech-to-text", "unet"]
# What release 5 of transformers calls `query` and `value` of ViT, Swin and SegFormer.
NEW_NAMES = ["q_proj", "v_proj"]


def main():
    args = parse()
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    if args.tf32:
        torch.set_float32_matmul_precision("high")
    device = torch.device(args.device)

    begun = time.perf_counter()
    model = load_model(args).to(device)
    load = time.perf_counter() - begun

    inputs = {name: it.to(device) for name, it in batch(model, args).items()}
    if args.method == "adapters":
        steps = infer(model, args, inputs["input_ids"])
    else:
        steps = train(model, args, inputs)
    trainable = next(steps)
    say(f"loaded {load} {trainable}")
    for line in sys.stdin:
        if line.strip() != "step":
            break
        begun = time.perf_counter()
        value = next(steps)
        if device.type == "cuda":
            torch.cuda.synchronize()
        say(f"step {time.perf_counter() - begun} {value}")
    say(f"peak {peak_bytes()} {torch.cuda.max_memory_reserved() if device.type == 'cuda' else 0}")


def load_model(args):
    import torch
    import transformers

    if args.task == "unet":
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel.from_pretrained(args.folder)
    kind = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "seq-cls": transformers.AutoModelForSequenceClassification,
        "image-cls": transformers.AutoModelForImageClassification,
        "semantic-seg": transformers.AutoModelForSemanticSegmentation,
        "speech-to-text": transformers.AutoModelForSpeechSeq2Seq,
    }[args.task]
    quantized = None
    if args.quantize == "int8":
        quantized = transformers.BitsAndBytesConfig(load_in_8bit=True)
    elif args.quantize:
        quantized = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=args.quantize,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if args.bf16 else torch.float32,
        )
    dtype = torch.bfloat16 if args.bf16_base else torch.float32
    return kind.from_pretrained(args.folder, dtype=dtype, quantization_config=quantized)


def batch(model, args):
    """What the model is called with. Media are the numbers of `peft/benches/measure/media.rs`."""
    import torch

    def spread(*shape, prime=7919):
        return torch.arange(torch.Size(shape).numel(), dtype=torch.long).view(shape) * prime

    def numbers(*shape, prime=7919):
        return (spread(*shape, prime=prime) % 1009).float() / 504.5 - 1.0

    size = args.size
    if args.task == "image-cls":
        pixels = numbers(args.batch, model.config.num_channels, size, size)
        return {"pixel_values": pixels, "labels": spread(args.batch) % model.config.num_labels}
    if args.task == "semantic-seg":
        pixels = numbers(args.batch, model.config.num_channels, size, size)
        return {"pixel_values": pixels, "labels": spread(args.batch, size, size) % model.config.num_labels}
    if args.task == "speech-to-text":
        features = numbers(args.batch, model.config.num_mel_bins, size)
        return {"input_features": features, "labels": spread(args.batch, args.seq) % 97}
    if args.task == "unet":
        return {
            "sample": numbers(args.batch, model.config.in_channels, size, size),
            "timestep": torch.tensor([500.0]),
            "encoder_hidden_states": numbers(args.batch, 77, model.config.cross_attention_dim, prime=104_729),
            "labels": numbers(args.batch, model.config.out_channels, size, size, prime=104_729),
        }
    ids = spread(args.batch, args.seq) % model.config.vocab_size
    if args.task == "causal-lm":
        return {"input_ids": ids, "labels": ids}
    return {"input_ids": ids, "labels": torch.arange(args.batch) % model.config.num_labels}


def loss_of(model, inputs):
    if "sample" not in inputs:
        return model(**inputs).loss
    inputs = dict(inputs)
    noise = inputs.pop("labels")
    return (model(**inputs).sample - noise).square().mean()


def lora(args):
    from peft import LoraConfig

    named = {"causal-lm": "CAUSAL_LM", "seq-cls": "SEQ_CLS"}
    return LoraConfig(
        r=args.rank,
        lora_alpha=2 * args.rank,
        target_modules="all-linear" if args.all_linear else args.targets and args.targets.split(",") + NEW_NAMES,
        modules_to_save=args.modules_to_save and args.modules_to_save.split(","),
        use_dora=args.dora,
        task_type=named.get(args.task),
    )


def train(model, args, inputs):
    """Yields the number of trained parameters, then the loss of every step."""
    import torch
    from peft import get_peft_model

    if args.method == "lora":
        model = get_peft_model(model, lora(args))
    if args.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    # Statistics of the base stay what they are, as on our side.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    parameters = [it for it in model.parameters() if it.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.01)
    yield sum(it.numel() for it in parameters)
    compute = torch.compile(loss_of) if args.compile else loss_of
    while True:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            loss = compute(model, inputs)
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
    parser.add_argument("--task", required=True, choices=["causal-lm", "seq-cls", *MEDIA])
    parser.add_argument("--method", required=True, choices=["lora", "full", "adapters"])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--all-linear", action="store_true")
    parser.add_argument("--dora", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    # As one does on a card: the base is kept in half precision, too.
    parser.add_argument("--bf16-base", action="store_true")
    # Products of single precision on the tensor cores of a card.
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--adapters", type=int, default=1)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seq", type=int, required=True)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--targets")
    parser.add_argument("--modules-to-save")
    parser.add_argument("--quantize", choices=["nf4", "fp4", "int8"])
    # What bitsandbytes does with int8 anyway.
    parser.add_argument("--llm-int8", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
