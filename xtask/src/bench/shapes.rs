//! What is measured: shapes of models, methods, and who else does the same.

/// A model and a batch. Dropout is off everywhere, so that two programs can be held against each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) task: &'static str,
    pub(crate) batch: usize,
    /// Tokens of a row that are counted; 1 where a row is a picture.
    pub(crate) seq: usize,
    /// Rows and columns of a picture or of latents, frames of a recording; 0 for text.
    pub(crate) size: usize,
    /// What is adapted where the method has no default for the model; ends of paths, between commas.
    pub(crate) targets: Option<&'static str>,
    /// What is trained whole beside the adapters, as the reference's guides do.
    pub(crate) saved: Option<&'static str>,
    /// Measured only if it is named: it takes long.
    pub(crate) on_demand: bool,
    /// What its weights are written in.
    pub(crate) float: &'static str,
    /// `config.json`
    pub(crate) config: &'static str,
}

impl Shape {
    /// Whether the model reads text and nothing else.
    pub(crate) fn is_text(&self) -> bool {
        self.size == 0
    }
}

const fn text(name: &'static str, task: &'static str, batch: usize, seq: usize, config: &'static str) -> Shape {
    Shape { name, task, batch, seq, size: 0, targets: None, saved: None, on_demand: false, float: "float32", config }
}

const fn pictures(
    name: &'static str,
    task: &'static str,
    [batch, size]: [usize; 2],
    saved: &'static str,
    config: &'static str,
) -> Shape {
    let targets = Some("query,value");
    Shape { name, task, batch, seq: 1, size, targets, saved: Some(saved), on_demand: false, float: "float32", config }
}

const GPT2_124M: &str = r#"{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_positions": 1024,
    "n_embd": 768, "n_layer": 12, "n_head": 12, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}"#;
const SMOLLM2_135M: &str = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152,
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "max_position_embeddings": 8192, "rope_theta": 100000, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "tie_word_embeddings": true, "attention_dropout": 0.0}"#;
/// TinyLlama's.
const LLAMA_1_1B: &str = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000,
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "max_position_embeddings": 2048, "rope_theta": 10000, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "tie_word_embeddings": false, "attention_dropout": 0.0}"#;

/// Llama 3.2's.
const LLAMA_3B: &str = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "max_position_embeddings": 131072, "rope_theta": 500000, "rms_norm_eps": 1e-5,
    "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192}, "hidden_act": "silu", "tie_word_embeddings": true,
    "attention_dropout": 0.0}"#;
const LLAMA_7B: &str = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000,
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 2048, "rope_theta": 10000, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "tie_word_embeddings": false, "attention_dropout": 0.0}"#;

