//! ViT. Source: `transformers/models/vit/modeling_vit.py` (5.23), with the names of release 4.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Conv2d, Dropout, LayerNorm, Projection, lazy};
use peft_core::ops::attention;
use peft_core::{Adaptable, ModelSpec, Result};
use serde::Deserialize;

use super::positions;
use super::size::Size;
use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::config::{Activation, LabelConfig, RawConfig, heads_divide};
use crate::common::layers;
use crate::common::task::ImageClassifier;

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "vit.";

/// What transformers 5 calls these modules. Source: `ViTModel` in its `conversion_mapping.py`.
pub const OTHER_NAMES: &[(&str, &str)] = &[
    (r"encoder\.layer\.", "layers."),
    (r"attention\.attention\.query\.", "attention.q_proj."),
    (r"attention\.attention\.key\.", "attention.k_proj."),
    (r"attention\.attention\.value\.", "attention.v_proj."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
];

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["vit"], BASE_PREFIX).image_classifier(ViTForImageClassification::new)
}

/// `config.json` of a ViT. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct ViTConfig {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: Activation,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    pub layer_norm_eps: f64,
    pub image_size: Size,
    pub patch_size: Size,
    pub num_channels: usize,
    pub qkv_bias: bool,
    pub pooler_output_size: Option<usize>,
    pub pooler_act: Activation,
    #[serde(flatten)]
    pub labels: LabelConfig,
}

impl Default for ViTConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            layer_norm_eps: 1e-12,
            image_size: Size::Square(224),
            patch_size: Size::Square(16),
            num_channels: 3,
            qkv_bias: true,
            pooler_output_size: None,
            pooler_act: Activation::Tanh,
            labels: LabelConfig::default(),
        }
    }
}

impl ModelConfig for ViTConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let config: Self = raw.parse(&[])?;
        config.image_size.check(config.patch_size)?;
        heads_divide(("num_attention_heads", config.num_attention_heads), ("hidden_size", config.hidden_size))?;
        Ok(config)
    }
}

/// The patches of a picture as vectors.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ViTPatchEmbeddings {
    pub projection: Conv2d,
}

/// Patches and positions, behind the token that stands for the whole picture.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ViTEmbeddings {
    /// `[1, 1, d_model]`
    pub cls_token: Param<Tensor<3>>,
    /// `[1, 1 + patches, d_model]`
    pub position_embeddings: Param<Tensor<3>>,
    pub patch_embeddings: ViTPatchEmbeddings,
    dropout: Dropout,
    #[module(skip)]
    grid: [usize; 2],
}

impl ViTEmbeddings {
    fn new(config: &ViTConfig, device: &Device) -> Self {
        let (d_model, patch) = (config.hidden_size, config.patch_size.dims());
        let grid = config.image_size.patches(config.patch_size);
        let zeros = |rows| lazy([1, rows, d_model], device, move |device| Tensor::zeros([1, rows, d_model], device));
        Self {
            cls_token: zeros(1),
            position_embeddings: zeros(grid[0] * grid[1] + 1),
            patch_embeddings: ViTPatchEmbeddings {
                projection: Conv2d::new([config.num_channels, d_model], patch, 1, device).with_stride(patch),
            },
            dropout: Dropout::new(config.hidden_dropout_prob),
            grid,
        }
    }

    fn forward(&self, pixel_values: Tensor<4>) -> Tensor<3> {
        let [_, _, height, width] = pixel_values.dims();
        let projection = &self.patch_embeddings.projection;
        let grid = projection.output_size([height, width]);
        let (class, positions) = (self.cls_token.val(), self.position_embeddings.val());
        let patches = projection.tokens(pixel_values);
        self.dropout.forward(positions::behind_class_token(patches, class, positions, self.grid, grid))
    }
}

/// Attention of every patch to every patch.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ViTSelfAttention {
    pub query: Projection,
    pub key: Projection,
    pub value: Projection,
    dropout: Dropout,
    heads: usize,
}

