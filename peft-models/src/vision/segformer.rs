//! SegFormer. Source: `transformers/models/segformer/modeling_segformer.py` (5.23), with the names of release 4.

use burn::module::Module;
use burn::tensor::{Device, Tensor, activation};
use peft_core::nn::{BatchNorm2d, Conv2d, DropPath, Dropout, LayerNorm, Projection};
use peft_core::ops::{Interpolation, attention, interpolate};
use peft_core::{Adaptable, ModelSpec, PeftError, Result};
use serde::Deserialize;

use super::size::inner_width;
use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::config::{Activation, LabelConfig, RawConfig, heads_divide};
use crate::common::layers;
use crate::common::task::{ImageClassifier, SemanticSegmenter};

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "segformer.";

/// What transformers 5 calls these modules. Source: `SegformerModel` and `SegformerForSemanticSegmentation` in its
/// `conversion_mapping.py`.
pub const OTHER_NAMES: &[(&str, &str)] = &[
    (r"encoder\.patch_embeddings\.(\d+)\.", "stages.$1.patch_embeddings."),
    (r"encoder\.block\.(\d+)\.", "stages.$1.blocks."),
    (r"encoder\.layer_norm\.(\d+)\.", "stages.$1.layer_norm."),
    (r"attention\.self\.query\.", "attention.q_proj."),
    (r"attention\.self\.key\.", "attention.k_proj."),
    (r"attention\.self\.value\.", "attention.v_proj."),
    (r"attention\.self\.sr\.", "attention.sequence_reduction.sequence_reduction."),
    (r"attention\.self\.layer_norm\.", "attention.sequence_reduction.layer_norm."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"mlp\.dense1\.", "mlp.fc1."),
    (r"mlp\.dense2\.", "mlp.fc2."),
    (r"layer_norm_1\.", "layernorm_before."),
    (r"layer_norm_2\.", "layernorm_after."),
    (r"decode_head\.linear_c\.", "decode_head.linear_projections."),
];

/// Norms have torch's default: the reference does not read `layer_norm_eps`.
const NORM_EPSILON: f64 = 1e-5;

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["segformer"], BASE_PREFIX)
        .image_classifier(SegformerForImageClassification::new)
        .semantic_segmenter(SegformerForSemanticSegmentation::new)
}

/// `config.json` of a SegFormer. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct SegformerConfig {
    pub num_channels: usize,
    pub num_encoder_blocks: usize,
    pub depths: Vec<usize>,
    pub sr_ratios: Vec<usize>,
    pub hidden_sizes: Vec<usize>,
    pub patch_sizes: Vec<usize>,
    pub strides: Vec<usize>,
    pub num_attention_heads: Vec<usize>,
    pub mlp_ratios: Vec<f64>,
    pub hidden_act: Activation,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    pub classifier_dropout_prob: f64,
    pub drop_path_rate: f64,
    pub decoder_hidden_size: usize,
    pub semantic_loss_ignore_index: i64,
    #[serde(flatten)]
    pub labels: LabelConfig,
}

impl Default for SegformerConfig {
    fn default() -> Self {
        Self {
            num_channels: 3,
            num_encoder_blocks: 4,
            depths: vec![2; 4],
            sr_ratios: vec![8, 4, 2, 1],
            hidden_sizes: vec![32, 64, 160, 256],
            patch_sizes: vec![7, 3, 3, 3],
            strides: vec![4, 2, 2, 2],
            num_attention_heads: vec![1, 2, 5, 8],
            mlp_ratios: vec![4.0; 4],
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            classifier_dropout_prob: 0.1,
            drop_path_rate: 0.1,
            decoder_hidden_size: 256,
            semantic_loss_ignore_index: 255,
            labels: LabelConfig::default(),
        }
    }
}

impl ModelConfig for SegformerConfig {
    /// `reshape_last_stage` decides how the reference lays out the last stage in between; the numbers are the same.
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let config: Self = raw.parse(&[])?;
        config.check()?;
        Ok(config)
    }
}

