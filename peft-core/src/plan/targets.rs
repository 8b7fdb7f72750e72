//! Which layers a configuration means, exactly as the reference resolves it.
//!
//! Source: `check_target_module_exists`, `_maybe_include_all_linear_layers` and `get_pattern_key` in
//! `peft/tuners/tuners_utils.py` and `peft/utils/other.py` (0.21).

use std::sync::Arc;

use fancy_regex::{Captures, Regex};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::error::{PeftError, Result, nearest};
use crate::spec::{ModelSpec, ParamKind, ParamSpec, contains_module, enclosing, is_suffix, short_name};

/// The name that stands for every linear layer but the head.
pub const ALL_LINEAR: &str = "all-linear";

/// `target_modules` and its like: a regular expression for whole paths, or a list of names and suffixes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Names {
    /// A regular expression that must match a whole path, or [`ALL_LINEAR`].
    Pattern(String),
    /// Paths, or last segments of paths.
    List(Vec<String>),
}

impl Names {
    /// A list of names.
    pub fn list<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self::List(names.into_iter().map(Into::into).collect())
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Pattern(pattern) => pattern.is_empty(),
            Self::List(names) => names.is_empty(),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Pattern(pattern) => format!("\"{pattern}\""),
            Self::List(names) => format!("{names:?}"),
        }
    }
}

/// One number or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Indices {
    /// A single layer.
    One(usize),
    /// Several layers.
    Many(Vec<usize>),
}

/// The fields by which a configuration selects layers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// `target_modules`
    pub target_modules: Option<Names>,
    /// `exclude_modules`
    pub exclude_modules: Option<Names>,
    /// `layers_to_transform`
    pub layers_to_transform: Option<Indices>,
    /// `layers_pattern`
    pub layers_pattern: Option<Names>,
    /// `modules_to_save`: copied whole, and therefore never adapted.
    pub modules_to_save: Vec<String>,
}

/// The layers that a selection means.
#[derive(Debug, Clone, Default)]
pub struct Selected {
    /// Weights to adapt, in the model's order.
    pub params: Vec<Arc<ParamSpec>>,
    /// Names of a list that matched nothing.
    pub unmatched: Vec<String>,
}

impl Selection {
    /// Resolves the selection against a model. `defaults` are the targets of the model's type when none are given.
    pub fn resolve(&self, spec: &ModelSpec, defaults: Option<&[&str]>) -> Result<Selected> {
        self.resolve_among(spec, spec.layers().cloned().collect(), defaults)
    }

    /// As [`resolve`](Self::resolve), but any module that holds parameters may be meant: one parameter of each is given.
    pub fn resolve_modules(&self, spec: &ModelSpec, defaults: Option<&[&str]>) -> Result<Selected> {
        let mut modules: Vec<Arc<ParamSpec>> = spec.iter().cloned().collect();
        modules.dedup_by(|a, b| a.module == b.module);
        self.resolve_among(spec, modules, defaults)
    }

