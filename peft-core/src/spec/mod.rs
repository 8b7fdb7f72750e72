//! What a model offers to adapters: its parameters with their paths, kinds and shapes.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// How a linear weight lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[out, in]`, as torch's `nn.Linear` stores it.
    OutIn,
    /// `[in, out]`, as Burn's `Linear` and the `Gpt2Linear` of transformers store it (`fan_in_fan_out`).
    InOut,
}

/// What a parameter is to its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    /// The matrix of `y = x W + b`.
    Linear(Layout),
    /// A table of rows, `[rows, d_model]`.
    Embedding,
    /// A convolution kernel, `[out, in / groups, kernel…]`.
    Conv,
    /// Anything else: biases, norms, positions.
    Other,
    /// No parameter at all: it is read and written, but neither adapted, trained nor counted.
    Buffer,
}

impl fmt::Display for ParamKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear(_) => "a linear layer",
            Self::Embedding => "an embedding",
            Self::Conv => "a convolution",
            Self::Other | Self::Buffer => "no layer",
        })
    }
}

/// A parameter that a plan may adapt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// Path of the layer as the checkpoint spells it: `transformer.h.0.attn.c_attn`. Empty for a bare parameter.
    pub module: String,
    /// The parameter's name in that layer: `weight`, `bias`.
    pub name: String,
    /// The struct that declares the parameter: `Projection`, `Gpt2Linear`, `LayerNorm`.
    pub owner: String,
    /// What the parameter is to the layer.
    pub kind: ParamKind,
    /// Shape in memory.
    pub shape: Vec<usize>,
}

impl ParamSpec {
    /// Path of the parameter: module and name.
    pub fn path(&self) -> String {
        join(&self.module, &self.name)
    }

    /// Key of a tensor of an adapter on this layer in its file: `base_model.model.<module>.<field>`.
    pub fn file_key(&self, field: &str) -> String {
        format!("{}{}", crate::model::state::KEY_PREFIX, join(&self.module, field))
    }

    /// `(in, out)` of the map that a weight stands for; a convolution counts its kernel into `in`.
    pub fn features(&self) -> (usize, usize) {
        match self.kind {
            ParamKind::Linear(Layout::OutIn) => (self.shape[1], self.shape[0]),
            ParamKind::Linear(Layout::InOut) | ParamKind::Embedding => (self.shape[0], self.shape[1]),
            ParamKind::Conv => (self.shape[1..].iter().product(), self.shape[0]),
            ParamKind::Other | ParamKind::Buffer => (1, self.shape.iter().product()),
        }
    }

    /// Whether a file holds the parameter transposed: `burn::nn::Linear` keeps `[in, out]`, checkpoints `[out, in]`.
    pub fn is_transposed_on_disk(&self) -> bool {
        self.owner == "Linear" && self.kind == ParamKind::Linear(Layout::InOut)
    }

    /// Shape in a checkpoint.
    pub fn shape_on_disk(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.is_transposed_on_disk() {
            shape.reverse();
        }
        shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the parameter has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A linear weight as `[out, in]`, however it lies. Its own inverse.
    pub fn out_in(&self, weight: Tensor<2>) -> Tensor<2> {
        match self.kind {
            ParamKind::Linear(Layout::InOut) => weight.transpose(),
            _ => weight,
        }
    }

    /// A weight that low-rank methods know how to adapt.
    pub fn is_layer_weight(&self) -> bool {
        self.name == "weight" && !matches!(self.kind, ParamKind::Other | ParamKind::Buffer)
    }
}

/// Where prompts go into a model, and the sizes that they must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptShape {
    /// Path of the table that tokens are looked up in: `transformer.wte`.
    pub table: String,
    /// Width of the hidden states, `hidden_size`.
    pub d_model: usize,
    /// Number of layers whose cache takes a prefix; of the decoder, where there is an encoder too.
    pub layers: usize,
    /// Number of query heads, `num_attention_heads`.
    pub heads: usize,
    /// Number of key heads.
    pub kv_heads: usize,
    /// Width of a key head.
    pub d_head: usize,
}

