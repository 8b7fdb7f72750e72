//! What the configuration and the tensors of a folder say.

use std::collections::{BTreeMap, BTreeSet};

use peft_core::model::state::KEY_PREFIX;
use peft_core::spec::{is_method_tensor, is_wrapped_by_torch, names_another_adapter};
use peft_core::{AdapterFolder, CONFIG_FILE, MethodRegistry, PeftError, Result, is_off};
use serde_json::{Map, Value};

use super::inspection::{Flags, shorten};

/// What a tensor is to its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    A,
    B,
    EmbeddingA,
    EmbeddingB,
    Magnitude,
    BiasOfB,
    /// A tensor of another method.
    Foreign,
    /// The frozen weight or the trained bias of an adapted layer.
    BaseLayer,
    /// Saved whole.
    Whole,
}

const ENDINGS: [(&str, Role); 6] = [
    (".lora_A.weight", Role::A),
    (".lora_B.weight", Role::B),
    (".lora_embedding_A", Role::EmbeddingA),
    (".lora_embedding_B", Role::EmbeddingB),
    (".lora_magnitude_vector", Role::Magnitude),
    (".lora_B.bias", Role::BiasOfB),
];

pub(super) fn split(key: &str) -> (&str, Role) {
    let path = key.strip_prefix(KEY_PREFIX).unwrap_or(key);
    for (ending, role) in ENDINGS {
        if let Some(module) = path.strip_suffix(ending) {
            return (module, role);
        }
    }
    if let Some((module, _)) = path.rsplit_once(".base_layer.") {
        return (module, Role::BaseLayer);
    }
    let mut at = 0;
    for segment in path.split('.') {
        if at > 0 && is_method_tensor(segment) {
            return (&path[..at - 1], Role::Foreign);
        }
        at += segment.len() + 1;
    }
    (path.rsplit_once('.').map_or(path, |(module, _)| module), Role::Whole)
}

pub(super) fn leaf(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// Everything that the verdicts are made of.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) config: Map<String, Value>,
    pub(super) format: Option<String>,
    pub(super) peft_type: String,
    pub(super) rank: Option<usize>,
    pub(super) alpha: Option<f64>,
    pub(super) flags: Flags,
    pub(super) keys: Vec<String>,
    pub(super) ranks: BTreeMap<usize, usize>,
    pub(super) parameters: usize,
    pub(super) bytes: usize,
    pub(super) dtypes: BTreeMap<String, usize>,
    pub(super) layers: BTreeMap<String, usize>,
    pub(super) adapted: BTreeSet<String>,
    pub(super) whole: Vec<String>,
    pub(super) zero: Vec<String>,
    pub(super) not_finite: Vec<String>,
    pub(super) unreadable: Vec<String>,
    pub(super) missing_partners: Vec<String>,
    /// Tensors whose keys, as the file spells them, name torch's wrappers.
    pub(super) wrapped: usize,
    /// Tensors whose keys hold the name of an adapter that nobody looks for.
    pub(super) of_another: usize,
    /// Tensors whose keys name the adapter.
    pub(super) named: usize,
    pub(super) base_type: Option<String>,
    pub(super) base_is_tied: Option<bool>,
    /// Why the reference has no such adapter on this base.
    pub(super) not_in_reference: Vec<String>,
}

