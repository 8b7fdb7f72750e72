//! What an adapter folder holds, whether it fits a base model, and which other programs can read it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use peft_core::state::KEY_PREFIX;
use peft_core::{
    AdapterFolder, Describe, LoadReport, PeftError, PeftModel, Plan, Result, SiteKind, Sites, is_off, thousands,
};
use peft_models::auto::{
    AutoCausalLm, AutoFeatureExtractor, AutoQuestionAnswerer, AutoSeq2SeqLm, AutoSequenceClassifier,
    AutoTokenClassifier,
};
use peft_models::config::RawConfig;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::methods;

/// What [`inspect`] found. Plain data: serialise it, or print it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The folder.
    pub path: PathBuf,
    /// `peft_type` of the configuration.
    pub peft_type: String,
    /// Whether this build can compute it.
    pub known: bool,
    /// `task_type` of the configuration.
    pub task_type: Option<String>,
    /// `base_model_name_or_path` of the configuration.
    pub base_model_name_or_path: Option<String>,
    /// Rank of the configuration.
    pub rank: Option<usize>,
    /// Ranks that the tensors have, with the number of layers that have them.
    pub ranks: BTreeMap<usize, usize>,
    /// `lora_alpha` of the configuration.
    pub alpha: Option<f64>,
    /// Factor of the update where no pattern says otherwise.
    pub scale: Option<f64>,
    /// What the configuration switches on beside the common case.
    pub flags: Flags,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of elements of all tensors.
    pub parameters: usize,
    /// Size of all tensors in the file.
    pub bytes: usize,
    /// Element types, with the number of tensors that have them.
    pub dtypes: BTreeMap<String, usize>,
    /// Last names of the adapted layers, with their numbers.
    pub layers: BTreeMap<String, usize>,
    /// Tensors that belong to no adapted layer: saved modules, biases, copies of the base.
    pub whole: Vec<String>,
    /// Tensors of zeros only.
    pub zero: Vec<String>,
    /// Tensors with NaN or infinity.
    pub not_finite: Vec<String>,
    /// Tensors that should be there, as the other half of a pair is.
    pub missing_partners: Vec<String>,
    /// What is suspicious about the adapter, and what to do.
    pub warnings: Vec<String>,
    /// What other programs make of the folder.
    pub consumers: Vec<Verdict>,
    /// Whether the adapter fits the base model, if one was given.
    pub fit: Option<Fit>,
}

/// Switches of the configuration that change the numbers or the tensors.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Flags {
    /// Scale by `alpha / √r`.
    pub use_rslora: bool,
    /// Magnitude and direction are trained apart.
    pub use_dora: bool,
    /// `lora_B` has a bias.
    pub lora_bias: bool,
    /// Which biases are trained.
    pub bias: String,
    /// Modules that are saved whole.
    pub modules_to_save: Vec<String>,
    /// `init_lora_weights`, unless it is `true`.
    pub init: Option<String>,
    /// Some layers have a rank of their own.
    pub rank_pattern: bool,
    /// Some layers have an alpha of their own.
    pub alpha_pattern: bool,
}

/// What a program does with the folder.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// The program.
    pub consumer: &'static str,
    /// The worst of the reasons' effects.
    pub outcome: Outcome,
    /// Why, worst first.
    pub reasons: Vec<Reason>,
}

/// How well a program reads a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It reads it.
    Loads,
    /// It reads it, but leaves something out: the numbers differ.
    LoadsButIgnores,
    /// It does not read it.
    Refuses,
}

/// One thing that a program needs, ignores or refuses.
#[derive(Debug, Clone, Serialize)]
pub struct Reason {
    /// What it leads to; [`Outcome::Loads`] is a hint.
    pub effect: Outcome,
    /// The thing in the folder.
    pub what: String,
    /// What to do about it.
    pub next: String,
}

/// Whether an adapter fits a base model.
#[derive(Debug, Clone, Serialize)]
pub struct Fit {
    /// The folder of the base model.
    pub base: PathBuf,
    /// Whether it does; nothing if it cannot be told.
    pub fits: Option<bool>,
    /// Why not.
    pub report: String,
}

