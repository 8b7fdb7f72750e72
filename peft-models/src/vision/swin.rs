//! Swin. Source: `transformers/models/swin/modeling_swin.py` (5.23), with the names of release 4.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::nn::{Conv2d, DropPath, Dropout, LayerNorm, Projection, lazy};
use peft_core::ops::{AttentionMask, attention};
use peft_core::{Adaptable, ModelSpec, PeftError, Result};
use serde::Deserialize;

use super::positions;
use super::size::{Size, inner_width};
use crate::architecture::{Architecture, ModelConfig};
use crate::common::attention_heads::{merge_heads, split_heads};
use crate::common::config::{Activation, LabelConfig, RawConfig, heads_divide};
use crate::common::layers;
use crate::common::task::ImageClassifier;

/// Prefix that the checkpoint of a headless model lacks.
pub const BASE_PREFIX: &str = "swin.";

/// What transformers 5 calls these modules. Source: `swin` in its `conversion_mapping.py`.
pub const OTHER_NAMES: &[(&str, &str)] = &[
    (r"attention\.self\.query\.", "attention.q_proj."),
    (r"attention\.self\.key\.", "attention.k_proj."),
    (r"attention\.self\.value\.", "attention.v_proj."),
    (r"attention\.self\.relative", "attention.relative_position_bias.relative"),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
];

/// Norms of patches and merged patches have torch's default.
const NORM_EPSILON: f64 = 1e-5;

/// What is added to the score of a pair of patches that are no neighbours in the picture.
const APART: f32 = -100.0;

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["swin"], BASE_PREFIX).image_classifier(SwinForImageClassification::new)
}

/// `config.json` of a Swin. Defaults are transformers' own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct SwinConfig {
    pub image_size: Size,
    pub patch_size: Size,
    pub num_channels: usize,
    pub embed_dim: usize,
    pub depths: Vec<usize>,
    pub num_heads: Vec<usize>,
    pub window_size: usize,
    pub mlp_ratio: f64,
    pub qkv_bias: bool,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    pub drop_path_rate: f64,
    pub hidden_act: Activation,
    pub use_absolute_embeddings: bool,
    pub layer_norm_eps: f64,
    #[serde(flatten)]
    pub labels: LabelConfig,
}

impl Default for SwinConfig {
    fn default() -> Self {
        Self {
            image_size: Size::Square(224),
            patch_size: Size::Square(4),
            num_channels: 3,
            embed_dim: 96,
            depths: vec![2, 2, 6, 2],
            num_heads: vec![3, 6, 12, 24],
            window_size: 7,
            mlp_ratio: 4.0,
            qkv_bias: true,
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            drop_path_rate: 0.1,
            hidden_act: Activation::Gelu,
            use_absolute_embeddings: false,
            layer_norm_eps: 1e-5,
            labels: LabelConfig::default(),
        }
    }
}

impl ModelConfig for SwinConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let config: Self = raw.parse(&[])?;
        config.image_size.check(config.patch_size)?;
        let stages = config.depths.len();
        if stages == 0 || config.num_heads.len() != stages {
            let reason = format!("has {} numbers for {stages} stages of `depths`", config.num_heads.len());
            return Err(PeftError::config("num_heads", reason));
        }
        if config.window_size == 0 {
            return Err(PeftError::config("window_size", "must be at least 1"));
        }
        // The width doubles from stage to stage.
        if stages > 16 || config.embed_dim.checked_mul(1 << stages).is_none_or(|it| it > 1 << 24) {
            let reason = format!("is {} and doubles {stages} times: no model is so wide", config.embed_dim);
            return Err(PeftError::config("embed_dim", reason));
        }
        inner_width("mlp_ratio", config.mlp_ratio, config.width(stages - 1))?;
        for (stage, heads) in config.num_heads.iter().enumerate() {
            heads_divide(("num_heads", *heads), ("embed_dim", config.width(stage)))?;
        }
        Ok(config)
    }
}

impl SwinConfig {
    fn width(&self, stage: usize) -> usize {
        self.embed_dim << stage
    }
}

/// The patches of a picture as vectors.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SwinPatchEmbeddings {
    pub projection: Conv2d,
}