impl ViTSelfAttention {
    /// `looking` are the tokens that look at those of `hidden`.
    fn forward(&self, looking: Tensor<3>, hidden: Tensor<3>) -> Tensor<3> {
        let d_head = hidden.dims()[2] / self.heads;
        let split = |projected| split_heads(projected, d_head);
        let query = split(self.query.forward(looking));
        let key = split(self.key.forward(hidden.clone()));
        let value = split(self.value.forward(hidden));
        merge_heads(attention(query, key, value, None, (d_head as f64).powf(-0.5), &self.dropout))
    }
}

/// A projection at the end of a half of a layer.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ViTOutput {
    pub dense: Projection,
    dropout: Dropout,
}

impl ViTOutput {
    fn new(config: &ViTConfig, d_input: usize, device: &Device) -> Self {
        Self {
            dense: Projection::new(d_input, config.hidden_size, true, device),
            dropout: Dropout::new(config.hidden_dropout_prob),
        }
    }

    fn forward(&self, inner: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        self.dropout.forward(self.dense.forward(inner)) + residual
    }
}

/// Attention and its projection.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ViTAttention {
    pub attention: ViTSelfAttention,
    pub output: ViTOutput,
}

/// The wide layer.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ViTIntermediate {
    pub dense: Projection,
    #[module(skip)]
    act: Activation,
}

/// One layer of the stack, with norms in front.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ViTLayer {
    pub attention: ViTAttention,
    pub intermediate: ViTIntermediate,
    pub output: ViTOutput,
    pub layernorm_before: LayerNorm,
    pub layernorm_after: LayerNorm,
}

impl ViTLayer {
    fn new(config: &ViTConfig, device: &Device) -> Self {
        let (d_model, d_inner) = (config.hidden_size, config.intermediate_size);
        let projection = || Projection::new(d_model, d_model, config.qkv_bias, device);
        let norm = || LayerNorm::new(d_model, config.layer_norm_eps, device);
        Self {
            attention: ViTAttention {
                attention: ViTSelfAttention {
                    query: projection(),
                    key: projection(),
                    value: projection(),
                    dropout: Dropout::new(config.attention_probs_dropout_prob),
                    heads: config.num_attention_heads,
                },
                output: ViTOutput::new(config, d_model, device),
            },
            intermediate: ViTIntermediate {
                dense: Projection::new(d_model, d_inner, true, device),
                act: config.hidden_act,
            },
            output: ViTOutput::new(config, d_inner, device),
            layernorm_before: norm(),
            layernorm_after: norm(),
        }
    }

    /// The output of the first `wanted` tokens.
    fn forward(&self, hidden: Tensor<3>, wanted: usize) -> Tensor<3> {
        let normal = self.layernorm_before.forward(hidden.clone());
        let first = |all: Tensor<3>| if all.dims()[1] == wanted { all } else { all.narrow(1, 0, wanted) };
        let mixed = self.attention.attention.forward(first(normal.clone()), normal);
        let hidden = self.attention.output.forward(mixed, first(hidden));
        let inner = self.intermediate.dense.forward(self.layernorm_after.forward(hidden.clone()));
        self.output.forward(self.intermediate.act.apply(inner), hidden)
    }
}

/// The stack.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ViTEncoder {
    pub layer: Vec<ViTLayer>,
}

/// The summary of a picture: its first token, once more projected.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ViTPooler {
    pub dense: Projection,
    #[module(skip)]
    act: Activation,
}

/// ViT without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ViTModel {
    pub embeddings: ViTEmbeddings,
    pub encoder: ViTEncoder,
    pub layernorm: LayerNorm,
    pub pooler: Option<ViTPooler>,
}