    fn resolve_among(
        &self,
        spec: &ModelSpec,
        candidates: Vec<Arc<ParamSpec>>,
        defaults: Option<&[&str]>,
    ) -> Result<Selected> {
        let targets = match (&self.target_modules, defaults) {
            (Some(targets), _) => targets.clone(),
            (None, Some(defaults)) => Names::list(defaults.iter().copied()),
            (None, None) => {
                let model = spec.model_type.as_deref().unwrap_or("this model");
                let reason = format!("must be given: {model} has no default targets; `all-linear` takes every one");
                return Err(PeftError::config("target_modules", reason));
            }
        };
        self.check_indices(&targets)?;
        if targets == Names::Pattern(ALL_LINEAR.into()) {
            return self.all_linear(spec);
        }
        let matcher = Matcher::new("target_modules", &targets)?;
        let exclude = self.exclude_matcher()?;
        let index = self.index_matchers()?;

        let mut found: Vec<Arc<ParamSpec>> = Vec::new();
        let mut excluded = 0;
        for param in &candidates {
            let path = param.module.as_str();
            if exclude.as_ref().map_or(Ok(false), |it| it.matches(path))? {
                excluded += 1;
            } else if !self.is_saved(path) && matcher.matches(path)? && self.index_fits(&matcher, &index, path)? {
                found.push(param.clone());
            }
        }
        let unmatched = match &targets {
            Names::Pattern(_) => Vec::new(),
            Names::List(names) => {
                let hit = |name: &str| candidates.iter().any(|it| is_suffix(&it.module, name));
                names.iter().filter(|name| !hit(name)).cloned().collect()
            }
        };
        if found.is_empty() {
            // Whatever a pattern gave up on has been an error above.
            let is_hit = |it: &str| matcher.matches(it).unwrap_or(false);
            if let Some(module) = spec.modules().find(|it| is_hit(it) && is_container(spec, it)) {
                let is_weight =
                    |it: &&Arc<ParamSpec>| it.module == module && it.name == "weight" && it.shape.len() >= 2;
                let reason = match spec.iter().find(is_weight) {
                    Some(weight) => format!(
                        "names `{module}`, a struct `{}` whose layout is not known: declare it by `ModelSpec::with_kind`",
                        weight.owner
                    ),
                    None => format!("names `{module}`, which is not a linear layer, an embedding or a convolution"),
                };
                return Err(PeftError::config("target_modules", reason));
            }
            if excluded > 0 && unmatched.is_empty() {
                let reason = "leaves nothing to adapt: every target is excluded";
                return Err(PeftError::config("exclude_modules", reason));
            }
            if unmatched.is_empty() && self.layers_to_transform.is_some() {
                let reason = "selects no layer: no target lies in a layer of these numbers";
                return Err(PeftError::config("layers_to_transform", reason));
            }
            return Err(self.nothing_matched("target_modules", &targets, spec));
        }
        Ok(Selected { params: found, unmatched })
    }

    fn all_linear(&self, spec: &ModelSpec) -> Result<Selected> {
        let exclude = self.exclude_matcher()?;
        let linear = |param: &&Arc<ParamSpec>| {
            matches!(param.kind, ParamKind::Linear(_))
                && !spec.heads.iter().any(|head| is_suffix(&param.module, head))
                && !self.is_saved(&param.module)
        };
        let mut found = Vec::new();
        for param in spec.layers().filter(linear) {
            if !exclude.as_ref().map_or(Ok(false), |it| it.matches(&param.module))? {
                found.push(param.clone());
            }
        }
        if found.is_empty() {
            return Err(self.nothing_matched("target_modules", &Names::Pattern(ALL_LINEAR.into()), spec));
        }
        Ok(Selected { params: found, unmatched: Vec::new() })
    }

    fn nothing_matched(&self, field: &'static str, targets: &Names, spec: &ModelSpec) -> PeftError {
        let mut leaves: Vec<String> = Vec::new();
        for param in spec.layers() {
            let leaf = short_name(&param.module).to_owned();
            if !leaves.contains(&leaf) {
                leaves.push(leaf);
            }
        }
        let near = match targets {
            Names::Pattern(_) => Vec::new(),
            Names::List(names) => names.iter().flat_map(|it| nearest(it, leaves.iter().map(String::as_str))).collect(),
        };
        PeftError::NothingMatched { field, targets: targets.shown(), nearest: near, available: leaves }
    }

    fn check_indices(&self, targets: &Names) -> Result<()> {
        let is_pattern = matches!(targets, Names::Pattern(_));
        if is_pattern && self.layers_to_transform.is_some() {
            let reason = "goes with a list in `target_modules`, not with `all-linear` or a regular expression, which can \
                          name the layers itself";
            return Err(PeftError::config("layers_to_transform", reason));
        }
        if self.layers_pattern.as_ref().is_some_and(|it| !it.is_empty()) && self.layers_to_transform.is_none() {
            let reason = "has no effect without `layers_to_transform`: give both, or neither";
            return Err(PeftError::config("layers_pattern", reason));
        }
        Ok(())
    }

    fn exclude_matcher(&self) -> Result<Option<Matcher>> {
        let given = self.exclude_modules.as_ref().filter(|it| !it.is_empty());
        given.map(|it| Matcher::new("exclude_modules", it)).transpose()
    }

    /// Modules that are copied whole are never adapted, nor is anything inside them.
    fn is_saved(&self, path: &str) -> bool {
        self.modules_to_save.iter().any(|name| contains_module(path, name))
    }

