//! Which programs read a folder, and why not.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::facts::{Facts, Role, leaf, split};
use super::inspection::{Outcome, Reason, Verdict, shorten};

/// `peft_type`s of the reference.
const REFERENCE_TYPES: &str = " PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING LORA ADALORA ADAMSS BOFT \
    ADAPTION_PROMPT IA3 BEFT LILY LOHA LOKR OFT POLY LN_TUNING VERA FROD PVERA FOURIERFT GLORA XLORA HRA VBLORA UNILORA \
    CPT MISS RANDLORA ROAD TRAINABLE_TOKENS HIRA SHIRA C3A WAVEFT OSF DELORA GRALORA CARTRIDGE TINYLORA PSOFT PEANUT \
    SHADOW SUPERTUNING DEFT ";
const TASK_TYPES: [&str; 6] =
    ["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"];

const MERGE: &str = "merge the adapter into the base and give it the merged model";
/// What the keys of all its tensors start with, also of those that no layer has, such as VeRA's projections.
const SHARED_PREFIX: &str = "base_model.";
const REWRITE: &str = "write it again under its plain keys: peft combine --model BASE --adapter DIR --output NEW";
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
        let odd = self.wrapped + self.named + self.of_another;
        judge.refuses(
            self.is_lora() && odd > 0,
            format!("{odd} tensors whose keys name an adapter or a wrapper"),
            REWRITE,
        );
        (judge, self.is_lora())
    }

    /// A start that moved the base: whoever adds the factors to the original base gets other numbers.
    pub(super) fn moved_base(&self) -> Option<&str> {
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

    /// Fields that say when the factors act, or on which layers: a program that reads the factors alone lets them act always,
    /// and has no layers for the rest.
    fn ignores_what_changes_the_forward(&self, judge: &mut Judge) {
        let waits = "alora_invocation_tokens: the adapter acts on every token";
        judge.ignores(self.flags.alora_invocation_tokens, waits, RETRAIN_PLAIN);
        let deep = "layer_replication: the base runs each layer once";
        judge.ignores(self.is_on("layer_replication"), deep, MERGE);
    }

    fn missing_fields(&self, fields: &[&str]) -> Vec<String> {
        let absent = fields.iter().filter(|it| self.config.get(**it).is_none_or(Value::is_null));
        absent.map(|it| (*it).to_owned()).collect()
    }

    pub(super) fn peft(&self) -> Verdict {
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
        for reason in &self.not_in_reference {
            judge.refuses(true, reason.trim_start_matches("PEFT has "), "train another method, or other layers");
        }
        // It looks for names and says nothing of those that it does not find.
        let is_weight_method = self.keys.iter().any(|it| !matches!(split(it).1, Role::Whole | Role::BaseLayer));
        let foreign = self.keys.iter().filter(|it| is_weight_method && !it.starts_with(SHARED_PREFIX)).count();
        for (count, what, next) in [
            (self.wrapped, "with the names of torch's wrappers in their keys", REWRITE),
            (
                self.of_another,
                "with the name of another adapter in their keys",
                "take the name out of the keys: `….lora_A.weight`",
            ),
            (foreign, "without the prefix of its keys", "rename the tensors to start with `base_model.model.`"),
        ] {
            let effect = if count == self.keys.len() { Outcome::LoadsNothing } else { Outcome::LoadsButIgnores };
            judge.add(effect, count > 0, format!("{count} tensors {what}"), next);
        }
        let magnitudes = !self.keys_of(&[Role::Magnitude]).is_empty();
        let next = "correct `use_dora` in adapter_config.json";
        judge.ignores(self.flags.use_dora && !magnitudes, "use_dora without magnitudes, which it starts anew", next);
        judge.ignores(!self.flags.use_dora && magnitudes, "magnitudes, which use_dora=false leaves out", next);
        let partners = format!("missing {}, which it starts anew", shorten(&self.missing_partners));
        judge.ignores(!self.missing_partners.is_empty(), partners, "save the adapter again");
        judge.verdict()
    }

    /// A program with a form of its own, which `peft export` writes.
    pub(super) fn own_form(&self, consumer: &'static str, format: &str) -> Verdict {
        let mut judge = Judge::new(consumer);
        let extra = self.keys_of(&[Role::EmbeddingA, Role::Whole, Role::BiasOfB]);
        let next = if !self.is_lora() || self.moved_base().is_some() {
            format!("peft export --format {format} --rank R --model DIR converts it to LoRA and writes that")
        } else if extra.is_empty() {
            format!("peft export --format {format} writes it")
        } else {
            MERGE.to_owned()
        };
        judge.refuses(true, "folders of PEFT, for it has a form of its own", &next);
        judge.verdict()
    }

    pub(super) fn vllm(&self) -> Verdict {
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
        self.ignores_what_changes_the_forward(&mut judge);
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

    pub(super) fn llama_cpp(&self) -> Verdict {
        let (mut judge, is_lora) = self.lora_judge("llama.cpp");
        if !is_lora {
            return judge.verdict();
        }
        judge.refuses(self.alpha.is_none(), "lora_alpha not set", "add it to adapter_config.json");
        judge.refuses(self.is_on("layer_replication"), "layer_replication: layers that the base does not have", MERGE);
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

    pub(super) fn lorax(&self) -> Verdict {
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
        self.ignores_what_changes_the_forward(&mut judge);
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

    pub(super) fn mistral_rs(&self) -> Verdict {
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

    pub(super) fn ollama(&self) -> Verdict {
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