impl SegformerConfig {
    /// The least height and width of which every stage has as many rows and columns as are summed up to one.
    fn smallest_picture(&self) -> usize {
        (0..self.num_encoder_blocks).rev().fold(1, |needed, stage| {
            let (kernel, stride) = (self.patch_sizes[stage], self.strides[stage]);
            let needed = needed.max(self.sr_ratios[stage]);
            ((needed - 1).saturating_mul(stride) + kernel).saturating_sub(2 * (kernel / 2)).max(1)
        })
    }

    fn check(&self) -> Result<()> {
        let stages = self.num_encoder_blocks;
        if stages == 0 {
            return Err(PeftError::config("num_encoder_blocks", "must be at least 1"));
        }
        for (field, length) in [
            ("depths", self.depths.len()),
            ("sr_ratios", self.sr_ratios.len()),
            ("hidden_sizes", self.hidden_sizes.len()),
            ("patch_sizes", self.patch_sizes.len()),
            ("strides", self.strides.len()),
            ("num_attention_heads", self.num_attention_heads.len()),
            ("mlp_ratios", self.mlp_ratios.len()),
        ] {
            if length != stages {
                return Err(PeftError::config(field, format!("has {length} numbers for {stages} encoder blocks")));
            }
        }
        let sizes = [("sr_ratios", &self.sr_ratios), ("patch_sizes", &self.patch_sizes), ("strides", &self.strides)];
        if let Some((field, _)) = sizes.iter().find(|it| it.1.contains(&0)) {
            return Err(PeftError::config(*field, "must be at least 1"));
        }
        for (ratio, width) in self.mlp_ratios.iter().zip(&self.hidden_sizes) {
            inner_width("mlp_ratios", *ratio, *width)?;
        }
        for (heads, width) in self.num_attention_heads.iter().zip(&self.hidden_sizes) {
            heads_divide(("num_attention_heads", *heads), ("hidden_sizes", *width))?;
        }
        Ok(())
    }
}

/// Overlapping patches of a picture, or of a grid of features, as vectors.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SegformerOverlapPatchEmbeddings {
    pub proj: Conv2d,
    pub layer_norm: LayerNorm,
}

impl SegformerOverlapPatchEmbeddings {
    fn new(config: &SegformerConfig, stage: usize, device: &Device) -> Self {
        let d_input = stage.checked_sub(1).map_or(config.num_channels, |it| config.hidden_sizes[it]);
        let (width, kernel, stride) = (config.hidden_sizes[stage], config.patch_sizes[stage], config.strides[stage]);
        Self {
            proj: Conv2d::new([d_input, width], [kernel; 2], 1, device)
                .with_stride([stride; 2])
                .with_padding([kernel / 2; 2]),
            layer_norm: LayerNorm::new(width, NORM_EPSILON, device),
        }
    }

    /// Patches, and how many rows and columns of them there are.
    fn forward(&self, input: Tensor<4>) -> (Tensor<3>, [usize; 2]) {
        let [_, _, height, width] = input.dims();
        let grid = self.proj.output_size([height, width]);
        (self.layer_norm.forward(self.proj.tokens(input)), grid)
    }
}

/// `[batch, rows · columns, width]` as `[batch, width, rows, columns]`
fn as_grid(tokens: Tensor<3>, [rows, columns]: [usize; 2]) -> Tensor<4> {
    let [batch, _, width] = tokens.dims();
    tokens.swap_dims(1, 2).reshape([batch, width, rows, columns])
}

/// Attention of every patch to patches that are summed up, as many as `sr_ratios` says to one.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SegformerEfficientSelfAttention {
    pub query: Projection,
    pub key: Projection,
    pub value: Projection,
    pub sr: Option<Conv2d>,
    pub layer_norm: Option<LayerNorm>,
    dropout: Dropout,
    heads: usize,
}