/// Patches, normalised, and perhaps their positions.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SwinEmbeddings {
    pub patch_embeddings: SwinPatchEmbeddings,
    /// `[1, patches, embed_dim]`
    pub position_embeddings: Option<Param<Tensor<3>>>,
    pub norm: LayerNorm,
    dropout: Dropout,
    #[module(skip)]
    grid: [usize; 2],
    #[module(skip)]
    patch: [usize; 2],
}

impl SwinEmbeddings {
    fn new(config: &SwinConfig, device: &Device) -> Self {
        let (width, patch) = (config.embed_dim, config.patch_size.dims());
        let grid = config.image_size.patches(config.patch_size);
        let shape = [1, grid[0] * grid[1], width];
        let zeros = || lazy(shape, device, move |device| Tensor::zeros(shape, device));
        Self {
            patch_embeddings: SwinPatchEmbeddings {
                projection: Conv2d::new([config.num_channels, width], patch, 1, device).with_stride(patch),
            },
            position_embeddings: config.use_absolute_embeddings.then(zeros),
            norm: LayerNorm::new(width, NORM_EPSILON, device),
            dropout: Dropout::new(config.hidden_dropout_prob),
            grid,
            patch,
        }
    }

    /// Patches, and how many rows and columns of them there are.
    fn forward(&self, pixel_values: Tensor<4>) -> (Tensor<3>, [usize; 2]) {
        let [_, _, height, width] = pixel_values.dims();
        let grid = [height.div_ceil(self.patch[0]), width.div_ceil(self.patch[1])];
        let padded = pad(pixel_values, 2, grid[0] * self.patch[0]);
        let padded = pad(padded, 3, grid[1] * self.patch[1]);
        let patches = self.norm.forward(self.patch_embeddings.projection.tokens(padded));
        let patches = match &self.position_embeddings {
            Some(positions) => patches + positions::for_grid(positions.val(), self.grid, grid),
            None => patches,
        };
        (self.dropout.forward(patches), grid)
    }
}

/// Zeros behind a dimension, as far as `length`.
fn pad(input: Tensor<4>, dim: usize, length: usize) -> Tensor<4> {
    let mut dims = input.dims();
    if dims[dim] == length {
        return input;
    }
    dims[dim] = length - dims[dim];
    let zeros = Tensor::zeros(dims, &input.device().without_autodiff());
    Tensor::cat(vec![input, zeros], dim)
}

/// How a grid of patches is cut into windows, and what is near to what in them.
#[derive(Debug, Clone)]
struct Windows {
    /// Rows and columns of patches.
    grid: [usize; 2],
    /// The same, filled up to whole windows.
    padded: [usize; 2],
    /// Rows and columns of a window.
    size: usize,
    /// By how many patches the windows are moved.
    shift: usize,
}

impl Windows {
    /// Source: `set_shift_and_window_size` and `maybe_pad`. The reference remembers the smallest window that it has seen;
    /// here a window depends on its picture only.
    fn new(grid: [usize; 2], size: usize, shift: usize) -> Self {
        let least = grid[0].min(grid[1]);
        let (size, shift) = if least <= size { (least, 0) } else { (size, shift) };
        Self { grid, padded: grid.map(|it| it.next_multiple_of(size)), size, shift }
    }

    fn area(&self) -> usize {
        self.size * self.size
    }

    /// `[batch, patches, width]` to `[batch, windows · area, width]`: window by window, so that a row is still a picture.
    fn split(&self, hidden: Tensor<3>) -> Tensor<3> {
        let [batch, _, width] = hidden.dims();
        let ([rows, columns], size) = (self.padded, self.size);
        let grid = hidden.reshape([batch, self.grid[0], self.grid[1], width]);
        let grid = rolled(pad(pad(grid, 1, rows), 2, columns), self.shift);
        grid.reshape([batch, rows / size, size, columns / size, size, width]).swap_dims(2, 3).reshape([
            batch,
            rows * columns,
            width,
        ])
    }

    /// The inverse of [`split`](Self::split).
    fn join(&self, windows: Tensor<3>) -> Tensor<3> {
        let [batch, _, width] = windows.dims();
        let ([rows, columns], size) = (self.padded, self.size);
        let grid = windows
            .reshape([batch, rows / size, columns / size, size, size, width])
            .swap_dims(2, 3)
            .reshape([batch, rows, columns, width]);
        let back = |length: usize| if self.shift == 0 { 0 } else { length - self.shift };
        let grid = rolled_by(grid, [back(rows), back(columns)]);
        let [height, wide] = self.grid;
        let grid = if self.grid == self.padded { grid } else { grid.narrow(1, 0, height).narrow(2, 0, wide) };
        grid.reshape([batch, height * wide, width])
    }