pub(crate) const SHAPES: [Shape; 14] = [
    text("gpt2-124m", "causal-lm", 4, 128, GPT2_124M),
    text("smollm2-135m", "causal-lm", 2, 256, SMOLLM2_135M),
    text(
        "bert-base",
        "seq-cls",
        8,
        128,
        r#"{"model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 30522,
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}"#,
    ),
    Shape { on_demand: true, ..text("smollm2-135m-1024", "causal-lm", 1, 1024, SMOLLM2_135M) },
    Shape { on_demand: true, ..text("smollm2-135m-2048", "causal-lm", 1, 2048, SMOLLM2_135M) },
    Shape { on_demand: true, ..text("smollm2-135m-4096", "causal-lm", 1, 4096, SMOLLM2_135M) },
    Shape { on_demand: true, float: "bfloat16", ..text("llama-1.1b", "causal-lm", 1, 512, LLAMA_1_1B) },
    Shape { on_demand: true, float: "bfloat16", ..text("llama-3.2-3b", "causal-lm", 1, 512, LLAMA_3B) },
    Shape { on_demand: true, float: "bfloat16", ..text("llama-7b", "causal-lm", 1, 512, LLAMA_7B) },
    pictures(
        "vit-base",
        "image-cls",
        [16, 224],
        "classifier",
        r#"{"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 224, "patch_size": 16,
            "num_channels": 3, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": true,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}"#,
    ),
    pictures(
        "swin-tiny",
        "image-cls",
        [16, 224],
        "classifier",
        r#"{"model_type": "swin", "architectures": ["SwinForImageClassification"], "image_size": 224, "patch_size": 4,
            "num_channels": 3, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7,
            "mlp_ratio": 4.0, "qkv_bias": true, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "drop_path_rate": 0.0,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "use_absolute_embeddings": false,
            "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}"#,
    ),
    pictures(
        "segformer-b0",
        "semantic-seg",
        [2, 512],
        "decode_head",
        r#"{"model_type": "segformer", "architectures": ["SegformerForSemanticSegmentation"], "num_channels": 3,
            "num_encoder_blocks": 4, "depths": [2, 2, 2, 2], "sr_ratios": [8, 4, 2, 1], "hidden_sizes": [32, 64, 160, 256],
            "patch_sizes": [7, 3, 3, 3], "strides": [4, 2, 2, 2], "num_attention_heads": [1, 2, 5, 8],
            "mlp_ratios": [4, 4, 4, 4], "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "layer_norm_eps": 1e-6,
            "attention_probs_dropout_prob": 0.0, "classifier_dropout_prob": 0.0, "drop_path_rate": 0.0,
            "decoder_hidden_size": 256, "reshape_last_stage": true,
            "id2label": {"0": "a", "1": "b", "2": "c", "3": "d", "4": "e", "5": "f", "6": "g", "7": "h"},
            "label2id": {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5, "g": 6, "h": 7}}"#,
    ),
    Shape {
        name: "sd15-unet",
        task: "unet",
        batch: 1,
        seq: 1,
        size: 64,
        targets: Some("to_q,to_k,to_v,to_out.0"),
        saved: None,
        on_demand: false,
        float: "float32",
        config: r#"{"_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4, "out_channels": 4,
            "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "cross_attention_dim": 768,
            "attention_head_dim": 8, "act_fn": "silu", "norm_num_groups": 32, "norm_eps": 1e-5,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "flip_sin_to_cos": true, "freq_shift": 0, "center_input_sample": false, "downsample_padding": 1,
            "mid_block_scale_factor": 1}"#,
    },
    Shape {
        name: "whisper-base",
        task: "speech-to-text",
        batch: 2,
        seq: 64,
        size: 3000,
        targets: Some("q_proj,v_proj"),
        saved: None,
        on_demand: false,
        float: "float32",
        config: r#"{"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "vocab_size": 51865,
            "num_mel_bins": 80, "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8,
            "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048,
            "max_source_positions": 1500, "max_target_positions": 448, "activation_function": "gelu", "dropout": 0.0,
            "attention_dropout": 0.0, "activation_dropout": 0.0, "scale_embedding": false, "tie_word_embeddings": true,
            "pad_token_id": 50257, "bos_token_id": 50257, "eos_token_id": 50257, "decoder_start_token_id": 50258}"#,
    },
];

