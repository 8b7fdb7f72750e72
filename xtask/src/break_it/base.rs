//! What is to be broken: a tiny GPT-2 with a tokenizer, whole and in shards, data of several kinds, a run file, and the
//! adapters that the command trains on them.

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::command::Peft;
use super::random::Random;
use super::{cannot, tensors};

const WORDS: &str = "<|end|> <unk> the a cat dog bird tree house river sees likes hears is big small old new red blue and \
                     on in under who what where why user assistant yes no 1 2 3 4";

const WIDTH: usize = 32;
const LAYERS: usize = 2;
const POSITIONS: usize = 64;

/// The training run that others are measured against. Twelve steps with a checkpoint after every second.
pub(super) const TRAIN: &str = "train --model tiny-gpt --data text.jsonl --steps 12 --save-every 2 --log-every 1 --batch-size 2 \
                                --max-length 16 --r 2 --dropout 0.1 --targets c_attn,c_fc --eval-data text.jsonl --eval-every 4";

/// Writes all of it.
pub(crate) fn prepare(peft: &Peft, place: &Path) -> Result<(), String> {
    let write = |name: &str, bytes: &[u8]| {
        let path = place.join(name);
        let folder = path.parent().unwrap_or(place);
        fs::create_dir_all(folder).map_err(cannot("create", folder))?;
        fs::write(&path, bytes).map_err(cannot("write", &path))
    };
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    for folder in ["tiny-gpt", "tiny-shards"] {
        for (name, text) in configuration(&words) {
            write(&format!("{folder}/{name}"), text.as_bytes())?;
        }
    }
    let weights = weights(words.len());
    write("tiny-gpt/model.safetensors", &tensors::file(&weights))?;
    let (first, second) = weights.split_at(weights.len() / 2);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut index = Vec::new();
    for (name, part) in names.iter().zip([first, second]) {
        write(&format!("tiny-shards/{name}"), &tensors::file(part))?;
        index.extend(part.iter().map(|(key, _, _)| format!("    \"{key}\": \"{name}\"")));
    }
    let index =
        format!("{{\n  \"metadata\": {{\"total_size\": 1}},\n  \"weight_map\": {{\n{}\n  }}\n}}\n", index.join(",\n"));
    write("tiny-shards/model.safetensors.index.json", index.as_bytes())?;
    for (name, text) in data(&words) {
        write(name, text.as_bytes())?;
    }
    write("inputs.safetensors", &tensors::ids("input_ids", &[2, 4, 10, 3, 5]))?;
    let start = Instant::now();
    peft.expect(place, &format!("{TRAIN} --output tuned"))?;
    write("seconds", start.elapsed().as_secs_f64().to_string().as_bytes())?;
    let cls = "train --model tiny-gpt --task seq-cls --data classes.csv --steps 4 --save-every 2 --batch-size 2 --max-length 16 \
               --r 2 --output sorter";
    peft.expect(place, cls)?;
    let run = peft.expect(place, &format!("{TRAIN} --output out --print-config"))?;
    write("run.yaml", run.stdout.as_bytes())
}