impl PromptShape {
    /// Of a model whose heads share `d_model` evenly, each with keys of its own.
    pub fn even(table: &str, d_model: usize, layers: usize, heads: usize) -> Self {
        Self { table: table.to_owned(), d_model, layers, heads, kv_heads: heads, d_head: d_model / heads }
    }
}

/// All parameters of a model, and what a plan must know about the model as a whole.
#[derive(Debug, Clone, Default)]
pub struct ModelSpec {
    spec: Vec<Arc<ParamSpec>>,
    modules: BTreeSet<String>,
    /// `model_type` of `config.json`: picks default targets.
    pub model_type: Option<String>,
    /// Layers that `all-linear` leaves out: the language-model head, the classifier.
    pub heads: Vec<String>,
    /// Modules whose stacks of matrices lie as `[experts, in, out]`, not `[experts, out, in]`: `is_transposed` in Python.
    pub transposed: Vec<String>,
    /// Where prompts go in; nothing in models that take none.
    pub prompts: Option<PromptShape>,
    /// Where the model came from, a folder or a hub id: `base_model_name_or_path` of `adapter_config.json`.
    pub base_name: Option<String>,
    /// What the model is for, as `adapter_config.json` spells it in `task_type`: `CAUSAL_LM`, `SEQ_CLS`, ….
    pub task_type: Option<String>,
}

impl ModelSpec {
    /// Lists the parameters of a model. Lazy ones stay lazy.
    pub fn of<M: Module>(model: &M) -> Self {
        let mut visitor = ListSites::default();
        model.visit(&mut visitor);
        Self { spec: visitor.spec, modules: visitor.modules, ..Self::default() }
    }

    /// Names the architecture, as `config.json` does.
    pub fn with_model_type(mut self, model_type: impl Into<String>) -> Self {
        self.model_type = Some(model_type.into());
        self
    }

    /// Says where the model came from.
    pub fn with_base_name(mut self, base_name: impl Into<String>) -> Self {
        self.base_name = Some(base_name.into());
        self
    }

    /// Says what the model is for.
    pub fn with_task_type(mut self, task_type: impl Into<String>) -> Self {
        self.task_type = Some(task_type.into());
        self
    }

    /// Names the output layers that `all-linear` leaves out.
    pub fn with_heads<S: Into<String>>(mut self, heads: impl IntoIterator<Item = S>) -> Self {
        self.heads = heads.into_iter().map(Into::into).collect();
        self
    }

    /// Names the modules, by path or its end, whose stacks of matrices lie as `[experts, in, out]`.
    pub fn with_transposed<S: Into<String>>(mut self, modules: impl IntoIterator<Item = S>) -> Self {
        self.transposed = modules.into_iter().map(Into::into).collect();
        self
    }

    /// Whether a stack of matrices lies as `[experts, in, out]`.
    pub fn is_transposed(&self, param: &ParamSpec) -> bool {
        self.transposed.iter().any(|it| crate::is_suffix(&param.module, it))
    }

    /// Says where prompts go in. `prompts.table` is relative to `stack`, which is empty for a model without a head.
    pub fn with_prompts(mut self, stack: &str, prompts: PromptShape) -> Self {
        let table = join(stack, &prompts.table);
        self.prompts = Some(PromptShape { table, ..prompts });
        self
    }

    /// Every parameter, in the model's order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ParamSpec>> {
        self.spec.iter()
    }

    /// The weights of linear layers, embeddings and convolutions.
    pub fn layers(&self) -> impl Iterator<Item = &Arc<ParamSpec>> {
        self.spec.iter().filter(|it| it.is_layer_weight())
    }

    /// The parameters at or below a module.
    pub fn below<'a>(&'a self, module: &'a str) -> impl Iterator<Item = &'a Arc<ParamSpec>> {
        self.spec.iter().filter(move |it| it.module == module || is_below(&it.module, module))
    }

    /// Every module path, with all its prefixes.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules.iter().map(String::as_str)
    }

    /// The parameter at a path.
    pub fn get(&self, path: &str) -> Option<&Arc<ParamSpec>> {
        self.spec.iter().find(|it| it.path() == path)
    }

    /// Whether the layer of a weight has a bias.
    pub fn has_bias(&self, param: &ParamSpec) -> bool {
        self.get(&join(&param.module, "bias")).is_some()
    }

    /// Number of elements of all parameters. Buffers are none.
    pub fn parameters(&self) -> usize {
        self.spec.iter().filter(|it| it.kind != ParamKind::Buffer).map(|it| it.len()).sum()
    }
}

