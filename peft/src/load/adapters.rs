//! A base model with the adapters of some folders on it.

use std::path::{Path, PathBuf};

use burn::module::Module;
use peft_core::{Adaptable, AdapterFolder, DEFAULT_ADAPTER, MethodRegistry, PeftModel, Result, spec};
use peft_models::auto::ClassifierOptions;

/// An adapter folder, and how strongly the adapter acts.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSource {
    /// The folder.
    pub folder: PathBuf,
    /// 1 as trained, 0 not at all.
    pub strength: f64,
}

impl AdapterSource {
    /// An adapter as it was trained.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), strength: 1.0 }
    }
}

/// The base with these adapters, all active, in this order. The first is called `default`, the others `adapter1`,
/// `adapter2`, ….
///
/// # Errors
/// If something cannot be read, or an adapter does not fit.
pub fn with_adapters<M: Module + Adaptable>(
    base: M,
    adapters: &[AdapterSource],
    methods: &MethodRegistry,
) -> Result<PeftModel<M>> {
    let mut model = PeftModel::new(base);
    for (at, adapter) in adapters.iter().enumerate() {
        let name = if at == 0 { DEFAULT_ADAPTER.to_owned() } else { format!("adapter{at}") };
        if at == 0 {
            model.adopt_tables(&AdapterFolder::open(&adapter.folder)?)?;
        }
        model.load_adapter(&adapter.folder, &name, methods)?;
        model.set_strength(&name, adapter.strength)?;
    }
    let drawn = model.drawn();
    if let Some(first) = drawn.first() {
        let more = if drawn.len() > 1 { format!(" and {} more", drawn.len() - 1) } else { String::new() };
        tracing::warn!(
            "neither the base nor an adapter holds `{first}`{more}: these weights are random, and so is what they compute"
        );
    }
    Ok(model)
}

/// The head that adapters bring with them: the base may be without one.
pub fn head_of(adapters: &[AdapterSource]) -> ClassifierOptions {
    let num_labels = adapters.iter().find_map(|it| num_labels(&AdapterFolder::open(&it.folder).ok()?));
    ClassifierOptions { num_labels, ..ClassifierOptions::default() }
}

/// How many outputs the head of an adapter has, if it brings one.
pub fn num_labels(folder: &AdapterFolder) -> Option<usize> {
    let heads = ["score.weight", "classifier.weight", "classifier.out_proj.weight", "decode_head.classifier.weight"];
    // The head beside a prompt has the shorter prefix.
    let keys =
        heads.iter().flat_map(|it| [spec::keys::KEY_PREFIX, "base_model."].map(|prefix| format!("{prefix}{it}")));
    keys.into_iter().find_map(|key| folder.tensors.shape(&key)?.first().copied())
}

/// Whether two paths lead to the same folder, which is there.
pub fn is_same_folder(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