fn configuration(words: &[&str]) -> Vec<(&'static str, String)> {
    let vocab: Vec<String> = words.iter().enumerate().map(|(id, it)| format!("\"{it}\": {id}")).collect();
    let tokenizer = format!(
        "{{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [{{\"id\": 0, \
         \"content\": \"<|end|>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \
         \"special\": true}}],\n  \"normalizer\": {{\"type\": \"Lowercase\"}},\n  \"pre_tokenizer\": {{\"type\": \
         \"Whitespace\"}},\n  \"post_processor\": null,\n  \"decoder\": null,\n  \"model\": {{\"type\": \"WordLevel\", \
         \"vocab\": {{{}}}, \"unk_token\": \"<unk>\"}}\n}}\n",
        vocab.join(", ")
    );
    let config = format!(
        "{{\n  \"architectures\": [\"GPT2LMHeadModel\"],\n  \"model_type\": \"gpt2\",\n  \"activation_function\": \
         \"gelu_new\",\n  \"vocab_size\": {},\n  \"n_positions\": {POSITIONS},\n  \"n_embd\": {WIDTH},\n  \"n_layer\": \
         {LAYERS},\n  \"n_head\": 2,\n  \"layer_norm_epsilon\": 1e-05,\n  \"initializer_range\": 0.02,\n  \"resid_pdrop\": \
         0.0,\n  \"embd_pdrop\": 0.0,\n  \"attn_pdrop\": 0.0,\n  \"bos_token_id\": 0,\n  \"eos_token_id\": 0,\n  \
         \"pad_token_id\": 0,\n  \"tie_word_embeddings\": true,\n  \"torch_dtype\": \"float32\"\n}}\n",
        words.len()
    );
    let template = "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + ' ' }}{% if message['role'] \
                    == 'assistant' %}{% generation %}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}\
                    {% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}";
    let settings = format!(
        "{{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"model_max_length\": {POSITIONS},\n  \"bos_token\": \
         \"<|end|>\",\n  \"eos_token\": \"<|end|>\",\n  \"pad_token\": \"<|end|>\",\n  \"unk_token\": \"<unk>\",\n  \
         \"chat_template\": \"{template}\"\n}}\n"
    );
    vec![
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", settings),
        ("special_tokens_map.json", "{\n  \"eos_token\": \"<|end|>\",\n  \"pad_token\": \"<|end|>\"\n}\n".to_owned()),
        (
            "generation_config.json",
            "{\n  \"eos_token_id\": 0,\n  \"do_sample\": false,\n  \"max_new_tokens\": 8,\n  \"temperature\": 1.0\n}\n"
                .to_owned(),
        ),
    ]
}

fn weights(words: usize) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let random = Random::new("weights", 0, 0);
    let draw = |name: String, shape: &[usize], around: f32| {
        let count = shape.iter().product();
        let values = (0..count).map(|_| around + (random.share() as f32 - 0.5) * 0.2).collect();
        (name, shape.to_vec(), values)
    };
    let mut all = vec![
        draw("transformer.wte.weight".to_owned(), &[words, WIDTH], 0.0),
        draw("transformer.wpe.weight".to_owned(), &[POSITIONS, WIDTH], 0.0),
    ];
    let norm =
        |name: String| [draw(format!("{name}.weight"), &[WIDTH], 1.0), draw(format!("{name}.bias"), &[WIDTH], 0.0)];
    for layer in 0..LAYERS {
        let path = format!("transformer.h.{layer}");
        all.extend(norm(format!("{path}.ln_1")));
        all.extend(norm(format!("{path}.ln_2")));
        for (name, input, output) in
            [("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4), ("mlp.c_proj", 4, 1)]
        {
            all.push(draw(format!("{path}.{name}.weight"), &[input * WIDTH, output * WIDTH], 0.0));
            all.push(draw(format!("{path}.{name}.bias"), &[output * WIDTH], 0.0));
        }
    }
    all.extend(norm("transformer.ln_f".to_owned()));
    all
}

fn data(words: &[&str]) -> [(&'static str, String); 3] {
    let random = Random::new("data", 0, 0);
    let some = |count: usize| {
        let words: Vec<&str> = (0..count).map(|_| words[2 + random.below(words.len() - 2)]).collect();
        words.join(" ")
    };
    let text: Vec<String> =
        (0..24).map(|_| format!("{{\"prompt\": \"{} \", \"completion\": \"{}\"}}\n", some(3), some(4))).collect();
    let chat: Vec<String> = (0..12)
        .map(|_| {
            format!(
                "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{}\"}}, {{\"role\": \"assistant\", \"content\": \
                 \"{}\"}}]}}\n",
                some(3),
                some(3)
            )
        })
        .collect();
    let classes: Vec<String> =
        (0..16).map(|at| format!("\"{}\",{}\n", some(4), ["yes", "no", "maybe"][at % 3])).collect();
    [
        ("text.jsonl", text.concat()),
        ("chat.jsonl", chat.concat()),
        ("classes.csv", format!("text,label\n{}", classes.concat())),
    ]
}
