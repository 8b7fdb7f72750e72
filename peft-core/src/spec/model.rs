//! What a planner knows about a model: all of its parameters, and where heads and prompts are.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::erased::AnyModule;
use crate::error::{PeftError, Result};
use crate::spec::labels::Labels;
use crate::spec::other_names::OtherNames;
use crate::spec::param::{ParamKind, ParamSpec, kind_of};
use crate::spec::path::{PathStack, is_below, is_suffix, join};
use crate::spec::walk::{VisitParams, visit_params};

/// A model that says of itself what a planner must know: what [`PeftModel::new`](crate::PeftModel::new) takes.
pub trait Adaptable {
    /// Parameters, architecture and heads.
    ///
    /// [`ModelSpec::heads`] names the head even while it is tied and has no parameter of its own: readers of adapter files
    /// tell by this that a key means the head. After [`untie_head`](Adaptable::untie_head) this is called again on the
    /// untied clone, and must then list the head's weight.
    fn spec(&self) -> ModelSpec;

    /// Whether the output layer has no weight of its own, but reads the embedding matrix the other way.
    fn is_tied(&self) -> bool {
        false
    }

    /// Gives a tied model an output layer of its own that starts as the embedding matrix and shares its memory.
    ///
    /// An adapter that names the head is attached to the head's own weight. [`PeftModel`](crate::PeftModel) calls this on a
    /// clone when it takes in an adapter. Nothing happens to a model that [is not tied](Adaptable::is_tied).
    ///
    /// A tied model that leaves out this or [`is_tied`](Adaptable::is_tied) works, but an adapter that names its head is
    /// refused: there is no such layer.
    fn untie_head(&mut self) {}