impl SegformerEfficientSelfAttention {
    fn new(config: &SegformerConfig, stage: usize, device: &Device) -> Self {
        let (width, ratio) = (config.hidden_sizes[stage], config.sr_ratios[stage]);
        let projection = || Projection::new(width, width, true, device);
        let is_reduced = ratio > 1;
        Self {
            query: projection(),
            key: projection(),
            value: projection(),
            sr: is_reduced.then(|| Conv2d::new([width, width], [ratio; 2], 1, device).with_stride([ratio; 2])),
            layer_norm: is_reduced.then(|| LayerNorm::new(width, NORM_EPSILON, device)),
            dropout: Dropout::new(config.attention_probs_dropout_prob),
            heads: config.num_attention_heads[stage],
        }
    }

    fn forward(&self, hidden: Tensor<3>, grid: [usize; 2]) -> Tensor<3> {
        let d_head = hidden.dims()[2] / self.heads;
        let split = |projected| split_heads(projected, d_head);
        let query = split(self.query.forward(hidden.clone()));
        let seen = match (&self.sr, &self.layer_norm) {
            (Some(sr), Some(norm)) => norm.forward(sr.tokens(as_grid(hidden, grid))),
            _ => hidden,
        };
        let key = split(self.key.forward(seen.clone()));
        let value = split(self.value.forward(seen));
        merge_heads(attention(query, key, value, None, (d_head as f64).powf(-0.5), &self.dropout))
    }
}

/// A projection, and dropout behind it.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SegformerSelfOutput {
    pub dense: Projection,
    dropout: Dropout,
}

/// Attention and its projection.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SegformerAttention {
    /// `self` in the checkpoint.
    pub self_: SegformerEfficientSelfAttention,
    pub output: SegformerSelfOutput,
}

/// A convolution of every channel for itself.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SegformerDwConv {
    pub dwconv: Conv2d,
}

/// The wide layer, in which a patch sees its neighbours: that is where positions come from.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SegformerMixFfn {
    pub dense1: Projection,
    pub dwconv: SegformerDwConv,
    pub dense2: Projection,
    dropout: Dropout,
    #[module(skip)]
    act: Activation,
}

impl SegformerMixFfn {
    fn new(config: &SegformerConfig, stage: usize, device: &Device) -> Self {
        let width = config.hidden_sizes[stage];
        let inner = (config.mlp_ratios[stage] * width as f64) as usize;
        let dwconv = Conv2d::new([inner, inner], [3, 3], inner.max(1), device).with_padding([1, 1]);
        Self {
            dense1: Projection::new(width, inner, true, device),
            dwconv: SegformerDwConv { dwconv },
            dense2: Projection::new(inner, width, true, device),
            dropout: Dropout::new(config.hidden_dropout_prob),
            act: config.hidden_act,
        }
    }

    fn forward(&self, hidden: Tensor<3>, grid: [usize; 2]) -> Tensor<3> {
        let wide = self.dwconv.dwconv.tokens(as_grid(self.dense1.forward(hidden), grid));
        let wide = self.dropout.forward(self.act.apply(wide));
        self.dropout.forward(self.dense2.forward(wide))
    }
}

/// One layer of a stage, with norms in front.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SegformerLayer {
    pub layer_norm_1: LayerNorm,
    pub attention: SegformerAttention,
    pub layer_norm_2: LayerNorm,
    pub mlp: SegformerMixFfn,
    drop_path: DropPath,
}

impl SegformerLayer {
    fn new(config: &SegformerConfig, stage: usize, drop_path: f64, device: &Device) -> Self {
        let width = config.hidden_sizes[stage];
        let norm = || LayerNorm::new(width, NORM_EPSILON, device);
        Self {
            layer_norm_1: norm(),
            attention: SegformerAttention {
                self_: SegformerEfficientSelfAttention::new(config, stage, device),
                output: SegformerSelfOutput {
                    dense: Projection::new(width, width, true, device),
                    dropout: Dropout::new(config.hidden_dropout_prob),
                },
            },
            layer_norm_2: norm(),
            mlp: SegformerMixFfn::new(config, stage, device),
            drop_path: DropPath::new(drop_path),
        }
    }

