//! What is measured: shapes of models, methods, and who else does the same.

/// A model and a batch. Dropout is off everywhere, so that two programs can be held against each other.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) task: &'static str,
    pub(crate) batch: usize,
    pub(crate) seq: usize,
    /// `config.json`
    pub(crate) config: &'static str,
}

pub(crate) const SHAPES: [Shape; 3] = [
    Shape {
        name: "gpt2-124m",
        task: "causal-lm",
        batch: 4,
        seq: 128,
        config: r#"{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_positions": 1024,
            "n_embd": 768, "n_layer": 12, "n_head": 12, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}"#,
    },
    Shape {
        name: "smollm2-135m",
        task: "causal-lm",
        batch: 2,
        seq: 256,
        config: r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152,
            "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "max_position_embeddings": 8192, "rope_theta": 100000, "rms_norm_eps": 1e-5,
            "hidden_act": "silu", "tie_word_embeddings": true, "attention_dropout": 0.0}"#,
    },
    Shape {
        name: "bert-base",
        task: "seq-cls",
        batch: 8,
        seq: 128,
        config: r#"{"model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 30522,
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}"#,
    },
];

/// The same architectures in a size that takes no time: they show that everything runs, and measure nothing.
pub(crate) const TINY: [Shape; 3] = [
    Shape {
        name: "gpt2-tiny",
        task: "causal-lm",
        batch: 2,
        seq: 16,
        config: r#"{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 101, "n_positions": 64,
            "n_embd": 32, "n_layer": 2, "n_head": 4, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}"#,
    },
    Shape {
        name: "llama-tiny",
        task: "causal-lm",
        batch: 2,
        seq: 16,
        config: r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 101, "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 64, "rope_theta": 100000, "rms_norm_eps": 1e-5, "hidden_act": "silu",
            "tie_word_embeddings": true, "attention_dropout": 0.0}"#,
    },
    Shape {
        name: "bert-tiny",
        task: "seq-cls",
        batch: 2,
        seq: 16,
        config: r#"{"model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 101,
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
            "max_position_embeddings": 64, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}"#,
    },
];

/// A method of fine-tuning, or of using what it made.
#[derive(Debug)]
pub(crate) struct Tuner {
    pub(crate) name: &'static str,
    /// `--method` of both workers.
    pub(crate) kind: &'static str,
    rank: usize,
    all_linear: bool,
    dora: bool,
    /// Mixed precision, which not every processor has: measured only if it is named.
    pub(crate) bf16: bool,
    /// In how few bits the base is kept.
    pub(crate) quantize: Option<&'static str>,
    adapters: usize,
}

const fn lora(name: &'static str, rank: usize, all_linear: bool) -> Tuner {
    Tuner { name, kind: "lora", rank, all_linear, dora: false, bf16: false, quantize: None, adapters: 1 }
}

/// Without `-all` the targets are the reference's default ones: layers of the attention.
pub(crate) const METHODS: [Tuner; 9] = [
    lora("lora-r8", 8, false),
    lora("lora-r16", 16, false),
    lora("lora-r8-all", 8, true),
    lora("lora-r16-all", 16, true),
    Tuner { dora: true, ..lora("dora-r8", 8, false) },
    Tuner { bf16: true, ..lora("lora-r8-bf16", 8, false) },
    Tuner { quantize: Some("nf4"), ..lora("lora-r16-all-nf4", 16, true) },
    Tuner { quantize: Some("int8"), ..lora("lora-r16-all-int8", 16, true) },
    Tuner { kind: "adapters", adapters: 4, ..lora("adapters-4", 8, false) },
];

/// Methods of a comparison in which nothing else is asked for.
pub(crate) const COMPARED: [&str; 4] = ["lora-r8", "lora-r8-all", "dora-r8", "adapters-4"];

impl Tuner {
    /// Arguments of a worker that is to do this in its way `kind`.
    pub(crate) fn arguments(&self, kind: &str) -> Vec<String> {
        let mut arguments = vec!["--method".to_owned(), kind.to_owned()];
        arguments.extend(["--rank".to_owned(), self.rank.to_string()]);
        arguments.extend(["--adapters".to_owned(), self.adapters.to_string()]);
        arguments.extend(self.all_linear.then(|| "--all-linear".to_owned()));
        arguments.extend(self.dora.then(|| "--dora".to_owned()));
        arguments.extend(self.bf16.then(|| "--bf16".to_owned()));
        arguments.extend(self.quantize.into_iter().flat_map(|it| ["--quantize".to_owned(), it.to_owned()]));
        arguments
    }
}

/// Who does the same work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Hugging Face PEFT on torch.
    PeftTorch,
    /// Burn's `apply_lora` on a model of `burn::nn` layers.
    BurnLora,
    /// Our own model with every parameter trained: what LoRA saves.
    Full,
}

pub(crate) const PEERS: [Peer; 3] = [Peer::PeftTorch, Peer::BurnLora, Peer::Full];

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PeftTorch => "peft-torch",
            Self::BurnLora => "burn-lora",
            Self::Full => "full",
        }
    }

    /// Burn has neither DoRA nor mixed precision, and full fine-tuning is compared with training only. Nobody else here has a
    /// quantised base.
    pub(crate) fn can(self, method: &Tuner) -> bool {
        let is_plain = method.kind == "lora" && !method.dora && !method.bf16;
        method.quantize.is_none() && (self == Self::PeftTorch || is_plain)
    }
}