    /// What is added to the scores of moved windows, `[windows, 1, area, area]`: patches from opposite ends of the picture
    /// meet in the last ones.
    fn apart(&self, device: &Device) -> Option<Tensor<4>> {
        if self.shift == 0 {
            return None;
        }
        let ([rows, columns], size) = (self.padded, self.size);
        let region =
            |at: usize, length: usize| usize::from(at >= length - size) + usize::from(at >= length - self.shift);
        let mut added = Vec::with_capacity(rows * columns * self.area());
        for (top, left) in (0..rows).step_by(size).flat_map(|top| (0..columns).step_by(size).map(move |it| (top, it))) {
            let regions: Vec<usize> = (0..self.area())
                .map(|at| 3 * region(top + at / size, rows) + region(left + at % size, columns))
                .collect();
            for query in &regions {
                added.extend(regions.iter().map(|key| if key == query { 0.0 } else { APART }));
            }
        }
        let windows = (rows / size) * (columns / size);
        Some(Tensor::from_data(TensorData::new(added, [windows, 1, self.area(), self.area()]), device))
    }

    /// Row of the table of distances for every pair of patches of a window, `[area · area]`.
    ///
    /// The table is for windows of `largest` rows. A smaller window looks up the distances that it has; the reference fails.
    fn distances(&self, largest: usize, device: &Device) -> Tensor<1, Int> {
        let size = self.size;
        let rows: Vec<i64> = (0..self.area())
            .flat_map(|query| (0..self.area()).map(move |key| (query, key)))
            .map(|(query, key)| {
                let down = largest - 1 + query / size - key / size;
                let right = largest - 1 + query % size - key % size;
                (down * (2 * largest - 1) + right) as i64
            })
            .collect();
        Tensor::from_data(TensorData::new(rows, [self.area() * self.area()]), device)
    }
}

/// Rows and columns moved up and left by so many, round the ends.
fn rolled(grid: Tensor<4>, shift: usize) -> Tensor<4> {
    rolled_by(grid, [shift, shift])
}

fn rolled_by(grid: Tensor<4>, shifts: [usize; 2]) -> Tensor<4> {
    shifts.into_iter().zip([1, 2]).filter(|it| it.0 > 0).fold(grid, |grid, (shift, dim)| {
        let length = grid.dims()[dim];
        let (first, rest) = (grid.clone().narrow(dim, 0, shift), grid.narrow(dim, shift, length - shift));
        Tensor::cat(vec![rest, first], dim)
    })
}

/// Attention of the patches of a window to each other.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SwinSelfAttention {
    /// `[(2 · window − 1)², heads]`
    pub relative_position_bias_table: Param<Tensor<2>>,
    pub query: Projection,
    pub key: Projection,
    pub value: Projection,
    dropout: Dropout,
    heads: usize,
    window: usize,
}

impl SwinSelfAttention {
    /// # Shapes
    /// - hidden, output: `[batch, windows · area, width]`
    /// - apart: `[windows, 1, area, area]`
    fn forward(&self, hidden: Tensor<3>, windows: &Windows, apart: Option<Tensor<4>>) -> Tensor<3> {
        let [batch, patches, width] = hidden.dims();
        let area = windows.area();
        let (rows, d_head) = (batch * patches / area, width / self.heads);
        let split = |projected: Tensor<3>| split_heads(projected.reshape([rows, area, width]), d_head);
        let query = split(self.query.forward(hidden.clone()));
        let key = split(self.key.forward(hidden.clone()));
        let value = split(self.value.forward(hidden));

        let index = windows.distances(self.window, &query.device().without_autodiff());
        let table = self.relative_position_bias_table.val();
        let bias = table.select(0, index).reshape([1, area, area, self.heads]).permute([0, 3, 1, 2]);
        let bias = match apart {
            Some(apart) => {
                let count = apart.dims()[0];
                (bias + apart).repeat_dim(0, rows / count)
            }
            None => bias,
        };
        let mask = AttentionMask::default().with_bias(bias);
        let mixed = attention(query, key, value, Some(&mask), (d_head as f64).powf(-0.5), &self.dropout);
        merge_heads(mixed).reshape([batch, patches, width])
    }
}

