//! What of a base is quantised, and how: `quantization_config` of transformers.

use std::fmt;
use std::str::FromStr;

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::four_bit::FourBit;
use super::grouped::GroupedConfig;
use super::packed::QuantFormat;
use crate::error::{PeftError, Result};

/// How the linear layers of a base are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantConfig {
    /// The codes: `nf4`, `fp4` or `int8`.
    #[serde(with = "by_name")]
    pub format: QuantFormat,
    /// Whether the scales of blocks are quantised, too: `bnb_4bit_use_double_quant`.
    #[serde(default)]
    pub double_quant: bool,
    /// Modules that stay as they are, as names, ends of paths or regular expressions: `llm_int8_skip_modules`. `None`
    /// leaves out the heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_modules: Option<Vec<String>>,
}

impl QuantConfig {
    /// In a format, with the defaults of transformers.
    pub fn new(format: QuantFormat) -> Self {
        Self { format, double_quant: false, skip_modules: None }
    }

    /// With quantised scales, too.
    pub fn double_quant(self, double_quant: bool) -> Self {
        Self { double_quant, ..self }
    }

    /// Leaves modules as they are, and no others.
    pub fn skip_modules<S: Into<String>>(self, modules: impl IntoIterator<Item = S>) -> Self {
        Self { skip_modules: Some(modules.into_iter().map(Into::into).collect()), ..self }
    }

    /// Understands the `quantization_config` that bitsandbytes has in a `config.json`.
    ///
    /// # Errors
    /// If it says what is not computed here.
    fn from_json(config: &Map<String, Value>) -> Result<Self> {
        let is_on = |field: &str| config.get(field).and_then(Value::as_bool).unwrap_or(false);
        let [four, eight] = ["load_in_4bit", "load_in_8bit"].map(is_on);
        let format = match (four, eight) {
            (true, false) => match config.get("bnb_4bit_quant_type").and_then(Value::as_str) {
                // The default of transformers.
                None | Some("fp4") => QuantFormat::FourBit(FourBit::Fp4),
                Some("nf4") => QuantFormat::FourBit(FourBit::Nf4),
                Some(other) => {
                    return Err(PeftError::config("bnb_4bit_quant_type", format!("is `{other}`, expected nf4 or fp4")));
                }
            },
            (false, true) => QuantFormat::Int8,
            _ => {
                let reason = "says neither `load_in_4bit` nor `load_in_8bit`, or both";
                return Err(PeftError::config("quantization_config", reason));
            }
        };
        let storage = config.get("bnb_4bit_quant_storage").and_then(Value::as_str).unwrap_or("uint8");
        if storage != "uint8" {
            return Err(PeftError::config("bnb_4bit_quant_storage", format!("is `{storage}`, only uint8 is read")));
        }
        let skipped = match config.get("llm_int8_skip_modules") {
            None | Some(Value::Null) => None,
            Some(Value::Array(names)) => {
                Some(names.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>())
            }
            Some(other) => {
                let reason = format!("is {other}, expected a list of names");
                return Err(PeftError::config("llm_int8_skip_modules", reason));
            }
        };
        Ok(Self { format, double_quant: is_on("bnb_4bit_use_double_quant"), skip_modules: skipped })
    }

    /// `quantization_config`, as transformers writes it.
    pub fn to_json(&self) -> Value {
        let four = match self.format {
            QuantFormat::FourBit(kind) => Some(kind),
            QuantFormat::Int8 | QuantFormat::Grouped(_) => None,
        };
        json!({
            "quant_method": "bitsandbytes",
            "load_in_4bit": four.is_some(),
            "load_in_8bit": four.is_none(),
            "bnb_4bit_quant_type": if four == Some(FourBit::Nf4) { "nf4" } else { "fp4" },
            "bnb_4bit_use_double_quant": self.double_quant,
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_threshold": 6.0,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": self.skip_modules,
        })
    }

    /// Whether both give the same numbers, but for modules that stay as they are.
    pub fn is_like(&self, other: &Self) -> bool {
        self.format == other.format && self.double_quant == other.double_quant
    }