impl Facts {
    pub(super) fn read(folder: &AdapterFolder) -> Result<Self> {
        let config = folder.config.clone();
        let Some(peft_type) = config.get("peft_type").and_then(Value::as_str).map(str::to_owned) else {
            return Err(PeftError::bad_file(folder.path.join(CONFIG_FILE), "it names no `peft_type`"));
        };
        let on = |field: &str| config.get(field).is_some_and(|it| !is_off(it));
        let bias = config.get("bias").and_then(Value::as_str).unwrap_or("none");
        let names = config.get("modules_to_save").and_then(Value::as_array).into_iter().flatten();
        let flags = Flags {
            use_rslora: on("use_rslora"),
            use_dora: on("use_dora"),
            alora_invocation_tokens: on("alora_invocation_tokens"),
            lora_bias: on("lora_bias"),
            bias: bias.to_owned(),
            modules_to_save: names.filter_map(Value::as_str).map(str::to_owned).collect(),
            init: match config.get("init_lora_weights") {
                None | Some(Value::Null | Value::Bool(true)) => None,
                Some(Value::String(name)) => Some(name.clone()),
                Some(other) => Some(other.to_string()),
            },
            rank_pattern: on("rank_pattern"),
            alpha_pattern: on("alpha_pattern"),
        };
        let header = folder.tensors.header().as_ref();
        let mut facts = Self {
            format: header.and_then(|it| it.get("format")).cloned(),
            rank: config.get("r").and_then(Value::as_u64).and_then(|it| it.try_into().ok()),
            alpha: config.get("lora_alpha").and_then(Value::as_f64),
            config,
            peft_type,
            flags,
            keys: folder.tensors.keys(),
            ranks: BTreeMap::new(),
            parameters: 0,
            bytes: 0,
            dtypes: BTreeMap::new(),
            layers: BTreeMap::new(),
            adapted: BTreeSet::new(),
            whole: Vec::new(),
            zero: Vec::new(),
            not_finite: Vec::new(),
            unreadable: Vec::new(),
            missing_partners: Vec::new(),
            wrapped: 0,
            of_another: 0,
            named: 0,
            base_type: None,
            base_is_tied: None,
            not_in_reference: Vec::new(),
        };
        let (spelled, plain) = (folder.tensors.file_keys(), folder.tensors.keys());
        facts.wrapped = spelled.iter().filter(|it| is_wrapped_by_torch(it)).count();
        facts.named = spelled.iter().filter(|it| !is_wrapped_by_torch(it) && plain.binary_search(it).is_err()).count();
        facts.of_another = spelled.iter().filter(|it| names_another_adapter(it)).count();
        facts.read_tensors(folder);
        facts.find_partners();
        Ok(facts)
    }

    fn read_tensors(&mut self, folder: &AdapterFolder) {
        for key in &self.keys {
            let shape = folder.tensors.shape(key).unwrap_or(&[]);
            self.parameters += shape.iter().product::<usize>();
            self.bytes += folder.tensors.bytes(key).unwrap_or(0);
            if let Some(dtype) = folder.tensors.dtype(key) {
                *self.dtypes.entry(format!("{dtype:?}")).or_default() += 1;
            }
            let (module, role) = split(key);
            match role {
                Role::Whole | Role::BaseLayer => self.whole.push(key.clone()),
                _ => {
                    self.adapted.insert(module.to_owned());
                }
            }
            if matches!(role, Role::A | Role::EmbeddingA) && !shape.is_empty() {
                *self.ranks.entry(shape[0]).or_default() += 1;
            }
            match folder.tensors.floats(key) {
                Ok(data) => {
                    let (mut zero, mut finite) = (true, true);
                    for value in data.iter::<f32>() {
                        zero &= value == 0.0;
                        finite &= value.is_finite();
                    }
                    if zero {
                        self.zero.push(key.clone());
                    }
                    if !finite {
                        self.not_finite.push(key.clone());
                    }
                }
                Err(_) => self.unreadable.push(key.clone()),
            }
        }
        for module in &self.adapted {
            *self.layers.entry(leaf(module).to_owned()).or_default() += 1;
        }
    }