    fn forward(&self, hidden: Tensor<3>, grid: [usize; 2]) -> Tensor<3> {
        let mixed = self.attention.self_.forward(self.layer_norm_1.forward(hidden.clone()), grid);
        let output = &self.attention.output;
        let hidden = self.drop_path.forward(output.dropout.forward(output.dense.forward(mixed))) + hidden;
        let inner = self.mlp.forward(self.layer_norm_2.forward(hidden.clone()), grid);
        self.drop_path.forward(inner) + hidden
    }
}

/// The stages, part by part as the checkpoint has them.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SegformerEncoder {
    pub patch_embeddings: Vec<SegformerOverlapPatchEmbeddings>,
    pub block: Vec<Vec<SegformerLayer>>,
    pub layer_norm: Vec<LayerNorm>,
}

/// SegFormer without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SegformerModel {
    pub encoder: SegformerEncoder,
    #[module(skip)]
    channels: usize,
    #[module(skip)]
    smallest: usize,
}

impl SegformerModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &SegformerConfig, device: &Device) -> Self {
        let mut rates = DropPath::rates(config.drop_path_rate, config.depths.iter().sum());
        let stages = 0..config.num_encoder_blocks;
        let block = config.depths.iter().enumerate().map(|(stage, depth)| {
            rates.by_ref().take(*depth).map(|rate| SegformerLayer::new(config, stage, rate, device)).collect()
        });
        Self {
            encoder: SegformerEncoder {
                block: block.collect(),
                patch_embeddings: stages
                    .map(|stage| SegformerOverlapPatchEmbeddings::new(config, stage, device))
                    .collect(),
                layer_norm: config.hidden_sizes.iter().map(|it| LayerNorm::new(*it, NORM_EPSILON, device)).collect(),
            },
            channels: config.num_channels,
            smallest: config.smallest_picture(),
        }
    }

    /// The output of every stage, `[batch, width, rows, columns]`.
    pub fn stages(&self, pixel_values: Tensor<4>) -> Vec<Tensor<4>> {
        let SegformerEncoder { patch_embeddings, block, layer_norm } = &self.encoder;
        let mut outputs: Vec<Tensor<4>> = Vec::with_capacity(block.len());
        let mut at = 0;
        for ((patches, block), norm) in patch_embeddings.iter().zip(block).zip(layer_norm) {
            let input = outputs.last().cloned().unwrap_or_else(|| pixel_values.clone());
            let (mut hidden, grid) = patches.forward(input);
            for layer in block {
                hidden = layers::run((layer, at), hidden, &(), None, move |layer, hidden, (), _| {
                    layer.forward(hidden, grid)
                });
                at += 1;
            }
            outputs.push(as_grid(norm.forward(hidden), grid));
        }
        outputs
    }
}

fn described(spec: ModelSpec) -> ModelSpec {
    spec.with_model_type("segformer").with_other_names(OTHER_NAMES)
}

impl Adaptable for SegformerModel {
    fn spec(&self) -> ModelSpec {
        described(ModelSpec::of(self))
    }
}

/// SegFormer that classifies a picture by the mean of its last stage.
#[derive(Module, Debug)]
pub struct SegformerForImageClassification {
    /// The encoder.
    pub segformer: SegformerModel,
    /// `[num_labels, width]`
    pub classifier: Projection,
    #[module(skip)]
    labels: LabelConfig,
}

impl SegformerForImageClassification {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &SegformerConfig, device: &Device) -> Self {
        let width = config.hidden_sizes.last().copied().unwrap_or_default();
        Self {
            segformer: SegformerModel::new(config, device),
            classifier: Projection::new(width, config.labels.num_labels(), true, device),
            labels: config.labels.clone(),
        }
    }
}

