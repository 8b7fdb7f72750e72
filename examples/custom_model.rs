//! A model of your own: a small causal language model that loads from a folder, takes LoRA in and is trained as the
//! built-in ones are.
//!
//! It is a configuration, a module whose fields are named after the keys of its checkpoints, the trait of its task, and an
//! `Architecture` that says all that.
//!
//! ```text
//! cargo run -p peft-examples --example custom_model
//! ```

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::fs;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft::lora::LoraConfig;
use peft_core::files::checkpoint::{FloatType, model_tensors, write_tensors};
use peft_core::nn::{Dropout, Embedding, Projection};
use peft_core::ops::{AttentionMask, attention};
use peft_core::{Adaptable, ModelSpec, PeftModel, PromptShape, Result};
use peft_models::auto::{Architecture, ArchitectureRegistry, ModelConfig};
use peft_models::common::attention_heads::{merge_heads, split_heads};
use peft_models::common::cache::extend_cache;
use peft_models::common::config::RawConfig;
use peft_models::common::layers;
use peft_models::{CausalLm, KvCache, ModelInput, Pretrained, mask, prompt};
use peft_tasks::data::sample::Sample;
use peft_tasks::tasks::language_modelling::LanguageModelling;
use peft_tasks::tasks::task::Task;
use peft_tasks::train::{TrainConfig, Trainer};

/// What `config.json` says.
#[derive(serde::Deserialize)]
struct NanoConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
}

impl ModelConfig for NanoConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        // Also refuses what would change numbers in other architectures, such as a quantized checkpoint.
        raw.parse(&[])
    }
}

/// Attention with one head.
///
/// The layers of `peft_core::nn` take adapters in without a dense update, and allocate nothing before a checkpoint is
/// read. Layers of `burn::nn` work too.
#[derive(Module, Debug)]
struct NanoLayer {
    q_proj: Projection,
    k_proj: Projection,
    v_proj: Projection,
}

impl NanoLayer {
    fn new(d_model: usize, device: &Device) -> Self {
        let projection = || Projection::new(d_model, d_model, false, device);
        Self { q_proj: projection(), k_proj: projection(), v_proj: projection() }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        mask: Option<&AttentionMask>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let d_model = hidden.dims()[2];
        let heads = |layer: &Projection| split_heads(layer.forward(hidden.clone()), d_model);
        let (key, value) = extend_cache(cache, layer, heads(&self.k_proj), heads(&self.v_proj));
        let scale = (d_model as f64).powf(-0.5);
        let mixed = attention(heads(&self.q_proj), key, value, mask, scale, &Dropout::new(0.0));
        hidden.clone() + merge_heads(mixed)
    }
}

/// The fields are named after the keys of the checkpoint: `layers.0.q_proj.weight`.
#[derive(Module, Debug)]
struct Nano {
    embed: Embedding,
    layers: Vec<NanoLayer>,
    /// Unless it is the embedding matrix read the other way.
    lm_head: Option<Projection>,
    d_model: usize,
}

impl Nano {
    fn new(config: &NanoConfig, device: &Device) -> Self {
        let d_model = config.hidden_size;
        Self {
            embed: Embedding::new(config.vocab_size, d_model, device),
            layers: (0..config.num_hidden_layers).map(|_| NanoLayer::new(d_model, device)).collect(),
            lm_head: None,
            d_model,
        }
    }

    fn stack(&self, input: &ModelInput, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        // Positions count from what the cache holds, and the mask covers it.
        let past = cache.as_ref().map_or(0, |it| it.len());
        let mask = mask::causal(input, past, None);
        let mut hidden = input.tokens.embed(|ids| self.embed.forward(ids));
        for (at, layer) in self.layers.iter().enumerate() {
            // Gradient checkpointing comes in here.
            hidden =
                layers::run((layer, at), hidden, &mask, cache.as_deref_mut(), move |layer, hidden, mask, cache| {
                    layer.forward(hidden, at, mask.as_ref(), cache)
                });
        }
        hidden
    }
}

impl CausalLm for Nano {
    fn hidden(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        // Virtual tokens and prefixes come in here.
        prompt::around(&self.embed, input, cache, |input, cache| self.stack(input, cache))
    }

    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => self.embed.attend(hidden),
        }
    }

    fn is_tied(&self) -> bool {
        self.lm_head.is_none()
    }

    fn untie(&mut self) {
        self.lm_head.get_or_insert_with(|| self.embed.as_head());
    }
}

/// What plans must know: names, and where prompts go.
impl Adaptable for Nano {
    fn spec(&self) -> ModelSpec {
        let prompts = PromptShape::even("embed", self.d_model, self.layers.len(), 1);
        ModelSpec::of(self).with_model_type("nano").with_heads(["lm_head"]).with_prompts("", prompts)
    }

    fn is_tied(&self) -> bool {
        CausalLm::is_tied(self)
    }

    fn untie_head(&mut self) {
        self.untie();
    }
}

/// `model_type` of `config.json`, the prefix that keys of a headless checkpoint lack, and a constructor for each task.
fn architecture() -> Architecture {
    Architecture::new(["nano"], "").causal_lm(Nano::new)
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let device = peft::device::device("flex")?;
    device.seed(1);
    let registry = ArchitectureRegistry::builtin().with(architecture());

    // A checkpoint with random numbers, as there is none to download.
    let folder = tempfile::tempdir()?;
    let config = r#"{"model_type": "nano", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2}"#;
    fs::write(folder.path().join("config.json"), config)?;
    let random = registry.causal_lm(&RawConfig::parse_text(config)?, &device)?;
    write_tensors(folder.path().join("model.safetensors"), model_tensors(&random), FloatType::F32)?;

    let (base, report) = registry.load_causal_lm(folder.path(), &device)?;
    assert!(report.is_clean(), "{report}");
    assert_eq!(base.folder()?, folder.path());
    assert!(base.downcast_ref::<Nano>().is_some(), "it is still the model from above");

    // From here on nothing is special about it.
    let mut model = PeftModel::new(base);
    println!("{}", model.add_adapter(LoraConfig::new(4, 8.0).targets(["q_proj", "v_proj"]))?);
    let texts = (0..4).map(|text| Sample::language((0..12).map(|at| (text * 7 + at * 3) % 50).collect())).collect();
    let data = LanguageModelling::padded(texts, 0)?;
    let before = data.evaluate(model.model(), 4, &device)?.loss;
    let config = TrainConfig { learning_rate: 0.05, max_steps: Some(2), batch_size: 4, ..TrainConfig::default() };
    Trainer::new(&mut model, &data, config).run()?;
    let after = data.evaluate(model.model(), 4, &device)?.loss;
    println!("loss {before:.6} before two steps, {after:.6} after");
    assert!(after < before, "two steps must help");
    Ok(())
}