/// Whether `path` lies inside `module`.
pub(crate) fn is_below(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'))
}

pub(crate) fn join(module: &str, param: &str) -> String {
    if module.is_empty() { param.to_owned() } else { format!("{module}.{param}") }
}

/// The path that a visitor or mapper is at, spelled as checkpoints spell it.
///
/// A field whose checkpoint name is a Rust keyword carries a trailing underscore (`self_`), which is dropped here. The
/// variant of an enum leaves no trace, so that a choice between models does not change their keys. Nor does the field
/// inside a [`Buffer`](crate::nn::Buffer).
#[derive(Debug, Clone, Default)]
pub struct PathStack {
    segments: Vec<Option<String>>,
    containers: Vec<String>,
    inside_adapters: usize,
}

impl PathStack {
    /// To be called from `enter_module`.
    pub fn enter(&mut self, name: &str, container: &str) {
        self.inside_adapters += usize::from(container == ADAPTERS_CONTAINER);
        let shown = !container.starts_with("Enum:") && container != BUFFER_CONTAINER;
        self.segments.push(shown.then(|| name.strip_suffix('_').unwrap_or(name).to_owned()));
        self.containers.push(container.to_owned());
    }

    /// To be called from `exit_module`.
    pub fn exit(&mut self, container: &str) {
        self.inside_adapters -= usize::from(container == ADAPTERS_CONTAINER);
        self.segments.pop();
        self.containers.pop();
    }

    /// The path in dots.
    pub fn path(&self) -> String {
        self.segments.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(".")
    }

    /// Module path and parameter name.
    pub fn split(&self) -> (String, String) {
        let path = self.path();
        match path.rsplit_once('.') {
            Some((module, param)) => (module.to_owned(), param.to_owned()),
            None => (String::new(), path),
        }
    }

    /// Whether the walk is inside an adapter set rather than in the model itself.
    pub fn in_adapters(&self) -> bool {
        self.inside_adapters > 0
    }

    /// Name of the struct that declares the current field: `Projection` for its `weight`.
    pub fn owner(&self) -> &str {
        self.containers.last().and_then(|it| it.strip_prefix("Struct:")).unwrap_or("")
    }
}

/// Burn's name for what sits in a parameter's slot.
const ADAPTERS_CONTAINER: &str = "Reparameterization";

/// Burn's name for [`Buffer`](crate::nn::Buffer).
const BUFFER_CONTAINER: &str = "Struct:Buffer";

#[derive(Default)]
struct ListSites {
    at: PathStack,
    spec: Vec<Arc<ParamSpec>>,
    modules: BTreeSet<String>,
}

impl ModuleVisitor for ListSites {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.at.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.at.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.at.in_adapters() {
            return;
        }
        let (module, name) = self.at.split();
        let owner = self.at.owner().to_owned();
        let kind = kind_of(&owner, &name, D);
        let mut prefix = module.as_str();
        while !prefix.is_empty() && self.modules.insert(prefix.to_owned()) {
            prefix = prefix.rsplit_once('.').map_or("", |(head, _)| head);
        }
        let shape = param.lazy_shape().as_slice().to_vec();
        self.spec.push(Arc::new(ParamSpec { module, name, owner, kind, shape }));
    }
}

fn kind_of(owner: &str, param: &str, rank: usize) -> ParamKind {
    match (owner, param, rank) {
        ("Buffer", _, _) => ParamKind::Buffer,
        ("Projection", "weight", 2) => ParamKind::Linear(Layout::OutIn),
        ("Linear" | "Gpt2Linear", "weight", 2) => ParamKind::Linear(Layout::InOut),
        ("Embedding", "weight", 2) => ParamKind::Embedding,
        ("Conv1d" | "Conv2d" | "Conv3d", "weight", _) => ParamKind::Conv,
        _ => ParamKind::Other,
    }
}

impl fmt::Display for ParamSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.path(), self.shape)
    }
}
