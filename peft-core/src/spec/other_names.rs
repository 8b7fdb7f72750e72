//! Names of modules in files of other releases of transformers.
//!
//! Release 5 calls some modules otherwise in memory. It writes checkpoints under the names that have been published, but
//! adapters under its own, and their configurations go by those.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use fancy_regex::Regex;
use serde_json::{Map, Value};

use crate::spec::keys::{KEY_PREFIX, plain_key};
use crate::spec::param::ParamSpec;
use crate::spec::path::{enclosing, is_suffix};

/// Paths of a model that have another name, and how to get from that to ours.
#[derive(Debug, Default)]
pub(crate) struct OtherNames {
    /// Another name of a module or parameter, to ours.
    ours: HashMap<String, String>,
    /// Our modules of layers, each with its other name.
    layers: Vec<(String, String)>,
}

impl OtherNames {
    /// `rules` are parts of our paths as regular expressions, and what stands in their place, one after another.
    pub(crate) fn new<'a>(rules: &[(&str, &str)], params: impl Iterator<Item = &'a Arc<ParamSpec>>) -> Self {
        // An expression of ours that is none would be seen by the first test of the model.
        let rules: Vec<(Regex, &str)> =
            rules.iter().filter_map(|(from, to)| Some((Regex::new(from).ok()?, *to))).collect();
        if rules.is_empty() {
            return Self::default();
        }
        let other = |path: &str| {
            rules.iter().fold(path.to_owned(), |path, (from, to)| from.replace_all(&path, *to).into_owned())
        };
        let mut names = Self::default();
        for param in params {
            let path = param.path();
            let there = other(&path);
            // The module of a layer, in which an adapter has tensors of its own.
            if let Some(module) = there.strip_suffix(".weight").filter(|_| param.is_layer_weight()) {
                names.ours.insert(module.to_owned(), param.module.clone());
                names.layers.push((param.module.clone(), module.to_owned()));
            }
            names.ours.insert(there, path);
        }
        names.ours.retain(|there, ours| there != ours);
        names
    }

    /// The key of an adapter file with our names in it.
    pub(crate) fn key<'a>(&self, key: &'a str) -> Cow<'a, str> {
        let Some(path) = key.strip_prefix(KEY_PREFIX) else { return Cow::Borrowed(key) };
        let found = enclosing(path).find_map(|it| Some((it, self.ours.get(it)?)));
        match found {
            Some((there, ours)) => Cow::Owned(format!("{KEY_PREFIX}{ours}{}", &path[there.len()..])),
            None => Cow::Borrowed(key),
        }
    }

    /// Paths that have another name: that, and ours.
    pub(crate) fn pairs(self) -> impl Iterator<Item = (String, String)> {
        self.ours.into_iter()
    }

    /// A configuration that goes by other names, by ours.
    ///
    /// The same name may mean other layers here and there: whoever calls this knows from the tensors beside the configuration that
    /// it goes by the others.
    pub(crate) fn translate(&self, config: &mut Map<String, Value>) {
        for field in ["target_modules", "exclude_modules"] {
            let translated = match config.get(field) {
                Some(Value::Array(names)) => {
                    let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
                    names.iter().flat_map(|it| self.translated(it).unwrap_or_else(|| vec![(*it).to_owned()])).collect()
                }
                Some(Value::String(pattern)) => match self.matched(pattern) {
                    Some(paths) => paths,
                    None => continue,
                },
                _ => continue,
            };
            let mut seen = HashSet::new();
            let unique: Vec<String> = translated.into_iter().filter(|it: &String| seen.insert(it.clone())).collect();
            config.insert(field.to_owned(), unique.into());
        }
        for field in ["rank_pattern", "alpha_pattern"] {
            let Some(Value::Object(patterns)) = config.get(field) else { continue };
            let mut translated = Map::new();
            for (name, value) in patterns {
                for name in self.translated(name).unwrap_or_else(|| vec![name.clone()]) {
                    translated.entry(name).or_insert_with(|| value.clone());
                }
            }
            config.insert(field.to_owned(), Value::Object(translated));
        }
    }

    /// What stands for a name of layers: as few names as mean the same. Nothing if it means none.
    fn translated(&self, name: &str) -> Option<Vec<String>> {
        let meant: Vec<&str> =
            self.layers.iter().filter(|(_, there)| is_suffix(there, name)).map(|it| it.0.as_str()).collect();
        self.shortest(&meant)
    }

    /// The layers that an expression for whole paths means; nothing if it means the same by our names, or none.
    fn matched(&self, pattern: &str) -> Option<Vec<String>> {
        let whole = Regex::new(&format!(r"\A(?:{pattern})\z")).ok()?;
        let is_hit = |path: &str| whole.is_match(path).unwrap_or(false);
        if self.layers.iter().all(|(ours, there)| is_hit(ours) == is_hit(there)) {
            return None;
        }
        let meant: Vec<String> = self.layers.iter().filter(|it| is_hit(&it.1)).map(|it| it.0.clone()).collect();
        (!meant.is_empty()).then_some(meant)
    }

    /// Ends of paths that mean these layers and no other.
    fn shortest(&self, meant: &[&str]) -> Option<Vec<String>> {
        let depth = meant.iter().map(|it| it.split('.').count()).max()?;
        let end = |path: &str, count: usize| {
            let cut = path.rmatch_indices('.').nth(count - 1).map_or(0, |(at, _)| at + 1);
            path[cut..].to_owned()
        };
        for count in 1..=depth {
            let mut ends: Vec<String> = Vec::new();
            for path in meant {
                let end = end(path, count);
                if !ends.contains(&end) {
                    ends.push(end);
                }
            }
            let is_meant = |path: &str| ends.iter().any(|it| is_suffix(path, it));
            if self.layers.iter().all(|(ours, _)| is_meant(ours) == meant.contains(&ours.as_str())) {
                return Some(ends);
            }
        }
        // A whole path may be the end of another one.
        Some(meant.iter().map(|it| (*it).to_owned()).collect())
    }
}