/// A projection, and dropout behind it.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SwinOutput {
    pub dense: Projection,
    dropout: Dropout,
}

impl SwinOutput {
    fn forward(&self, inner: Tensor<3>) -> Tensor<3> {
        self.dropout.forward(self.dense.forward(inner))
    }
}

/// Attention and its projection.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SwinAttention {
    /// `self` in the checkpoint.
    pub self_: SwinSelfAttention,
    pub output: SwinOutput,
}

/// The wide layer.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SwinIntermediate {
    pub dense: Projection,
    #[module(skip)]
    act: Activation,
}

/// One layer of a stage, whose windows are moved or are not.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SwinLayer {
    pub layernorm_before: LayerNorm,
    pub attention: SwinAttention,
    pub layernorm_after: LayerNorm,
    pub intermediate: SwinIntermediate,
    pub output: SwinOutput,
    drop_path: DropPath,
    window: usize,
    shift: usize,
}

impl SwinLayer {
    fn new(config: &SwinConfig, stage: usize, shift: usize, drop_path: f64, device: &Device) -> Self {
        let (width, window) = (config.width(stage), config.window_size);
        let inner = (config.mlp_ratio * width as f64) as usize;
        let table = [(2 * window - 1) * (2 * window - 1), config.num_heads[stage]];
        let projection = || Projection::new(width, width, config.qkv_bias, device);
        let output = |d_input| SwinOutput {
            dense: Projection::new(d_input, width, true, device),
            dropout: Dropout::new(config.hidden_dropout_prob),
        };
        Self {
            layernorm_before: LayerNorm::new(width, config.layer_norm_eps, device),
            attention: SwinAttention {
                self_: SwinSelfAttention {
                    relative_position_bias_table: lazy(table, device, move |device| Tensor::zeros(table, device)),
                    query: projection(),
                    key: projection(),
                    value: projection(),
                    dropout: Dropout::new(config.attention_probs_dropout_prob),
                    heads: config.num_heads[stage],
                    window,
                },
                output: output(width),
            },
            layernorm_after: LayerNorm::new(width, config.layer_norm_eps, device),
            intermediate: SwinIntermediate {
                dense: Projection::new(width, inner, true, device),
                act: config.hidden_act,
            },
            output: output(inner),
            drop_path: DropPath::new(drop_path),
            window,
            shift,
        }
    }

    fn windows(&self, grid: [usize; 2]) -> Windows {
        Windows::new(grid, self.window, self.shift)
    }

    /// Only what attention adds is dropped for whole pictures, as in the reference.
    fn forward(&self, hidden: Tensor<3>, windows: &Windows, apart: Option<Tensor<4>>) -> Tensor<3> {
        let split = windows.split(self.layernorm_before.forward(hidden.clone()));
        let mixed = self.attention.output.forward(self.attention.self_.forward(split, windows, apart));
        let hidden = hidden + self.drop_path.forward(windows.join(mixed));
        let inner = self.intermediate.dense.forward(self.layernorm_after.forward(hidden.clone()));
        self.output.forward(self.intermediate.act.apply(inner)) + hidden
    }
}

/// Four neighbouring patches become one of twice the width.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SwinPatchMerging {
    pub reduction: Projection,
    pub norm: LayerNorm,
}

impl SwinPatchMerging {
    fn new(width: usize, device: &Device) -> Self {
        Self {
            reduction: Projection::new(4 * width, 2 * width, false, device),
            norm: LayerNorm::new(4 * width, NORM_EPSILON, device),
        }
    }

    fn forward(&self, hidden: Tensor<3>, grid: [usize; 2]) -> Tensor<3> {
        let [batch, _, width] = hidden.dims();
        let [rows, columns] = grid.map(|it| it.div_ceil(2));
        let hidden = hidden.reshape([batch, grid[0], grid[1], width]);
        let padded = pad(pad(hidden, 1, 2 * rows), 2, 2 * columns);
        // Of the four, the upper left comes first, then the one below it.
        let merged = padded.reshape([batch, rows, 2, columns, 2, width]).permute([0, 1, 3, 4, 2, 5]).reshape([
            batch,
            rows * columns,
            4 * width,
        ]);
        self.reduction.forward(self.norm.forward(merged))
    }
}