    fn find_partners(&mut self) {
        if self.peft_type != "LORA" {
            return;
        }
        let here: BTreeSet<&str> = self.keys.iter().map(String::as_str).collect();
        for key in &self.keys {
            let pairs = [("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")];
            for (a, b) in pairs.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]) {
                if let Some(start) = key.strip_suffix(a) {
                    let partner = format!("{start}{b}");
                    if !here.contains(partner.as_str()) {
                        self.missing_partners.push(partner);
                    }
                }
            }
        }
        self.missing_partners.sort();
    }

    pub(super) fn text(&self, field: &str) -> Option<String> {
        self.config.get(field).and_then(Value::as_str).filter(|it| !it.is_empty()).map(str::to_owned)
    }

    pub(super) fn is_on(&self, field: &str) -> bool {
        self.config.get(field).is_some_and(|it| !is_off(it))
    }

    pub(super) fn is_lora(&self) -> bool {
        self.peft_type == "LORA"
    }

    /// Whether nothing has moved: of every pair one factor is zero.
    pub(super) fn is_untrained(&self) -> bool {
        let halves = |role: fn(Role) -> bool, keys: &[String]| -> BTreeSet<String> {
            keys.iter().map(|key| split(key)).filter(|it| role(it.1)).map(|it| it.0.to_owned()).collect()
        };
        let is_factor = |it| matches!(it, Role::A | Role::B | Role::EmbeddingA | Role::EmbeddingB);
        let all = halves(is_factor, &self.keys);
        self.is_lora() && !all.is_empty() && halves(is_factor, &self.zero) == all
    }

    pub(super) fn keys_of(&self, roles: &[Role]) -> Vec<&str> {
        self.keys.iter().map(String::as_str).filter(|key| roles.contains(&split(key).1)).collect()
    }

    pub(super) fn largest_rank(&self) -> usize {
        self.ranks.keys().copied().chain(self.rank).max().unwrap_or(0)
    }

    /// What is wrong with `r` and `rank_pattern`, if tensors have ranks that neither gives.
    pub(super) fn contradicting_rank(&self) -> Option<String> {
        let rank = self.rank.filter(|_| self.is_lora())?;
        let patterns = self.config.get("rank_pattern").and_then(Value::as_object).into_iter().flatten();
        let patterns: Vec<u64> = patterns.filter_map(|(_, it)| it.as_u64()).collect();
        let given = |it: usize| it == rank || patterns.contains(&(it as u64));
        let odd: Vec<usize> = self.ranks.keys().copied().filter(|it| !given(*it)).collect();
        let also = if patterns.is_empty() { String::new() } else { format!(" and rank_pattern {patterns:?}") };
        (!odd.is_empty()).then(|| format!("the configuration says r={rank}{also}, but tensors have rank {odd:?}"))
    }

    pub(super) fn warnings(&self, folder: &AdapterFolder, methods: &MethodRegistry) -> Vec<String> {
        let mut list = Vec::new();
        if !methods.names().any(|it| it == self.peft_type) {
            let known: Vec<&str> = methods.names().collect();
            let known = known.join(", ");
            list.push(format!("this build does not know peft_type {}, only {known}: use PEFT for it", self.peft_type));
        } else if let Err(error) = methods.parse(folder.config.clone()) {
            list.push(format!("this build refuses the configuration: {error}"));
        }
        if !self.not_finite.is_empty() {
            let keys = shorten(&self.not_finite);
            list.push(format!(
                "NaN or infinity in {keys}: the training diverged; train again with a smaller learning rate"
            ));
        }
        if self.is_untrained() {
            let factor = "every lora_B is zero".to_owned();
            list.push(format!("{factor}, so the adapter changes nothing: it was never trained, or saved too early"));
        }
        // A bias may well be zero, but a factor that is adds nothing.
        let idle: Vec<&String> =
            self.zero.iter().filter(|key| matches!(split(key).1, Role::B | Role::EmbeddingA)).collect();
        if !self.is_untrained() && !idle.is_empty() {
            list.push(format!("only zeros in {}: these layers were not trained", shorten(&idle)));
        }
        if !self.missing_partners.is_empty() {
            let keys = shorten(&self.missing_partners);
            list.push(format!(
                "half of a pair is missing: {keys}; the file is damaged or was cut: save the adapter again"
            ));
        }
        if !self.unreadable.is_empty() {
            let keys = shorten(&self.unreadable);
            list.push(format!("element types that this build cannot read in {keys}; save them as F32, F16 or BF16"));
        }
        if let Some(what) = self.contradicting_rank() {
            list.push(format!("{what}: correct `r`"));
        }
        list
    }
}