/// The key of an adapter file as the reference saves it, with our names.
pub(crate) fn key_of(names: &OtherNames, key: &str) -> String {
    names.key(&plain_key(key)).into_owned()
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::module::Module;
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::nn::Projection;
    use crate::spec::ModelSpec;

    #[derive(Module, Debug)]
    struct Layer {
        query: Projection,
        dense: Projection,
    }

    #[derive(Module, Debug)]
    struct Model {
        layer: Vec<Layer>,
        dense: Projection,
    }

    fn names() -> OtherNames {
        let device = Device::flex();
        let projection = || Projection::new(2, 3, true, &device);
        let layer = || Layer { query: projection(), dense: projection() };
        let model = Model { layer: vec![layer(), layer()], dense: projection() };
        ModelSpec::of(&model).with_other_names(OTHER).names_elsewhere()
    }

    const OTHER: &[(&str, &str)] =
        &[(r"layer\.(\d+)\.", "blocks.$1."), (r"query\.", "q_proj."), (r"(blocks\.\d+)\.dense\.", "$1.fc.")];

    #[test]
    fn keys_get_our_names() {
        let names = names();
        let key = |path: &str| names.key(&format!("{KEY_PREFIX}{path}")).replace(KEY_PREFIX, "");
        assert_eq!(key("blocks.1.q_proj.lora_A.weight"), "layer.1.query.lora_A.weight");
        assert_eq!(key("blocks.0.fc.base_layer.bias"), "layer.0.dense.base_layer.bias");
        assert_eq!(key("blocks.0.fc.bias"), "layer.0.dense.bias");
        for same in ["layer.1.query.lora_A.weight", "dense.lora_B.weight", "blocks.7.fc.bias"] {
            assert_eq!(key(same), same);
        }
    }

    #[test]
    fn configurations_name_the_same_layers() {
        let names = names();
        let translated = |config: Value| {
            let Value::Object(mut config) = config else { unreachable!() };
            names.translate(&mut config);
            Value::Object(config)
        };
        // `dense` alone would mean the one behind the layers too.
        let config = json!({"target_modules": ["q_proj", "fc", "q_proj"], "rank_pattern": {"blocks.1.q_proj": 3}});
        let wanted = json!({"target_modules": ["query", "0.dense", "1.dense"], "rank_pattern": {"1.query": 3}});
        assert_eq!(translated(config), wanted);
        let config = json!({"target_modules": r".*blocks\.\d+\.q_proj", "exclude_modules": null});
        assert_eq!(translated(config)["target_modules"], json!(["layer.0.query", "layer.1.query"]));
        let all = json!({"target_modules": "all-linear"});
        assert_eq!(translated(all.clone()), all);
    }
}