    /// Rebuilds the stack from its own layers: the first is that with the number `order[0]`, and so on. A layer may come
    /// several times, and all of it is shared. `layer_replication` of LoRA asks for this.
    ///
    /// [`spec`](Adaptable::spec) is called again afterwards. A model whose layers differ by their place must see to it that
    /// the rebuilt one computes what a checkpoint of that many layers would.
    ///
    /// # Errors
    /// If the model cannot do this, as is the default, or has no layer of such a number.
    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        let _ = order;
        Err(PeftError::unsupported("layer_replication", "this model has no one stack of layers that could be repeated"))
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

/// The name of a base and its revision, as `adapter_config.json` has them apart: `owner/name@v1` is the hub id
/// `owner/name` at the revision `v1`. A folder has no revision, and neither has a name with a folder behind it
/// (`owner/name@v1:folder`), for which PEFT has no field.
pub fn base_reference(name: &str) -> (&str, Option<&str>) {
    let is_path = || name.starts_with(['.', '/', '~']) || Path::new(name).exists();
    match name.split_once('@') {
        Some((id, revision)) if !revision.contains(':') && id.matches('/').count() < 2 && !is_path() => {
            (id, Some(revision))
        }
        _ => (name, None),
    }
}

/// All parameters of a model, and what a plan must know about the model as a whole.
#[derive(Debug, Clone, Default)]
pub struct ModelSpec {
    params: Vec<Arc<ParamSpec>>,
    modules: BTreeSet<String>,
    /// `model_type` of `config.json`: picks default targets.
    pub model_type: Option<String>,
    /// Layers that `all-linear` leaves out: the language-model head, the classifier.
    pub heads: Vec<String>,
    /// Modules that are never quantised, by parts of their paths: `_keep_in_fp32_modules` in Python.
    pub full_precision: Vec<String>,
    /// Modules whose stacks of matrices lie as `[experts, in, out]`, not `[experts, out, in]`: `is_transposed` in Python.
    pub transposed: Vec<String>,
    /// Path of the embedding matrix of tokens, where that is not the first embedding of the model.
    pub tokens: Option<String>,
    /// Where prompts go in; nothing in models that take none.
    pub prompts: Option<PromptShape>,
    /// The positions that tokens may have, where a table has a row for each: `0..1024` in GPT-2, `2..514` in RoBERTa.
    /// `None` where positions have no end, as with rotary embeddings and distances.
    pub positions: Option<Range<i64>>,
    /// Folder or hub id that the weights came from. Adapter folders name it as `base_model_name_or_path`.
    pub base_name: Option<String>,
    /// Paths of parameters that the base's files do not hold, so that they started at random. An adapter must bring them.
    pub drawn: Vec<String>,
    /// What the model is for, as `adapter_config.json` spells it in `task_type`: `CAUSAL_LM`, `SEQ_CLS`, ….
    pub task_type: Option<String>,
    /// How files of other releases of transformers spell paths: parts of ours as regular expressions, and what stands in
    /// their place, one after another.
    pub other_names: &'static [(&'static str, &'static str)],
    /// What the outputs of its head mean, if somebody said so. A fresh adapter that trains the head takes them along.
    pub labels: Option<Labels>,
    /// How far each layer sees, as `layer_types` of `config.json` spells it, in architectures whose layers may differ in
    /// this: `full_attention`, `sliding_attention`.
    pub layer_types: Option<Vec<String>>,
    /// Numbers of the base's layers, in the order in which they are run, if an adapter has repeated some: see
    /// [`Adaptable::repeat_layers`].
    pub layer_order: Option<Vec<usize>>,
}

impl ModelSpec {
    /// Lists the parameters of a model. Lazy ones stay lazy.
    ///
    /// The kind of a layer goes by the struct that declares its weight: those of [`nn`](crate::nn) and of `burn::nn` are
    /// known. Burn tells no more than a struct's name, so a struct of yours that bears one of these names is told by its
    /// fields and shapes where they differ. Where they do not, declare it by [`ModelSpec::with_kind`].
    pub fn of<M: Module>(model: &M) -> Self {
        let mut visitor = ListParams::default();
        visit_params(model, &mut visitor);
        let ListParams { mut params, modules } = visitor;
        let strangers: Vec<String> = modules.iter().filter(|it| is_stranger(&params, it)).cloned().collect();
        for param in params.iter_mut().filter(|it| strangers.contains(&it.module)) {
            *param = Arc::new(ParamSpec { kind: ParamKind::Other, ..(**param).clone() });
        }
        Self { params, modules, ..Self::default() }
    }

    /// Declares the kind of layers, given the name of their struct or the path of a module or its end: what `weight` is
    /// there, and how it lies.
    ///
    /// ```
    /// # use peft_core::{Layout, ModelSpec, ParamKind};
    /// # let spec = ModelSpec::default();
    /// // struct Dense { weight: Param<Tensor<2>> }, `[out, in]`
    /// let spec = spec.with_kind("Dense", ParamKind::Linear(Layout::OutIn));
    /// ```
    pub fn with_kind(mut self, name: &str, kind: ParamKind) -> Self {
        let is_meant = |it: &ParamSpec| it.name == "weight" && (it.owner == name || is_suffix(&it.module, name));
        for param in self.params.iter_mut().filter(|it| is_meant(it)) {
            *param = Arc::new(ParamSpec { kind, ..(**param).clone() });
        }
        self
    }

    /// Names the architecture, as `config.json` does.
    pub fn with_model_type(mut self, model_type: impl Into<String>) -> Self {
        self.model_type = Some(model_type.into());
        self
    }

    /// Says where the weights came from: a folder or a hub id.
    pub fn with_base_name(mut self, base_name: impl Into<String>) -> Self {
        self.base_name = Some(base_name.into());
        self
    }

    /// Says what the model is for: `CAUSAL_LM`, `SEQ_CLS`, …. A fresh adapter takes it over, and with it the heads that
    /// the task trains.
    pub fn with_task_type(mut self, task_type: impl Into<String>) -> Self {
        self.task_type = Some(task_type.into());
        self
    }

    /// Says what the outputs of the head mean.
    pub fn with_labels(mut self, labels: impl Into<Option<Labels>>) -> Self {
        self.labels = labels.into();
        self
    }