/// The same architectures in a size that takes no time: they show that everything runs, and measure nothing.
pub(crate) const TINY: [Shape; 8] = [
    text(
        "gpt2-tiny",
        "causal-lm",
        2,
        16,
        r#"{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 101, "n_positions": 64,
            "n_embd": 32, "n_layer": 2, "n_head": 4, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}"#,
    ),
    text(
        "llama-tiny",
        "causal-lm",
        2,
        16,
        r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 101, "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 64, "rope_theta": 100000, "rms_norm_eps": 1e-5, "hidden_act": "silu",
            "tie_word_embeddings": true, "attention_dropout": 0.0}"#,
    ),
    text(
        "bert-tiny",
        "seq-cls",
        2,
        16,
        r#"{"model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 101,
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
            "max_position_embeddings": 64, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}"#,
    ),
    pictures(
        "vit-tiny",
        "image-cls",
        [2, 16],
        "classifier",
        r#"{"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 16, "patch_size": 4,
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}"#,
    ),
    pictures(
        "swin-mini",
        "image-cls",
        [2, 16],
        "classifier",
        r#"{"model_type": "swin", "architectures": ["SwinForImageClassification"], "image_size": 16, "patch_size": 2,
            "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "drop_path_rate": 0.0,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}"#,
    ),
    pictures(
        "segformer-tiny",
        "semantic-seg",
        [2, 32],
        "decode_head",
        r#"{"model_type": "segformer", "architectures": ["SegformerForSemanticSegmentation"], "num_encoder_blocks": 2,
            "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [7, 3], "strides": [4, 2],
            "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0, "classifier_dropout_prob": 0.0, "drop_path_rate": 0.0,
            "decoder_hidden_size": 16}"#,
    ),
    Shape {
        name: "unet-tiny",
        task: "unet",
        batch: 1,
        seq: 1,
        size: 8,
        targets: Some("to_q,to_k,to_v,to_out.0"),
        saved: None,
        on_demand: false,
        float: "float32",
        config: r#"{"_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4,
            "block_out_channels": [8, 16], "layers_per_block": 1, "cross_attention_dim": 12, "attention_head_dim": 2,
            "norm_num_groups": 4, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}"#,
    },
    Shape {
        name: "whisper-tiny",
        task: "speech-to-text",
        batch: 2,
        seq: 8,
        size: 40,
        targets: Some("q_proj,v_proj"),
        saved: None,
        on_demand: false,
        float: "float32",
        config: r#"{"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "vocab_size": 101,
            "num_mel_bins": 8, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 20,
            "max_target_positions": 48, "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
            "tie_word_embeddings": true, "pad_token_id": 99, "bos_token_id": 99, "eos_token_id": 99,
            "decoder_start_token_id": 100}"#,
    },
];

/// A method of fine-tuning, or of using what it made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuner {
    pub(crate) name: &'static str,
    /// `--method` of both workers.
    pub(crate) kind: &'static str,
    rank: usize,
    all_linear: bool,
    dora: bool,
    /// Mixed precision, which not every processor has.
    pub(crate) bf16: bool,
    /// In how few bits the base is kept.
    pub(crate) quantize: Option<&'static str>,
    /// What enters a layer in int8 is rounded, too.
    llm_int8: bool,
    /// Layers keep what goes in and compute the rest again.
    gradient_checkpointing: bool,
    adapters: usize,
}

pub(crate) const fn lora(name: &'static str, rank: usize, all_linear: bool) -> Tuner {
    Tuner {
        name,
        kind: "lora",
        rank,
        all_linear,
        dora: false,
        bf16: false,
        quantize: None,
        llm_int8: false,
        gradient_checkpointing: false,
        adapters: 1,
    }
}

/// Without `-all` the targets are the reference's default ones: layers of the attention.
pub(crate) const METHODS: [Tuner; 13] = [
    lora("lora-r8", 8, false),
    lora("lora-r16", 16, false),
    lora("lora-r8-all", 8, true),
    lora("lora-r16-all", 16, true),
    Tuner { dora: true, ..lora("dora-r8", 8, false) },
    Tuner { bf16: true, ..lora("lora-r8-bf16", 8, false) },
    Tuner { bf16: true, ..lora("lora-r16-all-bf16", 16, true) },
    Tuner { quantize: Some("nf4"), ..lora("lora-r16-all-nf4", 16, true) },
    Tuner { quantize: Some("nf4"), gradient_checkpointing: true, ..lora("lora-r16-all-nf4-again", 16, true) },
    Tuner { quantize: Some("int8"), ..lora("lora-r16-all-int8", 16, true) },
    Tuner { quantize: Some("int8"), llm_int8: true, ..lora("lora-r16-all-llm-int8", 16, true) },
    Tuner { quantize: Some("nf4"), bf16: true, ..lora("lora-r16-all-nf4-bf16", 16, true) },
    Tuner { kind: "adapters", adapters: 4, ..lora("adapters-4", 8, false) },
];

/// Methods of a comparison in which nothing else is asked for.
pub(crate) const COMPARED: [&str; 4] = ["lora-r8", "lora-r8-all", "dora-r8", "adapters-4"];

impl Tuner {
    /// Measured only if it is named: not every processor has bf16.
    pub(crate) fn on_demand(&self) -> bool {
        self.bf16 || self.gradient_checkpointing || self.llm_int8
    }