impl Adaptable for SegformerForImageClassification {
    fn spec(&self) -> ModelSpec {
        described(ModelSpec::of(self)).with_heads(["classifier"])
    }
}

impl ImageClassifier for SegformerForImageClassification {
    fn logits(&self, pixel_values: Tensor<4>) -> Tensor<2> {
        let last = self.segformer.stages(pixel_values).pop().expect("a configuration has a stage");
        self.classifier.forward(last.flatten::<3>(2, 3).mean_dim(2).squeeze_dim::<2>(2))
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }

    fn num_channels(&self) -> usize {
        self.segformer.channels
    }

    fn smallest_picture(&self) -> [usize; 2] {
        [self.segformer.smallest; 2]
    }
}

/// The projection of a stage to the width of the head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SegformerMlp {
    pub proj: Projection,
}

/// The head: all stages in one width and one size, one behind another, and two layers.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SegformerDecodeHead {
    pub linear_c: Vec<SegformerMlp>,
    pub linear_fuse: Conv2d,
    pub batch_norm: BatchNorm2d,
    pub classifier: Conv2d,
    dropout: Dropout,
}

impl SegformerDecodeHead {
    fn new(config: &SegformerConfig, device: &Device) -> Self {
        let width = config.decoder_hidden_size;
        let proj = |d_input: &usize| SegformerMlp { proj: Projection::new(*d_input, width, true, device) };
        Self {
            linear_c: config.hidden_sizes.iter().map(proj).collect(),
            linear_fuse: Conv2d::new([width * config.num_encoder_blocks, width], [1, 1], 1, device).without_bias(),
            batch_norm: BatchNorm2d::new(width, 1e-5, device),
            classifier: Conv2d::new([width, config.labels.num_labels()], [1, 1], 1, device),
            dropout: Dropout::new(config.classifier_dropout_prob),
        }
    }

    fn forward(&self, stages: Vec<Tensor<4>>) -> Tensor<4> {
        let [_, _, rows, columns] = stages[0].dims();
        let each = stages.into_iter().zip(&self.linear_c).map(|(stage, projection)| {
            let [_, _, height, width] = stage.dims();
            let tokens = projection.proj.forward(stage.flatten::<3>(2, 3).swap_dims(1, 2));
            interpolate(as_grid(tokens, [height, width]), [rows, columns], Interpolation::Bilinear)
        });
        // The last stage comes first.
        let mut each: Vec<Tensor<4>> = each.collect();
        each.reverse();
        let fused = self.batch_norm.forward(self.linear_fuse.forward(Tensor::cat(each, 1)));
        self.classifier.forward(self.dropout.forward(activation::relu(fused)))
    }
}

/// SegFormer with a class for every pixel.
#[derive(Module, Debug)]
pub struct SegformerForSemanticSegmentation {
    /// The encoder.
    pub segformer: SegformerModel,
    /// The head.
    pub decode_head: SegformerDecodeHead,
    #[module(skip)]
    labels: LabelConfig,
    #[module(skip)]
    ignored: i64,
}

impl SegformerForSemanticSegmentation {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &SegformerConfig, device: &Device) -> Self {
        Self {
            segformer: SegformerModel::new(config, device),
            decode_head: SegformerDecodeHead::new(config, device),
            labels: config.labels.clone(),
            ignored: config.semantic_loss_ignore_index,
        }
    }
}

impl Adaptable for SegformerForSemanticSegmentation {
    fn spec(&self) -> ModelSpec {
        described(ModelSpec::of(self)).with_heads(["decode_head"])
    }
}

impl SemanticSegmenter for SegformerForSemanticSegmentation {
    fn logits(&self, pixel_values: Tensor<4>) -> Tensor<4> {
        self.decode_head.forward(self.segformer.stages(pixel_values))
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }

    fn num_channels(&self) -> usize {
        self.segformer.channels
    }

    fn smallest_picture(&self) -> [usize; 2] {
        [self.segformer.smallest; 2]
    }

    fn ignored_label(&self) -> i64 {
        self.ignored
    }
}