    /// Says how transformers spells paths in releases that do not name modules as published files do: see
    /// [`other_names`](Self::other_names). Adapter folders and checkpoints with such keys are read, and written under ours.
    pub fn with_other_names(mut self, other_names: &'static [(&'static str, &'static str)]) -> Self {
        self.other_names = other_names;
        self
    }

    /// Paths that [`other_names`](Self::other_names) spells otherwise: that, and ours.
    pub fn other_paths(&self) -> impl Iterator<Item = (String, String)> {
        self.names_elsewhere().pairs()
    }

    pub(crate) fn names_elsewhere(&self) -> OtherNames {
        OtherNames::new(self.other_names, self.params.iter())
    }

    /// The same description of a model whose parameters have changed.
    pub(crate) fn with_parameters_of<M: Module>(&self, model: &M) -> Self {
        let Self { mut params, modules, .. } = Self::of(model);
        for param in &mut params {
            if let Some(before) = self.get(&param.path()).filter(|it| it.kind != param.kind) {
                *param = Arc::new(ParamSpec { kind: before.kind, ..(**param).clone() });
            }
        }
        Self { params, modules, ..self.clone() }
    }

    /// Names the output layers that `all-linear` leaves out.
    pub fn with_heads<S: Into<String>>(mut self, heads: impl IntoIterator<Item = S>) -> Self {
        self.heads = heads.into_iter().map(Into::into).collect();
        self
    }

    /// Says which modules are never quantised, by parts of their paths.
    pub fn with_full_precision<S: Into<String>>(mut self, modules: impl IntoIterator<Item = S>) -> Self {
        self.full_precision = modules.into_iter().map(Into::into).collect();
        self
    }

    /// Says how far each layer sees, if layers may differ in this.
    pub fn with_layer_types(mut self, types: impl Into<Option<Vec<String>>>) -> Self {
        self.layer_types = types.into();
        self
    }

    /// The description of the same base after a change to it: what was said of it from outside goes along.
    pub(crate) fn describing_changed(&self, changed: Self) -> Self {
        Self {
            base_name: self.base_name.clone(),
            task_type: self.task_type.clone(),
            layer_order: self.layer_order.clone(),
            ..changed
        }
    }

    /// Names the modules, by path or its end, whose stacks of matrices lie as `[experts, in, out]`.
    pub fn with_transposed<S: Into<String>>(mut self, modules: impl IntoIterator<Item = S>) -> Self {
        self.transposed = modules.into_iter().map(Into::into).collect();
        self
    }

    /// Whether a stack of matrices lies as `[experts, in, out]`.
    pub fn is_transposed(&self, param: &ParamSpec) -> bool {
        self.transposed.iter().any(|it| is_suffix(&param.module, it))
    }

    /// Says where prompts go in. `prompts.table` is relative to `stack`, which is empty for a model without a head.
    pub fn with_prompts(mut self, stack: &str, prompts: PromptShape) -> Self {
        let table = join(stack, &prompts.table);
        self.prompts = Some(PromptShape { table, ..prompts });
        self
    }

    /// Says which embedding is that of tokens, in models where another one stands before it.
    pub fn with_token_table(mut self, path: impl Into<String>) -> Self {
        self.tokens = Some(path.into());
        self
    }

    /// Says which positions there are, in models that have a table of them.
    pub fn with_positions(mut self, positions: impl Into<Option<Range<i64>>>) -> Self {
        self.positions = positions.into();
        self
    }

    /// The most tokens of a sequence, prompts included, in models that have a table of positions.
    pub fn max_positions(&self) -> Option<usize> {
        self.positions.as_ref().map(|it| (it.end - it.start.max(0)).max(0) as usize)
    }

    /// The embedding matrix of tokens: the one that the model names, else the first there is.
    pub fn token_table(&self) -> Option<&Arc<ParamSpec>> {
        let is_named = |it: &ParamSpec| self.tokens.as_ref().is_none_or(|path| it.module == *path);
        self.layers().find(|it| it.kind == ParamKind::Embedding && is_named(it))
    }