/// Layers of one width.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SwinStage {
    pub blocks: Vec<SwinLayer>,
    pub downsample: Option<SwinPatchMerging>,
}

/// The stages.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SwinEncoder {
    pub layers: Vec<SwinStage>,
}

/// Swin without a head.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct SwinModel {
    pub embeddings: SwinEmbeddings,
    pub encoder: SwinEncoder,
    pub layernorm: LayerNorm,
}

impl SwinModel {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &SwinConfig, device: &Device) -> Self {
        let mut rates = DropPath::rates(config.drop_path_rate, config.depths.iter().sum());
        let stages = config.depths.len();
        let mut layers = Vec::with_capacity(stages);
        for (stage, depth) in config.depths.iter().enumerate() {
            let shift = |at: usize| if at.is_multiple_of(2) { 0 } else { config.window_size / 2 };
            let rates = rates.by_ref().take(*depth).enumerate();
            layers.push(SwinStage {
                blocks: rates.map(|(at, rate)| SwinLayer::new(config, stage, shift(at), rate, device)).collect(),
                downsample: (stage + 1 < stages).then(|| SwinPatchMerging::new(config.width(stage), device)),
            });
        }
        Self {
            embeddings: SwinEmbeddings::new(config, device),
            encoder: SwinEncoder { layers },
            layernorm: LayerNorm::new(config.width(stages - 1), config.layer_norm_eps, device),
        }
    }

    /// The last hidden state.
    ///
    /// # Shapes
    /// - pixel_values: `[batch, channels, height, width]`
    /// - output: `[batch, patches, width]`
    pub fn forward(&self, pixel_values: Tensor<4>) -> Tensor<3> {
        let (mut hidden, mut grid) = self.embeddings.forward(pixel_values);
        let device = hidden.device().without_autodiff();
        let mut at = 0;
        for stage in &self.encoder.layers {
            // The windows of a stage that are moved are all moved alike.
            let mut apart = None;
            for layer in &stage.blocks {
                let windows = Arc::new(layer.windows(grid));
                if windows.shift > 0 {
                    apart = apart.or_else(|| windows.apart(&device));
                }
                let inputs = apart.clone().filter(|_| windows.shift > 0);
                hidden = layers::run((layer, at), hidden, &inputs, None, move |layer, hidden, apart, _| {
                    layer.forward(hidden, &windows, apart.clone())
                });
                at += 1;
            }
            if let Some(downsample) = &stage.downsample {
                hidden = downsample.forward(hidden, grid);
                grid = grid.map(|it| it.div_ceil(2));
            }
        }
        self.layernorm.forward(hidden)
    }
}

fn described(spec: ModelSpec) -> ModelSpec {
    spec.with_model_type("swin").with_other_names(OTHER_NAMES)
}

impl Adaptable for SwinModel {
    fn spec(&self) -> ModelSpec {
        described(ModelSpec::of(self))
    }
}

/// Swin that classifies a picture by the mean of its patches.
#[derive(Module, Debug)]
pub struct SwinForImageClassification {
    /// The encoder.
    pub swin: SwinModel,
    /// `[num_labels, width]`
    pub classifier: Projection,
    #[module(skip)]
    labels: LabelConfig,
    #[module(skip)]
    channels: usize,
}

impl SwinForImageClassification {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &SwinConfig, device: &Device) -> Self {
        let width = config.width(config.depths.len() - 1);
        Self {
            swin: SwinModel::new(config, device),
            classifier: Projection::new(width, config.labels.num_labels(), true, device),
            labels: config.labels.clone(),
            channels: config.num_channels,
        }
    }
}

impl Adaptable for SwinForImageClassification {
    fn spec(&self) -> ModelSpec {
        described(ModelSpec::of(self)).with_heads(["classifier"])
    }
}

impl ImageClassifier for SwinForImageClassification {
    fn logits(&self, pixel_values: Tensor<4>) -> Tensor<2> {
        self.classifier.forward(self.swin.forward(pixel_values).mean_dim(1).squeeze_dim::<2>(1))
    }

    fn labels(&self) -> &LabelConfig {
        &self.labels
    }

    fn num_channels(&self) -> usize {
        self.channels
    }
}