/// Looks into an adapter folder of any type, known to this build or not. Nothing is computed and no base weight is read.
///
/// # Errors
/// If the folder or the base's `config.json` cannot be read. An adapter that does not fit its base is no error.
pub fn inspect(folder: &Path, base: Option<&Path>) -> Result<Inspection> {
    let opened = AdapterFolder::open(folder)?;
    let base_config = base.map(RawConfig::read).transpose()?;
    let mut facts = Facts::read(&opened)?;
    facts.base_type = base_config.as_ref().and_then(|it| it.model_type().ok().map(str::to_owned));
    facts.base_is_tied = base_config.as_ref().map(is_tied);
    let fit = base.zip(base_config).map(|(base, raw)| fit(&opened, base, raw));
    let consumers =
        vec![facts.peft(), facts.vllm(), facts.llama_cpp(), facts.lorax(), facts.mistral_rs(), facts.ollama()];
    let warnings = facts.warnings(&opened);
    let peft_type = facts.peft_type.clone();
    Ok(Inspection {
        path: folder.to_path_buf(),
        known: methods().names().any(|it| it == peft_type),
        peft_type,
        task_type: facts.text("task_type"),
        base_model_name_or_path: facts.text("base_model_name_or_path"),
        rank: facts.rank,
        ranks: facts.ranks,
        alpha: facts.alpha,
        scale: facts.rank.zip(facts.alpha).filter(|(rank, _)| *rank > 0).map(|(rank, alpha)| {
            let rank = rank as f64;
            alpha / if facts.flags.use_rslora { rank.sqrt() } else { rank }
        }),
        flags: facts.flags,
        tensors: facts.keys.len(),
        parameters: facts.parameters,
        bytes: facts.bytes,
        dtypes: facts.dtypes,
        layers: facts.layers,
        whole: facts.whole,
        zero: facts.zero,
        not_finite: facts.not_finite,
        missing_partners: facts.missing_partners,
        warnings,
        consumers,
        fit,
    })
}

/// What a tensor is to its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
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

/// Starts of the names that methods give to their tensors.
const METHOD_TENSORS: [&str; 20] = [
    "lora_",
    "ia3_",
    "hada_",
    "lokr_",
    "oft_",
    "boft_",
    "vera_",
    "vblora_",
    "fourierft_",
    "hra_",
    "miss_",
    "bone_",
    "randlora_",
    "road_",
    "shira_",
    "c3a_",
    "waveft_",
    "delora_",
    "gralora_",
    "trainable_tokens_",
];

fn split(key: &str) -> (&str, Role) {
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
        if at > 0 && METHOD_TENSORS.iter().any(|it| segment.starts_with(it)) {
            return (&path[..at - 1], Role::Foreign);
        }
        at += segment.len() + 1;
    }
    (path.rsplit_once('.').map_or(path, |(module, _)| module), Role::Whole)
}