    /// Whether a module is one of the output layers, or inside one.
    pub fn is_head(&self, module: &str) -> bool {
        self.heads.iter().any(|head| module == head || is_below(module, head))
    }

    /// Every parameter, in the model's order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ParamSpec>> {
        self.params.iter()
    }

    /// The weights of linear layers, embeddings and convolutions.
    pub fn layers(&self) -> impl Iterator<Item = &Arc<ParamSpec>> {
        self.params.iter().filter(|it| it.is_layer_weight())
    }

    /// The parameters at or below a module.
    pub fn below<'a>(&'a self, module: &'a str) -> impl Iterator<Item = &'a Arc<ParamSpec>> {
        self.params.iter().filter(move |it| it.module == module || is_below(&it.module, module))
    }

    /// Every module path, with all its prefixes.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules.iter().map(String::as_str)
    }

    /// The parameter at a path.
    pub fn get(&self, path: &str) -> Option<&Arc<ParamSpec>> {
        self.params.iter().find(|it| it.path() == path)
    }

    /// Whether the layer of a weight has a bias.
    pub fn has_bias(&self, param: &ParamSpec) -> bool {
        self.get(&join(&param.module, "bias")).is_some()
    }

    /// Number of elements of all parameters. Buffers are none.
    pub fn parameters(&self) -> usize {
        self.params.iter().filter(|it| it.kind != ParamKind::Buffer).map(|it| it.len()).sum()
    }
}

#[derive(Default)]
struct ListParams {
    params: Vec<Arc<ParamSpec>>,
    modules: BTreeSet<String>,
}

impl VisitParams for ListParams {
    fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
        if at.in_adapters() {
            return;
        }
        let (module, name) = at.split();
        let owner = at.owner().to_owned();
        let kind = kind_of(&owner, &name, D);
        let mut prefix = module.as_str();
        while !prefix.is_empty() && self.modules.insert(prefix.to_owned()) {
            prefix = prefix.rsplit_once('.').map_or("", |(head, _)| head);
        }
        let shape = param.lazy_shape().as_slice().to_vec();
        self.params.push(Arc::new(ParamSpec { module, name, owner, kind, shape }));
    }
}

/// Whether a module is a struct of somebody else that bears the name of `burn::nn::Linear`, which has a weight `[in, out]`,
/// perhaps a bias `[out]`, and nothing more.
fn is_stranger(params: &[Arc<ParamSpec>], module: &str) -> bool {
    let fields: Vec<&ParamSpec> = params.iter().map(|it| &**it).filter(|it| it.module == module).collect();
    let width = fields.iter().find(|it| it.name == "weight").and_then(|it| it.shape.get(1));
    let fits = |it: &ParamSpec| match it.name.as_str() {
        "weight" => it.shape.len() == 2,
        "bias" => it.shape.len() == 1 && it.shape.first() == width,
        _ => false,
    };
    fields.iter().any(|it| it.owner == "Linear") && !fields.iter().all(|it| it.owner == "Linear" && fits(it))
}

impl Adaptable for AnyModule<dyn Adaptable> {
    fn spec(&self) -> ModelSpec {
        (**self).spec()
    }

    fn is_tied(&self) -> bool {
        (**self).is_tied()
    }

    fn untie_head(&mut self) {
        (**self).untie_head();
    }

    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        (**self).repeat_layers(order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_told_from_a_path() {
        assert_eq!(base_reference("owner/name@v1.0"), ("owner/name", Some("v1.0")));
        assert_eq!(base_reference("gpt2@refs/pr/1"), ("gpt2", Some("refs/pr/1")));
        for name in ["gpt2", "owner/name", "/home/me@work/gpt2", "../me@work/gpt2", "owner/name@v1:sub"] {
            assert_eq!(base_reference(name), (name, None), "{name}");
        }
    }
}