    /// Whether a module is left as it is. Source: `should_convert_module` of transformers 5.23.
    ///
    /// # Errors
    /// If a name is no regular expression.
    pub fn skips(&self, module: &str, is_head: bool) -> Result<bool> {
        let Some(names) = &self.skip_modules else { return Ok(is_head) };
        for name in names {
            if module.ends_with(name.as_str()) {
                return Ok(true);
            }
            let wrong = |error| PeftError::config("skip_modules", format!("has `{name}`, which is wrong: {error}"));
            let pattern =
                Regex::new(&format!(r"\A(?:{name})(?:(?<=\.)|(?=\.|\z))")).map_err(|it| wrong(it.to_string()))?;
            if pattern.is_match(module).map_err(|it| wrong(it.to_string()))? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// How a checkpoint keeps its linear layers, if not in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredQuant {
    /// As bitsandbytes does.
    BitsAndBytes(QuantConfig),
    /// In groups, as GPTQ and AWQ do.
    Grouped(GroupedConfig),
}

impl StoredQuant {
    /// Understands `quantization_config` of a `config.json`.
    ///
    /// # Errors
    /// If it is of another method, or says what is not computed here.
    pub fn from_json(config: &Map<String, Value>) -> Result<Self> {
        let is_on = |field: &str| config.get(field).and_then(Value::as_bool).unwrap_or(false);
        match config.get("quant_method").and_then(Value::as_str) {
            Some("bitsandbytes") => QuantConfig::from_json(config).map(Self::BitsAndBytes),
            None if is_on("load_in_4bit") || is_on("load_in_8bit") => {
                QuantConfig::from_json(config).map(Self::BitsAndBytes)
            }
            Some("gptq" | "awq") => GroupedConfig::from_json(config).map(Self::Grouped),
            other => {
                let method = other.map_or("no quant_method".to_owned(), |it| format!("the quant_method `{it}`"));
                let reason = "read are NF4, FP4 and int8 of bitsandbytes, GPTQ and AWQ; load the checkpoint that it was \
                              made from";
                Err(PeftError::config("quantization_config", format!("names {method}: {reason}")))
            }
        }
    }

    /// Whether matrices mean the same numbers as those that are quantised by a configuration when they are loaded.
    pub fn is_like(&self, config: &QuantConfig) -> bool {
        match self {
            Self::BitsAndBytes(own) => own.is_like(config),
            Self::Grouped(_) => false,
        }
    }
}

impl fmt::Display for StoredQuant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BitsAndBytes(config) => config.fmt(f),
            Self::Grouped(config) => config.fmt(f),
        }
    }
}

/// A format by its name.
mod by_name {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::quant::QuantFormat;

    pub(super) fn serialize<S: Serializer>(format: &QuantFormat, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(format)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<QuantFormat, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl FromStr for QuantFormat {
    type Err = PeftError;

    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::FourBit(FourBit::Nf4), Self::FourBit(FourBit::Fp4), Self::Int8];
        all.into_iter().find(|it| it.name() == name).ok_or_else(|| {
            PeftError::config("quantize", format!("is `{name}`, expected {}", all.map(Self::name).join(", ")))
        })
    }
}

impl fmt::Display for QuantFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for GroupedConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (method, bits) = (self.method().to_uppercase(), self.bits.bits());
        match self.group {
            Some(group) => write!(f, "{method} with {bits} bits in groups of {group}"),
            None => write!(f, "{method} with {bits} bits by rows"),
        }
    }
}

impl fmt::Display for QuantConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.format, if self.double_quant { " with quantised scales" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::grouped::{GroupBits, GroupLayout};

    fn stored(text: &str) -> std::result::Result<StoredQuant, String> {
        StoredQuant::from_json(&serde_json::from_str(text).unwrap()).map_err(|it| it.to_string())
    }

    fn parsed(text: &str) -> std::result::Result<QuantConfig, String> {
        match stored(text)? {
            StoredQuant::BitsAndBytes(config) => Ok(config),
            other => panic!("{other} is not of bitsandbytes"),
        }
    }