impl ViTModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &ViTConfig, device: &Device) -> Self {
        let width = config.pooler_output_size.filter(|it| *it > 0).unwrap_or(config.hidden_size);
        let dense = Projection::new(config.hidden_size, width, true, device);
        let pooler = Some(ViTPooler { dense, act: config.pooler_act });
        Self { pooler, ..Self::without_pooler(config, device) }
    }

    /// The same, for tasks that look at tokens only.
    pub fn without_pooler(config: &ViTConfig, device: &Device) -> Self {
        Self {
            embeddings: ViTEmbeddings::new(config, device),
            encoder: ViTEncoder {
                layer: (0..config.num_hidden_layers).map(|_| ViTLayer::new(config, device)).collect(),
            },
            layernorm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, device),
            pooler: None,
        }
    }

    /// The last hidden state, the token of the whole picture first.
    ///
    /// # Shapes
    /// - pixel_values: `[batch, channels, height, width]`, at least a patch high and wide
    /// - output: `[batch, 1 + patches, d_model]`
    pub fn forward(&self, pixel_values: Tensor<4>) -> Tensor<3> {
        self.first_tokens(pixel_values, None)
    }

    /// The last hidden state of so many tokens: above the keys and values of the last layer the others are not computed.
    fn first_tokens(&self, pixel_values: Tensor<4>, wanted: Option<usize>) -> Tensor<3> {
        let mut hidden = self.embeddings.forward(pixel_values);
        let all = hidden.dims()[1];
        for (at, layer) in self.encoder.layer.iter().enumerate() {
            let wanted = wanted.filter(|_| at + 1 == self.encoder.layer.len()).unwrap_or(all);
            hidden =
                layers::run((layer, at), hidden, &(), None, move |layer, hidden, (), _| layer.forward(hidden, wanted));
        }
        // A stack without layers has computed them all.
        let wanted = wanted.filter(|it| *it < hidden.dims()[1]);
        self.layernorm.forward(wanted.map_or(hidden.clone(), |it| hidden.narrow(1, 0, it)))
    }

    /// The summary of every picture, `[batch, pooler_output_size]`; nothing without a pooler.
    pub fn pool(&self, hidden: Tensor<3>) -> Option<Tensor<2>> {
        let first = hidden.narrow(1, 0, 1).squeeze_dim::<2>(1);
        self.pooler.as_ref().map(|it| it.act.apply(it.dense.forward(first)))
    }
}

fn described(spec: ModelSpec) -> ModelSpec {
    spec.with_model_type("vit").with_other_names(OTHER_NAMES)
}

impl Adaptable for ViTModel {
    fn spec(&self) -> ModelSpec {
        described(ModelSpec::of(self))
    }
}

/// ViT that classifies a picture by its first token.
#[derive(Module, Debug)]
pub struct ViTForImageClassification {
    /// The encoder, without its pooler.
    pub vit: ViTModel,
    /// `[num_labels, d_model]`
    pub classifier: Projection,
    #[module(skip)]
    labels: LabelConfig,
    #[module(skip)]
    channels: usize,
    #[module(skip)]
    patch: [usize; 2],
}

impl ViTForImageClassification {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &ViTConfig, device: &Device) -> Self {
        Self {
            vit: ViTModel::without_pooler(config, device),
            classifier: Projection::new(config.hidden_size, config.labels.num_labels(), true, device),
            labels: config.labels.clone(),
            channels: config.num_channels,
            patch: config.patch_size.dims(),
        }
    }
}

impl Adaptable for ViTForImageClassification {
    fn spec(&self) -> ModelSpec {
        described(ModelSpec::of(self)).with_heads(["classifier"])
    }
}

impl ImageClassifier for ViTForImageClassification {
    fn logits(&self, pixel_values: Tensor<4>) -> Tensor<2> {
        let first = self.vit.first_tokens(pixel_values, Some(1)).squeeze_dim::<2>(1);
        self.classifier.forward(first)
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }

    fn num_channels(&self) -> usize {
        self.channels
    }

    fn smallest_picture(&self) -> [usize; 2] {
        self.patch
    }
}
