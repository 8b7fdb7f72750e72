//! Parts that a base lacks and that start at random: they are trained and saved with the adapter, or nobody could load it.

use std::collections::{BTreeSet, HashSet};

use peft_core::{ModelSpec, PeftConfig};
use serde_json::{Map, Value};

/// Puts the drawn parts of a model among the `modules_to_save` of a configuration, given as JSON too; true if there were any.
/// The heads of a task are there by themselves; a pooler behind a checkpoint of a masked language model is not, and PEFT
/// forgets it.
pub(crate) fn save(json: &mut Map<String, Value>, config: &dyn PeftConfig, spec: &ModelSpec) -> bool {
    if spec.drawn.is_empty() {
        return false;
    }
    let names: Vec<String> = tops(spec, &spec.drawn).into_iter().collect();
    tracing::warn!("the base has no weights for {}: they are drawn, trained whole and saved", names.join(", "));
    // What is wrong with it is said when the adapter is added.
    let Ok(plan) = config.plan(spec) else { return false };
    let whole = plan.rows.iter().filter(|it| it.is_whole()).map(|it| it.param.path());
    let whole: HashSet<String> = whole.collect();
    let left: Vec<String> = spec.drawn.iter().filter(|it| !whole.contains(*it)).cloned().collect();
    if left.is_empty() {
        return false;
    }
    let mut saved = json.get("modules_to_save").and_then(Value::as_array).cloned().unwrap_or_default();
    saved.extend(tops(spec, &left).into_iter().map(Value::from));
    json.insert("modules_to_save".into(), saved.into());
    true
}

/// The modules that hold these parameters and nothing else.
fn tops(spec: &ModelSpec, paths: &[String]) -> BTreeSet<String> {
    let all_drawn = |module: &str| spec.below(module).all(|it| paths.contains(&it.path()));
    let top = |path: &String| {
        let param = spec.get(path)?;
        let mut module = param.module.as_str();
        while let Some((above, _)) = module.rsplit_once('.')
            && all_drawn(above)
        {
            module = above;
        }
        Some(module.to_owned())
    };
    paths.iter().filter_map(top).collect()
}