    #[test]
    fn configurations_of_transformers_are_understood_and_written_back() {
        let config = parsed(
            r#"{"quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false,
                "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true, "llm_int8_skip_modules": ["lm_head"]}"#,
        )
        .unwrap();
        assert_eq!(config.format.name(), "nf4");
        assert!(config.double_quant);
        assert_eq!(parsed(&config.to_json().to_string()).unwrap(), config);
        assert_eq!(parsed(r#"{"load_in_8bit": true}"#).unwrap().format, QuantFormat::Int8);
        for (text, wanted) in [
            (r#"{"quant_method": "aqlm", "bits": 4}"#, "the quant_method `aqlm`"),
            (r#"{"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf3"}"#, "`nf3`"),
            (r#"{"quant_method": "bitsandbytes"}"#, "neither `load_in_4bit`"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn groups_are_understood_and_what_is_not_read_is_named() {
        let config = |text: &str| match stored(text).unwrap() {
            StoredQuant::Grouped(config) => config,
            other => panic!("{other} has no groups"),
        };
        let gptq = config(
            r#"{"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": true, "damp_percent": 0.1,
                "checkpoint_format": "gptq", "dynamic": {"-:lm_head": {}}, "pack_dtype": "int32"}"#,
        );
        let layout = GroupLayout::Gptq { zeros_less_one: true };
        assert_eq!(gptq, GroupedConfig { layout, bits: GroupBits::Four, group: Some(128) });
        assert_eq!(gptq.to_string(), "GPTQ with 4 bits in groups of 128");
        let second = config(r#"{"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"}"#);
        let layout = GroupLayout::Gptq { zeros_less_one: false };
        assert_eq!(second, GroupedConfig { layout, bits: GroupBits::Eight, group: None });
        let awq =
            config(r#"{"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM", "zero_point": true}"#);
        assert_eq!(awq, GroupedConfig { layout: GroupLayout::Awq, bits: GroupBits::Four, group: Some(64) });
        assert!(!StoredQuant::Grouped(awq).is_like(&QuantConfig::new(QuantFormat::Int8)));
        for (method, fields, wanted) in [
            ("gptq", r#""bits": 3, "group_size": 128"#, "`bits` is 3"),
            ("gptq", r#""bits": 2, "group_size": 128"#, "`bits` is 2"),
            ("awq", r#""bits": 8, "group_size": 128"#, "AWQ is read in 4 bits"),
            ("gptq", r#""group_size": 128"#, "`bits` is missing"),
            ("gptq", r#""bits": 4"#, "`group_size` is missing"),
            ("gptq", r#""bits": 4, "group_size": 0"#, "`group_size` is 0"),
            (
                "gptq",
                r#""bits": 4, "group_size": 64, "checkpoint_format": "marlin""#,
                "`checkpoint_format` is \"marlin\"",
            ),
            ("gptq", r#""bits": 4, "group_size": 64, "is_marlin_format": true"#, "`is_marlin_format`"),
            ("gptq", r#""bits": 4, "group_size": 64, "pack_dtype": "int16""#, "`pack_dtype`"),
            ("gptq", r#""bits": 4, "group_size": 64, "dynamic": {"+:.*down": {"bits": 8}}"#, "`+:.*down`"),
            ("awq", r#""bits": 4, "group_size": 64, "version": "gemv""#, "`version` is \"gemv\""),
            ("awq", r#""bits": 4, "group_size": 64, "format": "gemv_fast""#, "`format` is \"gemv_fast\""),
            ("awq", r#""bits": 4, "group_size": 64, "backend": "llm-awq""#, "`backend` is llm-awq"),
        ] {
            let error = stored(&format!(r#"{{"quant_method": "{method}", {fields}}}"#)).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }

    /// What `should_convert_module` of transformers says of the same names.
    #[test]
    fn names_leave_modules_out_as_in_transformers() {
        let skips = |names: &[&str], module: &str| {
            QuantConfig::new(QuantFormat::Int8).skip_modules(names.iter().copied()).skips(module, true).unwrap()
        };
        assert!(skips(&["fc1"], "model.decoder.layers.23.fc1"));
        assert!(skips(&["layer.1"], "layer.1.attn") && !skips(&["layer.1"], "layer.11.attn"));
        assert!(skips(&["layer.*"], "layer.11.attn") && !skips(&["mlp.gate"], "mlp.gate_proj"));
        assert!(!skips(&[], "lm_head"));
        assert!(QuantConfig::new(QuantFormat::Int8).skips("lm_head", true).unwrap());
        let odd = QuantConfig::new(QuantFormat::Int8).skip_modules(["("]);
        assert!(odd.skips("lm_head", false).unwrap_err().to_string().contains("`(`"));
    }
}