    fn index_matchers(&self) -> Result<Vec<Pattern>> {
        if self.layers_to_transform.is_none() {
            return Ok(Vec::new());
        }
        // The first number counts: that of the layer, not that of an expert in it.
        let patterns: Vec<String> = match self.layers_pattern.as_ref().filter(|it| !it.is_empty()) {
            None => vec![r"\A.*?\.[^.]*\.(\d+)\.".to_owned()],
            Some(Names::Pattern(pattern)) => vec![named(pattern)],
            Some(Names::List(patterns)) => patterns.iter().map(|it| named(it)).collect(),
        };
        patterns.iter().map(|it| Pattern::new("layers_pattern", it)).collect()
    }

    fn index_fits(&self, targets: &Matcher, patterns: &[Pattern], path: &str) -> Result<bool> {
        // A path that is listed whole is meant, whatever the layer numbers say.
        let Some(indices) = self.layers_to_transform.as_ref().filter(|_| !targets.lists(path)) else {
            return Ok(true);
        };
        let wanted = |index: usize| match indices {
            Indices::One(one) => *one == index,
            Indices::Many(many) => many.is_empty() || many.contains(&index),
        };
        if matches!(indices, Indices::Many(many) if many.is_empty()) {
            return Ok(true);
        }
        for pattern in patterns {
            if let Some(captured) = pattern.captures(path)? {
                return Ok(captured.get(1).and_then(|it| it.as_str().parse().ok()).is_some_and(wanted));
            }
        }
        Ok(false)
    }
}

/// The number of a layer behind the name of its list, which may begin the path.
fn named(pattern: &str) -> String {
    format!(r"\A(?:|.*?\.){pattern}\.(\d+)\.")
}

fn is_container(spec: &ModelSpec, module: &str) -> bool {
    !spec.layers().any(|it| it.module == module)
}

/// The error of `target_parameters` that match nothing, with the parameters that they may have meant.
pub fn no_parameter_matched(names: &[String], spec: &ModelSpec) -> PeftError {
    let paths: Vec<String> = spec
        .iter()
        .filter(|it| matches!(it.shape.len(), 2 | 3) && it.kind != ParamKind::Buffer)
        .map(|it| it.path())
        .collect();
    // As many segments as the name has.
    let ends = |count: usize| paths.iter().map(move |path| last_segments(path, count));
    let near = names.iter().flat_map(|name| nearest(name, ends(name.split('.').count()))).collect();
    let mut available: Vec<String> = Vec::new();
    for end in ends(2) {
        if !available.iter().any(|it| it == end) {
            available.push(end.to_owned());
        }
    }
    PeftError::NothingMatched { field: "target_parameters", targets: format!("{names:?}"), nearest: near, available }
}

fn last_segments(path: &str, count: usize) -> &str {
    path.rmatch_indices('.').nth(count.saturating_sub(1)).map_or(path, |(at, _)| &path[at + 1..])
}

/// Whether `modules_to_save = [name]` saves the parameter's module or one around it.
///
/// The reference compares ends of paths and ignores dots: `norm` saves every `input_layernorm` too. Its files hold
/// those tensors, so they are read the same way here.
pub fn is_saved_whole(path: &str, name: &str) -> bool {
    enclosing(path).any(|it| it.ends_with(name))
}

/// A regular expression of a configuration. It may give up on a path, which is no answer.
#[derive(Debug)]
struct Pattern {
    field: String,
    regex: Box<Regex>,
}

impl Pattern {
    fn new(field: &str, pattern: &str) -> Result<Self> {
        let regex = Regex::new(pattern)
            .map_err(|error| PeftError::config(field, format!("is not a regular expression: {error}")))?;
        Ok(Self { field: field.to_owned(), regex: Box::new(regex) })
    }

    fn matches(&self, path: &str) -> Result<bool> {
        self.regex.is_match(path).map_err(|error| self.gave_up(path, &error))
    }

    fn captures<'a>(&self, path: &'a str) -> Result<Option<Captures<'a>>> {
        self.regex.captures(path).map_err(|error| self.gave_up(path, &error))
    }

    fn gave_up(&self, path: &str, error: &fancy_regex::Error) -> PeftError {
        let reason =
            format!("is a regular expression that gives up on `{path}`, so nobody knows ({error}): simplify it");
        PeftError::config(self.field.as_str(), reason)
    }
}

/// A regular expression that must match a whole path.
#[derive(Debug)]
pub struct WholePath(Pattern);