fn leaf(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// Everything that the verdicts are made of.
#[derive(Debug)]
struct Facts {
    config: Map<String, Value>,
    format: Option<String>,
    peft_type: String,
    rank: Option<usize>,
    alpha: Option<f64>,
    flags: Flags,
    keys: Vec<String>,
    ranks: BTreeMap<usize, usize>,
    parameters: usize,
    bytes: usize,
    dtypes: BTreeMap<String, usize>,
    layers: BTreeMap<String, usize>,
    adapted: BTreeSet<String>,
    whole: Vec<String>,
    zero: Vec<String>,
    not_finite: Vec<String>,
    unreadable: Vec<String>,
    missing_partners: Vec<String>,
    base_type: Option<String>,
    base_is_tied: Option<bool>,
}

impl Facts {
    fn read(folder: &AdapterFolder) -> Result<Self> {
        let config = folder.config.clone();
        let Some(peft_type) = config.get("peft_type").and_then(Value::as_str).map(str::to_owned) else {
            return Err(PeftError::config("peft_type", "is missing: this is no adapter_config.json"));
        };
        let on = |field: &str| config.get(field).is_some_and(|it| !is_off(it));
        let bias = config.get("bias").and_then(Value::as_str).unwrap_or("none");
        let names = config.get("modules_to_save").and_then(Value::as_array).into_iter().flatten();
        let flags = Flags {
            use_rslora: on("use_rslora"),
            use_dora: on("use_dora"),
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
            base_type: None,
            base_is_tied: None,
        };
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

    fn text(&self, field: &str) -> Option<String> {
        self.config.get(field).and_then(Value::as_str).filter(|it| !it.is_empty()).map(str::to_owned)
    }

    fn is_on(&self, field: &str) -> bool {
        self.config.get(field).is_some_and(|it| !is_off(it))
    }

    fn is_lora(&self) -> bool {
        self.peft_type == "LORA"
    }

    /// Whether nothing has moved: of every pair one factor is zero.
    fn is_untrained(&self) -> bool {
        let halves = |role: fn(Role) -> bool, keys: &[String]| -> BTreeSet<String> {
            keys.iter().map(|key| split(key)).filter(|it| role(it.1)).map(|it| it.0.to_owned()).collect()
        };
        let is_factor = |it| matches!(it, Role::A | Role::B | Role::EmbeddingA | Role::EmbeddingB);
        let all = halves(is_factor, &self.keys);
        self.is_lora() && !all.is_empty() && halves(is_factor, &self.zero) == all
    }

    fn keys_of(&self, roles: &[Role]) -> Vec<&str> {
        self.keys.iter().map(String::as_str).filter(|key| roles.contains(&split(key).1)).collect()
    }

    fn largest_rank(&self) -> usize {
        self.ranks.keys().copied().chain(self.rank).max().unwrap_or(0)
    }

    /// What is wrong with `r` and `rank_pattern`, if tensors have ranks that neither gives.
    fn contradicting_rank(&self) -> Option<String> {
        let rank = self.rank.filter(|_| self.is_lora())?;
        let patterns = self.config.get("rank_pattern").and_then(Value::as_object).into_iter().flatten();
        let patterns: Vec<u64> = patterns.filter_map(|(_, it)| it.as_u64()).collect();
        let given = |it: usize| it == rank || patterns.contains(&(it as u64));
        let odd: Vec<usize> = self.ranks.keys().copied().filter(|it| !given(*it)).collect();
        let also = if patterns.is_empty() { String::new() } else { format!(" and rank_pattern {patterns:?}") };
        (!odd.is_empty()).then(|| format!("the configuration says r={rank}{also}, but tensors have rank {odd:?}"))
    }

    fn warnings(&self, folder: &AdapterFolder) -> Vec<String> {
        let mut list = Vec::new();
        let methods = methods();
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

fn shorten(keys: &[impl AsRef<str>]) -> String {
    let shown: Vec<&str> = keys.iter().take(3).map(AsRef::as_ref).collect();
    let more = keys.len() - shown.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// `peft_type`s of the reference.
const REFERENCE_TYPES: &str = " PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING LORA ADALORA ADAMSS BOFT \
    ADAPTION_PROMPT IA3 BEFT LILY LOHA LOKR OFT POLY LN_TUNING VERA FROD PVERA FOURIERFT GLORA XLORA HRA VBLORA UNILORA \
    CPT MISS RANDLORA ROAD TRAINABLE_TOKENS HIRA SHIRA C3A WAVEFT OSF DELORA GRALORA CARTRIDGE TINYLORA PSOFT PEANUT \
    SHADOW SUPERTUNING DEFT ";
const TASK_TYPES: [&str; 6] =
    ["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"];

const MERGE: &str = "merge the adapter into the base and give it the merged model";
const ONLY_LORA: &str = "it reads LoRA only: merge the adapter into the base, or train LoRA";
const RETRAIN_PLAIN: &str = "merge the adapter into the base, or train again without it";
const CONVERT_START: &str = "convert the adapter to plain LoRA against the original base";
const FOLD_SCALE: &str = "fold it into lora_alpha: alpha·√r, with use_rslora false";
const FOLD_PATTERNS: &str = "pad all layers to one rank and fold their scales into lora_B";

/// Collects reasons for one program.
struct Judge {
    consumer: &'static str,
    reasons: Vec<Reason>,
}

impl Judge {
    fn new(consumer: &'static str) -> Self {
        Self { consumer, reasons: Vec::new() }
    }

    fn add(&mut self, effect: Outcome, when: bool, what: impl Into<String>, next: &str) {
        if when {
            self.reasons.push(Reason { effect, what: what.into(), next: next.to_owned() });
        }
    }

    fn refuses(&mut self, when: bool, what: impl Into<String>, next: &str) {
        self.add(Outcome::Refuses, when, what, next);
    }

    fn ignores(&mut self, when: bool, what: impl Into<String>, next: &str) {
        self.add(Outcome::LoadsButIgnores, when, what, next);
    }

    fn verdict(mut self) -> Verdict {
        self.reasons.sort_by_key(|it| std::cmp::Reverse(it.effect));
        let outcome = self.reasons.first().map_or(Outcome::Loads, |it| it.effect);
        Verdict { consumer: self.consumer, outcome, reasons: self.reasons }
    }
}

impl Facts {
    /// A judge for a program that reads LoRA only; nothing more is to be said of other types.
    fn lora_judge(&self, consumer: &'static str) -> (Judge, bool) {
        let mut judge = Judge::new(consumer);
        judge.refuses(!self.is_lora(), format!("peft_type {}", self.peft_type), ONLY_LORA);
        (judge, self.is_lora())
    }

    /// A start that moved the base: whoever adds the factors to the original base gets other numbers.
    fn moved_base(&self) -> Option<&str> {
        let name = self.flags.init.as_deref()?;
        let lower = name.to_lowercase();
        let moves = ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|it| lower.starts_with(it));
        moves.then_some(name)
    }

    fn ignores_start(&self, judge: &mut Judge) {
        if let Some(start) = self.moved_base() {
            judge.ignores(true, format!("init_lora_weights {start}, which moved the base"), CONVERT_START);
        }
    }

    fn missing_fields(&self, fields: &[&str]) -> Vec<String> {
        let absent = fields.iter().filter(|it| self.config.get(**it).is_none_or(Value::is_null));
        absent.map(|it| (*it).to_owned()).collect()
    }

    fn peft(&self) -> Verdict {
        let mut judge = Judge::new("PEFT");
        let known = REFERENCE_TYPES.contains(&format!(" {} ", self.peft_type));
        judge.refuses(
            !known,
            format!("peft_type {}", self.peft_type),
            "correct `peft_type`, or use the fork that wrote it",
        );
        if let Some(task) = self.text("task_type").filter(|it| !TASK_TYPES.contains(&it.as_str())) {
            judge.refuses(true, format!("task_type {task}"), "set `task_type` to null or to a task that it knows");
        }
        if let Some(format) = self.format.as_deref().filter(|it| !["pt", "tf", "flax", "mlx"].contains(it)) {
            let next = "write the file again with the metadata format=pt";
            judge.refuses(true, format!("the safetensors metadata format={format} (through transformers)"), next);
        }
        if let Some(what) = self.contradicting_rank() {
            judge.refuses(true, what, "correct `r` in adapter_config.json");
        }
        let foreign = self.keys.iter().filter(|it| !it.starts_with(KEY_PREFIX)).count();
        let next = "rename the tensors to start with `base_model.model.`";
        judge.ignores(self.is_lora() && foreign > 0, format!("{foreign} tensors without the prefix of its keys"), next);
        let magnitudes = !self.keys_of(&[Role::Magnitude]).is_empty();
        let next = "correct `use_dora` in adapter_config.json";
        judge.ignores(self.flags.use_dora && !magnitudes, "use_dora without magnitudes, which it starts anew", next);
        judge.ignores(!self.flags.use_dora && magnitudes, "magnitudes, which use_dora=false leaves out", next);
        let partners = format!("missing {}, which it starts anew", shorten(&self.missing_partners));
        judge.ignores(!self.missing_partners.is_empty(), partners, "save the adapter again");
        judge.verdict()
    }

    fn vllm(&self) -> Verdict {
        const RANK: usize = 16;
        let (mut judge, is_lora) = self.lora_judge("vLLM");
        if !is_lora {
            return judge.verdict();
        }
        let absent = self.missing_fields(&["r", "lora_alpha", "target_modules"]);
        judge.refuses(!absent.is_empty(), format!("{} not set", absent.join(", ")), "add it to adapter_config.json");
        judge.refuses(self.flags.use_dora, "use_dora", RETRAIN_PLAIN);
        let saved = self.flags.modules_to_save.join(", ");
        judge.refuses(!saved.is_empty(), format!("modules_to_save {saved}"), RETRAIN_PLAIN);
        judge.refuses(self.flags.bias != "none", format!("bias {}", self.flags.bias), RETRAIN_PLAIN);
        judge.refuses(self.flags.lora_bias, "lora_bias", RETRAIN_PLAIN);
        let rank = self.largest_rank();
        let next = format!("start it with --max-lora-rank {}", rank.next_power_of_two());
        judge.refuses(rank > RANK, format!("rank {rank}, more than its default of {RANK}"), &next);
        judge.ignores(self.flags.rank_pattern, "rank_pattern", FOLD_PATTERNS);
        judge.ignores(self.flags.alpha_pattern, "alpha_pattern", FOLD_PATTERNS);
        let copies = self.keys_of(&[Role::BaseLayer]);
        judge.ignores(
            !copies.is_empty() && self.flags.bias == "none",
            format!("copies of base weights: {}", shorten(&copies)),
            "nothing, if the base has them unchanged",
        );
        self.ignores_start(&mut judge);
        judge.verdict()
    }

    /// Why tensors beside the pairs are no good to llama.cpp.
    fn llama_tensors(&self, judge: &mut Judge) {
        judge.refuses(self.flags.use_dora, "use_dora", RETRAIN_PLAIN);
        judge.refuses(self.flags.lora_bias, "lora_bias", RETRAIN_PLAIN);
        let is_head = |key: &str| ["lm_head", "embed_tokens", "wte"].contains(&leaf(split(key).0));
        let whole = self.keys_of(&[Role::Whole]);
        let heads: Vec<&str> = whole.iter().copied().filter(|it| is_head(it)).collect();
        let next = "train the head or the embedding as a LoRA target, or merge the adapter into the base";
        judge.refuses(!heads.is_empty(), format!("a whole head or embedding: {}", shorten(&heads)), next);
        let is_norm = |key: &str| key.contains("_layernorm") || key.contains(".norm");
        let rest: Vec<&str> = whole.iter().copied().filter(|it| !is_head(it) && !is_norm(it)).collect();
        judge.refuses(!rest.is_empty(), format!("tensors that are no LoRA: {}", shorten(&rest)), MERGE);
        let biases = self.keys_of(&[Role::BaseLayer]).into_iter().filter(|it| !it.ends_with(".weight"));
        let biases: Vec<&str> = biases.collect();
        judge.refuses(!biases.is_empty(), format!("trained biases: {}", shorten(&biases)), MERGE);
        let partners = format!("missing {}", shorten(&self.missing_partners));
        judge.refuses(!self.missing_partners.is_empty(), partners, "save the adapter again");
        judge.ignores(self.flags.use_rslora, "use_rslora", FOLD_SCALE);
        judge.ignores(self.flags.alpha_pattern, "alpha_pattern", FOLD_PATTERNS);
        self.ignores_start(judge);
    }

    fn llama_cpp(&self) -> Verdict {
        let (mut judge, is_lora) = self.lora_judge("llama.cpp");
        if !is_lora {
            return judge.verdict();
        }
        judge.refuses(self.alpha.is_none(), "lora_alpha not set", "add it to adapter_config.json");
        self.llama_tensors(&mut judge);
        let adapts_head = self.adapted.iter().any(|it| leaf(it) == "lm_head");
        let next = "leave lm_head out of the targets, or merge the adapter into the base";
        match self.base_is_tied {
            Some(tied) => judge.refuses(adapts_head && tied, "LoRA on an lm_head that is the embedding table", next),
            None => judge.add(
                Outcome::Loads,
                adapts_head,
                "LoRA on lm_head works only if it is not the embedding table",
                next,
            ),
        }
        let nameless = self.text("base_model_name_or_path").is_none();
        judge.add(
            Outcome::Loads,
            nameless,
            "base_model_name_or_path not set",
            "give convert_lora_to_gguf.py --base DIR",
        );
        judge.verdict()
    }

    fn lorax(&self) -> Verdict {
        let (mut judge, is_lora) = self.lora_judge("TGI/LoRAX");
        if !is_lora {
            return judge.verdict();
        }
        let partial = self.partial_layers();
        let next = "adapt these layers everywhere, or add zero tensors for the others";
        judge.refuses(!partial.is_empty(), format!("only some layers have {}", partial.join(", ")), next);
        let partners = format!("missing {}", shorten(&self.missing_partners));
        judge.refuses(!self.missing_partners.is_empty(), partners, "save the adapter again");
        judge.ignores(self.flags.use_dora, "use_dora", RETRAIN_PLAIN);
        judge.ignores(self.flags.rank_pattern, "rank_pattern", FOLD_PATTERNS);
        judge.ignores(self.flags.alpha_pattern, "alpha_pattern", FOLD_PATTERNS);
        let unused = self.keys_of(&[Role::Whole, Role::BaseLayer, Role::BiasOfB, Role::EmbeddingA, Role::EmbeddingB]);
        judge.ignores(!unused.is_empty(), format!("tensors that are no linear LoRA: {}", shorten(&unused)), MERGE);
        self.ignores_start(&mut judge);
        judge.verdict()
    }

    /// Layer types that are adapted in some numbered layers only.
    fn partial_layers(&self) -> Vec<String> {
        let mut numbers: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for module in &self.adapted {
            let number = module.split('.').find_map(|it| it.parse::<usize>().ok());
            if let Some(number) = number {
                let kind = module.split('.').filter(|it| it.parse::<usize>().is_err()).collect::<Vec<_>>();
                numbers.entry(kind.join(".")).or_default().insert(number);
            }
        }
        // Without the base the last adapted layer is the last that can be known of.
        let count = numbers.values().flatten().max().map_or(0, |it| it + 1);
        let partial = numbers.iter().filter(|(_, it)| it.len() < count);
        let mut names: Vec<String> = partial.map(|(kind, _)| leaf(kind).to_owned()).collect();
        names.dedup();
        names
    }

    fn mistral_rs(&self) -> Verdict {
        const RANK: usize = 256;
        const OFF: [(&str, &str); 8] = [
            ("alora_invocation_tokens", "aLoRA"),
            ("use_qalora", "QALoRA"),
            ("use_bdlora", "BD-LoRA"),
            ("arrow_config", "Arrow"),
            ("monteclora_config", "MonteCLoRA"),
            ("layer_replication", "layer replication"),
            ("megatron_config", "Megatron"),
            ("trainable_token_indices", "trainable tokens"),
        ];
        let (mut judge, is_lora) = self.lora_judge("mistral.rs");
        if !is_lora {
            return judge.verdict();
        }
        judge.refuses(self.flags.use_dora, "use_dora", RETRAIN_PLAIN);
        judge.refuses(self.flags.bias != "none", format!("bias {}", self.flags.bias), RETRAIN_PLAIN);
        judge.refuses(self.flags.lora_bias, "lora_bias", RETRAIN_PLAIN);
        let saved = self.flags.modules_to_save.join(", ");
        judge.refuses(!saved.is_empty(), format!("modules_to_save {saved}"), RETRAIN_PLAIN);
        for (field, name) in OFF {
            judge.refuses(self.is_on(field), format!("{field} ({name})"), RETRAIN_PLAIN);
        }
        judge.refuses(self.is_on("ensure_weight_tying"), "ensure_weight_tying", "set it to false and save again");
        if let Some(start) = self.moved_base() {
            judge.refuses(true, format!("init_lora_weights {start}"), CONVERT_START);
        }
        let rank = self.largest_rank();
        judge.refuses(
            rank > RANK,
            format!("rank {rank}, more than its default of {RANK}"),
            "raise its limit on the rank",
        );
        let partners = format!("missing {}", shorten(&self.missing_partners));
        judge.refuses(!self.missing_partners.is_empty(), partners, "save the adapter again");
        let saved_whole =
            if saved.is_empty() && self.flags.bias == "none" { &[Role::Whole, Role::BaseLayer][..] } else { &[] };
        let mut unread = self.keys_of(saved_whole);
        unread.extend(self.keys_of(&[Role::EmbeddingA, Role::EmbeddingB, Role::Foreign]));
        judge.refuses(!unread.is_empty(), format!("tensors that it does not consume: {}", shorten(&unread)), MERGE);
        let undeclared = self.undeclared();
        let next = "name them in target_modules";
        judge.refuses(!undeclared.is_empty(), format!("layers outside target_modules: {}", shorten(&undeclared)), next);
        judge.verdict()
    }

    /// Adapted layers that no entry of a list of targets names.
    fn undeclared(&self) -> Vec<&str> {
        let Some(Value::Array(targets)) = self.config.get("target_modules") else { return Vec::new() };
        let targets: Vec<&str> = targets.iter().filter_map(Value::as_str).collect();
        let is_named = |module: &str| targets.iter().any(|it| peft_core::is_suffix(module, it));
        self.adapted.iter().map(String::as_str).filter(|it| !is_named(it)).collect()
    }

    fn ollama(&self) -> Verdict {
        const KNOWN: &str = "it converts adapters of Llama and Gemma 2 only: merge the adapter into the base";
        let (mut judge, is_lora) = self.lora_judge("Ollama");
        if !is_lora {
            return judge.verdict();
        }
        let llama_keys = self.adapted.iter().all(|it| it.starts_with("model.") || it == "lm_head" || !it.contains('.'));
        let hint = "Ollama converts adapters of Llama and Gemma 2 only";
        match self.base_type.as_deref() {
            Some("llama" | "gemma2") => {}
            Some(other) => judge.refuses(true, format!("model_type {other}"), KNOWN),
            None if !llama_keys => judge.refuses(true, "layers that neither Llama nor Gemma 2 has", KNOWN),
            None => judge.add(Outcome::Loads, true, hint, "make sure that the base is one of them"),
        }
        match self.alpha {
            None => judge.refuses(true, "lora_alpha not set", "add it to adapter_config.json"),
            Some(alpha) => {
                let whole = alpha.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&alpha);
                let written = self.config.get("lora_alpha").is_some_and(Value::is_u64);
                let next =
                    if whole { "write it without a decimal point" } else { "scale lora_B and set a whole lora_alpha" };
                judge.refuses(
                    !whole || !written,
                    format!("lora_alpha {}, no whole number", self.config["lora_alpha"]),
                    next,
                );
            }
        }
        self.llama_tensors(&mut judge);
        judge.verdict()
    }
}

fn is_tied(raw: &RawConfig) -> bool {
    // Architectures differ in what an absent field means; of those with a field that is often left out, GPT-2 is tied.
    let default = raw.model_type().is_ok_and(|it| it == "gpt2");
    raw.json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(default)
}

/// Compares an adapter with a base of which only `config.json` is read.
fn fit(folder: &AdapterFolder, base: &Path, mut raw: RawConfig) -> Fit {
    let heads = ["score.weight", "classifier.weight", "classifier.out_proj.weight"];
    // The head beside a prompt has the shorter prefix.
    let keys = heads.iter().flat_map(|it| [KEY_PREFIX, "base_model."].map(|prefix| format!("{prefix}{it}")));
    let labels = keys.into_iter().find_map(|key| folder.tensors.shape(&key).map(<[usize]>::to_vec));
    if let Some(labels) = labels.and_then(|shape| shape.first().copied()) {
        raw.json.insert("num_labels".into(), json!(labels));
    }
    if crate::forward::names_head(&folder.config) {
        // Such an adapter is applied to a model whose head is its own.
        raw.json.insert("tie_word_embeddings".into(), json!(false));
    }
    let device = crate::device::devices().last().and_then(|it| crate::device::device(it).ok()).unwrap_or_default();
    let causal = || check(AutoCausalLm::from_config(&raw, &device), folder, &device);
    let classifier = || check(AutoSequenceClassifier::from_config(&raw, &device), folder, &device);
    let features = || check(AutoFeatureExtractor::from_config(&raw, &device), folder, &device);
    let told = |result: Result<()>| match result {
        Ok(()) => (Some(true), String::new()),
        Err(error @ PeftError::Unsupported { .. }) => (None, error.to_string()),
        Err(error) => (Some(false), error.to_string()),
    };
    let (fits, report) = match folder.config.get("task_type").and_then(Value::as_str) {
        Some("CAUSAL_LM") => told(causal()),
        Some("SEQ_CLS") => told(classifier()),
        Some("FEATURE_EXTRACTION") => told(features()),
        Some("TOKEN_CLS") => told(check(AutoTokenClassifier::from_config(&raw, &device), folder, &device)),
        Some("QUESTION_ANS") => told(check(AutoQuestionAnswerer::from_config(&raw, &device), folder, &device)),
        Some("SEQ_2_SEQ_LM") => told(check(AutoSeq2SeqLm::from_config(&raw, &device), folder, &device)),
        Some(other) => (None, format!("models for task_type {other} are not there in this version")),
        None => {
            // The first answer is as good as any if all are bad.
            let first = told(causal());
            let others = || [told(classifier()), told(features())].into_iter().find(|it| it.0 == Some(true));
            if first.0 == Some(true) { first } else { others().unwrap_or(first) }
        }
    };
    Fit { base: base.to_path_buf(), fits, report }
}

fn check<M: Module + Describe>(model: Result<M>, folder: &AdapterFolder, device: &Device) -> Result<()> {
    let model = model?;
    let config = methods().parse(folder.config.clone())?;
    let sites = model.describe();
    if config.peft_type() != "LORA" {
        return PeftModel::with_sites(model, sites, device).load_adapter(
            &folder.path,
            peft_core::DEFAULT_ADAPTER,
            &methods(),
        );
    }
    let plan = config.plan(&sites)?;
    let mut report = compare(&plan, folder);
    report.unexpected.retain(|key| !is_copy(key, &sites, folder));
    if report.is_clean() {
        return Ok(());
    }
    Err(PeftError::DoesNotFit { what: format!("adapter {}", folder.path.display()), report })
}

/// Whether a tensor is one that the reference writes beside the adapter's own: loading passes over it.
fn is_copy(key: &str, sites: &Sites, folder: &AdapterFolder) -> bool {
    let Some(path) = key.strip_prefix(KEY_PREFIX) else { return false };
    let is_wrapped = path.contains(".modules_to_save.") || path.contains(".original_module.");
    let is_head = sites.heads.iter().any(|it| path == format!("{it}.weight"));
    let path = path.replace(".base_layer.", ".");
    match sites.get(&path) {
        Some(site) => folder.tensors.shape(key) == Some(&site.shape_on_disk()),
        None => is_wrapped || is_head,
    }
}

/// Compares the tensors that a LoRA plan leads to with those of a folder, without building any.
fn compare(plan: &Plan, folder: &AdapterFolder) -> LoadReport {
    let on = |field: &str| folder.config.get(field).is_some_and(|it| !is_off(it));
    let (dora, bias) = (on("use_dora"), on("lora_bias"));
    let mut wanted: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for row in &plan.rows {
        let (site, module) = (&row.site, format!("{KEY_PREFIX}{}", row.site.module));
        if row.label.ends_with(" rows") {
            let width = site.shape[1];
            let key = format!("{module}.token_adapter.trainable_tokens_delta");
            wanted.insert(key, vec![row.parameters / width, width]);
            continue;
        }
        if !row.label.starts_with("r=") {
            let wrapped = format!("{module}.base_layer.{}", site.param);
            let key =
                if folder.tensors.shape(&wrapped).is_some() { wrapped } else { format!("{KEY_PREFIX}{}", site.path()) };
            wanted.insert(key, site.shape_on_disk());
            continue;
        }
        let (d_in, d_out) = site.features();
        let is_table = site.kind == SiteKind::Embedding;
        let extra = if dora || (bias && !is_table) { d_out } else { 0 };
        let rank = (row.parameters - extra) / (d_in + d_out);
        let (mut a, mut b, mut magnitude) = (vec![rank, d_in], vec![d_out, rank], vec![d_out]);
        if site.kind == SiteKind::Conv {
            a = [&[rank], &site.shape[1..]].concat();
            let ones = vec![1; site.shape.len() - 2];
            b = [&[d_out, rank], &ones[..]].concat();
            magnitude = [&[1, d_out], &ones[..]].concat();
        }
        let (name_a, name_b) =
            if is_table { ("lora_embedding_A", "lora_embedding_B") } else { ("lora_A.weight", "lora_B.weight") };
        wanted.insert(format!("{module}.{name_a}"), a);
        wanted.insert(format!("{module}.{name_b}"), b);
        if dora {
            wanted.insert(format!("{module}.lora_magnitude_vector"), magnitude);
        }
        if bias && !is_table {
            wanted.insert(format!("{module}.lora_B.bias"), vec![d_out]);
        }
    }
    let mut report = LoadReport::default();
    for key in folder.tensors.keys() {
        let shape = folder.tensors.shape(&key).unwrap_or(&[]);
        match wanted.remove(&key) {
            None => report.unexpected.push(key),
            Some(model) if model != shape => report.misshapen.push((key, shape.to_vec(), model)),
            Some(_) => {}
        }
    }
    report.missing = wanted.into_keys().collect();
    report
}

fn counted<T: fmt::Display>(map: &BTreeMap<T, usize>) -> String {
    map.iter().map(|(name, count)| format!("{name} ×{count}")).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self.base_model_name_or_path.as_deref().unwrap_or("a base that it does not name");
        write!(f, "{} for {base}", self.peft_type)?;
        if let Some(task) = &self.task_type {
            write!(f, ", task {task}")?;
        }
        let mut line = Vec::new();
        line.extend(self.rank.map(|it| format!("r={it}")));
        line.extend(self.alpha.map(|it| format!("α={it}")));
        line.extend(self.scale.map(|it| format!("scale={it:.4}")));
        let flags = &self.flags;
        for (on, name) in [
            (flags.use_rslora, "rslora"),
            (flags.use_dora, "dora"),
            (flags.lora_bias, "lora_bias"),
            (flags.rank_pattern, "rank_pattern"),
            (flags.alpha_pattern, "alpha_pattern"),
        ] {
            line.extend(on.then(|| name.to_owned()));
        }
        line.extend((flags.bias != "none").then(|| format!("bias={}", flags.bias)));
        line.extend(flags.init.as_ref().map(|it| format!("init={it}")));
        if !line.is_empty() {
            write!(f, "\n  {}", line.join(" "))?;
        }
        if self.ranks.len() > 1 {
            write!(f, "\n  ranks: {}", counted(&self.ranks))?;
        }
        let (parameters, bytes) = (thousands(self.parameters), thousands(self.bytes));
        let dtypes = counted(&self.dtypes);
        write!(f, "\n  {} tensors, {parameters} parameters, {bytes} bytes, {dtypes}", self.tensors)?;
        if !self.layers.is_empty() {
            write!(f, "\n  adapted: {}", counted(&self.layers))?;
        }
        if !flags.modules_to_save.is_empty() {
            write!(f, "\n  modules_to_save: {}", flags.modules_to_save.join(", "))?;
        }
        if !self.whole.is_empty() {
            write!(f, "\n  saved whole: {}", shorten(&self.whole))?;
        }
        for warning in &self.warnings {
            write!(f, "\n  warning: {warning}")?;
        }
        if let Some(Fit { base, fits, report }) = &self.fit {
            let base = base.display();
            match fits {
                Some(true) => write!(f, "\n  fits {base}")?,
                Some(false) => write!(f, "\n  does not fit {base}: {}", report.replace('\n', "\n  "))?,
                None => write!(f, "\n  cannot tell whether it fits {base}: {report}")?,
            }
        }
        for Verdict { consumer, outcome, reasons } in &self.consumers {
            let outcome = match outcome {
                Outcome::Loads => "loads",
                Outcome::LoadsButIgnores => "loads, but ignores part of it",
                Outcome::Refuses => "refuses",
            };
            write!(f, "\n  {consumer:<12}{outcome}")?;
            for Reason { effect, what, next } in reasons {
                let verb = match effect {
                    Outcome::Loads => "note: ",
                    Outcome::LoadsButIgnores => "ignores ",
                    Outcome::Refuses => "refuses ",
                };
                write!(f, "\n    {verb}{what}: {next}")?;
            }
        }
        Ok(())
    }
}