    /// Forwards of several adapters are measured on text; diffusers' models have no list of all linear layers in the
    /// reference.
    pub(crate) fn fits(&self, shape: &Shape) -> bool {
        (self.kind == "lora" || shape.is_text()) && !(self.all_linear && shape.task == "unet")
    }

    /// The same in mixed precision.
    pub(crate) fn in_bf16(&self) -> Self {
        Self { bf16: true, ..*self }
    }

    /// The same on a base in NF4.
    pub(crate) const fn in_nf4(self) -> Self {
        Self { quantize: Some("nf4"), ..self }
    }

    /// The same in single precision on the whole base.
    pub(crate) fn in_f32(&self) -> Self {
        Self { bf16: false, quantize: None, llm_int8: false, ..*self }
    }

    /// Arguments of a worker that is to do this in its way `kind`.
    pub(crate) fn arguments(&self, kind: &str) -> Vec<String> {
        let mut arguments = vec!["--method".to_owned(), kind.to_owned()];
        arguments.extend(["--rank".to_owned(), self.rank.to_string()]);
        arguments.extend(["--adapters".to_owned(), self.adapters.to_string()]);
        arguments.extend(self.all_linear.then(|| "--all-linear".to_owned()));
        arguments.extend(self.dora.then(|| "--dora".to_owned()));
        arguments.extend(self.bf16.then(|| "--bf16".to_owned()));
        arguments.extend(self.llm_int8.then(|| "--llm-int8".to_owned()));
        arguments.extend(self.gradient_checkpointing.then(|| "--gradient-checkpointing".to_owned()));
        arguments.extend(self.quantize.into_iter().flat_map(|it| ["--quantize".to_owned(), it.to_owned()]));
        arguments
    }
}

/// Who does the same work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Hugging Face PEFT on torch; on bitsandbytes where the base is quantised.
    PeftTorch,
    /// The same behind `torch.compile`.
    PeftTorchCompiled,
    /// Burn's `apply_lora` on a model of `burn::nn` layers.
    BurnLora,
    /// Our own model with every parameter trained: what LoRA saves.
    Full,
    /// Ourselves in single precision on the whole base: what few bits cost or save.
    OursF32,
}

pub(crate) const PEERS: [Peer; 5] =
    [Peer::PeftTorch, Peer::PeftTorchCompiled, Peer::BurnLora, Peer::Full, Peer::OursF32];

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PeftTorch => "peft-torch",
            Self::PeftTorchCompiled => "peft-torch-compiled",
            Self::BurnLora => "burn-lora",
            Self::Full => "full",
            Self::OursF32 => "ours-f32",
        }
    }

    /// Whether it is a program of Python's.
    pub(crate) fn is_python(self) -> bool {
        matches!(self, Self::PeftTorch | Self::PeftTorchCompiled)
    }

    /// Measured only if it is named: compiling takes minutes.
    pub(crate) fn on_demand(self) -> bool {
        self == Self::PeftTorchCompiled
    }

    /// Burn has neither DoRA nor mixed precision nor models of pictures, and full fine-tuning is compared with training only.
    pub(crate) fn can(self, shape: &Shape, method: &Tuner) -> bool {
        let is_single = !method.bf16 && method.quantize.is_none();
        let is_plain = method.kind == "lora" && !method.dora && is_single;
        match self {
            Self::PeftTorch => true,
            Self::PeftTorchCompiled => method.kind == "lora" && method.quantize.is_none(),
            Self::BurnLora => is_plain && shape.is_text(),
            Self::Full => is_plain,
            Self::OursF32 => !is_single,
        }
    }

    /// How far apart the first losses of two programs that do the same work may be, relatively.
    pub(crate) fn tolerance(self, method: &Tuner) -> f64 {
        match (self, method.quantize, method.bf16) {
            // Other weights.
            (Self::OursF32, Some(_), _) => 5e-2,
            // bitsandbytes rounds what goes into a product, too.
            (_, Some("int8"), _) => 2e-2,
            // Both round to bf16, which has a precision of 2⁻⁸, in different places.
            (_, _, true) => 1e-2,
            _ => 1e-3,
        }
    }
}