impl WholePath {
    /// Compiles the expression of a configuration's field.
    pub fn new(field: &str, pattern: &str) -> Result<Self> {
        Ok(Self(Pattern::new(field, &format!(r"\A(?:{pattern})\z"))?))
    }

    /// Whether it matches all of the path.
    ///
    /// # Errors
    /// If the expression takes so many steps that it gives up.
    pub fn matches(&self, path: &str) -> Result<bool> {
        self.0.matches(path)
    }
}

enum Matcher {
    Pattern(WholePath),
    List(Vec<String>),
}

impl Matcher {
    fn new(field: &str, names: &Names) -> Result<Self> {
        Ok(match names {
            Names::Pattern(pattern) => Self::Pattern(WholePath::new(field, pattern)?),
            Names::List(names) => Self::List(names.clone()),
        })
    }

    fn matches(&self, path: &str) -> Result<bool> {
        match self {
            Self::Pattern(pattern) => pattern.matches(path),
            Self::List(names) => Ok(names.iter().any(|name| is_suffix(path, name))),
        }
    }

    fn lists(&self, path: &str) -> bool {
        matches!(self, Self::List(names) if names.iter().any(|name| name == path))
    }
}

/// `rank_pattern` and its like: values for layers whose path ends in a match of the key.
#[derive(Debug)]
pub struct Patterns<'a, T> {
    entries: Vec<(Pattern, &'a T)>,
}

impl<'a, T> Patterns<'a, T> {
    /// Compiles the keys, which are regular expressions. The first that matches wins.
    ///
    /// The order is that of the JSON file. The reference keeps the order in which its user wrote the dictionary while
    /// it trains, but writes the file with sorted keys, so after a reload it too goes by the file.
    pub fn new(field: &str, map: &'a IndexMap<String, T>) -> Result<Self> {
        Self::spelled(field, map, |key| format!(r"\A(?:.*\.)?(?:{key})\z"))
    }

    /// Compiles keys that a method matches in a way of its own.
    pub fn spelled(field: &str, map: &'a IndexMap<String, T>, spell: impl Fn(&str) -> String) -> Result<Self> {
        let entries = map.iter().map(|(key, value)| Ok((Pattern::new(field, &spell(key))?, value)));
        Ok(Self { entries: entries.collect::<Result<_>>()? })
    }

    /// The value for a layer.
    ///
    /// # Errors
    /// If a key takes so many steps that it gives up.
    pub fn get(&self, path: &str) -> Result<Option<&'a T>> {
        for (pattern, value) in &self.entries {
            if pattern.matches(path)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Keys that match none of the paths.
    ///
    /// # Errors
    /// As [`Patterns::get`].
    pub fn unused<'b>(
        &self,
        field: &'a IndexMap<String, T>,
        paths: impl Iterator<Item = &'b str> + Clone,
    ) -> Result<Vec<String>> {
        let mut unused = Vec::new();
        for ((pattern, _), key) in self.entries.iter().zip(field.keys()) {
            let mut is_hit = false;
            for path in paths.clone() {
                is_hit |= pattern.matches(path)?;
            }
            if !is_hit {
                unused.push(key.clone());
            }
        }
        Ok(unused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_respect_dots() {
        assert!(is_suffix("h.0.attn.c_attn", "c_attn"));
        assert!(is_suffix("h.0.attn.c_attn", "attn.c_attn"));
        assert!(!is_suffix("h.0.attn.c_attn", "attn"));
        assert!(!is_suffix("h.0.xc_attn", "c_attn"));
        assert!(is_suffix("c_attn", "c_attn"));
    }

    #[test]
    fn a_number_is_no_name() {
        assert_eq!(short_name("mid_block.attentions.0.attn1.to_out.0"), "to_out.0");
        assert_eq!(short_name("h.0.attn.c_attn"), "c_attn");
        assert_eq!(["0", "net.2", "lm_head"].map(short_name), ["0", "net.2", "lm_head"]);
    }

    #[test]
    fn a_module_contains_what_lies_inside() {
        assert!(contains_module("bert.pooler.dense", "pooler"));
        assert!(contains_module("classifier", "classifier"));
        assert!(!contains_module("bert.xpooler.dense", "pooler"));
        assert!(contains_module("model.layers.0.mlp.up", "layers.0.mlp"));
    }

    #[test]
    fn the_first_pattern_that_matches_wins_and_anchors_work() {
        let map: IndexMap<String, usize> = [("q_proj".into(), 4), ("^model.layers.1.q_proj".into(), 9)].into();
        let patterns = Patterns::new("rank_pattern", &map).unwrap();
        assert_eq!(patterns.get("model.layers.1.q_proj").unwrap(), Some(&4));
        assert_eq!(patterns.get("model.layers.1.k_proj").unwrap(), None);
        assert_eq!(patterns.get("model.xq_proj").unwrap(), None);
    }

    #[test]
    fn layers_are_counted_by_their_own_number() {
        const PATHS: [&str; 6] = [
            "m.layers.0.experts.0.w",
            "m.layers.0.experts.1.w",
            "m.layers.1.experts.0.w",
            "m.layers.1.experts.1.w",
            "layers.0.w",
            "layers.1.w",
        ];
        let found = |pattern: Option<&str>| {
            let selection = Selection {
                layers_to_transform: Some(Indices::One(0)),
                layers_pattern: pattern.map(|it| Names::Pattern(it.into())),
                ..Selection::default()
            };
            let (index, targets) = (selection.index_matchers().unwrap(), Matcher::List(vec!["w".into()]));
            PATHS.map(|path| selection.index_fits(&targets, &index, path).unwrap())
        };
        // As `check_target_module_exists` of the reference (0.21.2) answers.
        assert_eq!(found(None), [true, true, false, false, false, false]);
        assert_eq!(found(Some("layers")), [true, true, false, false, true, false]);
    }

    #[test]
    fn patterns_tell_nested_layers_apart() {
        const PATHS: [&str; 3] = ["foo", "middle.foo", "middle.inner.foo"];
        let values = |entries: &[(&str, usize)]| {
            let map: IndexMap<String, usize> = entries.iter().map(|(key, value)| ((*key).into(), *value)).collect();
            let patterns = Patterns::new("rank_pattern", &map).unwrap();
            PATHS.map(|path| patterns.get(path).unwrap().copied())
        };
        assert_eq!(values(&[("foo", 4)]), [Some(4); 3]);
        assert_eq!(values(&[("bar", 4)]), [None; 3]);
        assert_eq!(values(&[("^foo", 4)]), [Some(4), None, None]);
        assert_eq!(values(&[("middle.foo", 4)]), [None, Some(4), None]);
        assert_eq!(values(&[("inner.foo", 4)]), [None, None, Some(4)]);
        assert_eq!(values(&[("^middle.inner.foo", 4)]), [None, None, Some(4)]);
        assert_eq!(values(&[("middle.foo", 4), ("inner.foo", 5)]), [None, Some(4), Some(5)]);
        assert_eq!(values(&[("^foo", 3), ("middle.foo", 4), ("inner.foo", 5)]), [Some(3), Some(4), Some(5)]);
        // The first that matches wins, so the order decides.
        assert_eq!(values(&[("foo", 3), ("middle.foo", 4)]), [Some(3); 3]);
        assert_eq!(values(&[("middle.foo", 4), ("foo", 3)]), [Some(3), Some(4), Some(3)]);
        assert_eq!(values(&[(r"(?:middle\.)?foo", 4), ("inner.foo", 5)]), [Some(4); 3]);
    }

    #[test]
    fn layer_numbers_go_with_a_list_only() {
        for pattern in [ALL_LINEAR, ".*q_proj"] {
            let selection = Selection {
                target_modules: Some(Names::Pattern(pattern.into())),
                layers_to_transform: Some(Indices::One(1)),
                ..Selection::default()
            };
            let error = selection.resolve(&ModelSpec::default(), None).unwrap_err().to_string();
            assert!(error.starts_with("`layers_to_transform` goes with a list"), "{error}");
        }
    }

    #[test]
    fn an_expression_that_gives_up_is_an_error_and_not_a_no() {
        let slow = r"(?=(a+)+\1x)[^.]*\.weight";
        let path = format!("{}.weight", "a".repeat(64));
        let error = WholePath::new("target_modules", slow).unwrap().matches(&path).unwrap_err().to_string();
        assert!(error.starts_with("`target_modules` is a regular expression that gives up"), "{error}");
        let map: IndexMap<String, usize> = [(slow.to_owned(), 4)].into();
        assert!(
            Patterns::new("rank_pattern", &map).unwrap().get(&path).unwrap_err().to_string().contains("rank_pattern")
        );
    }
}
