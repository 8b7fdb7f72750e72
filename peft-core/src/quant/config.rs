//! What of a base is quantised, and how: `BitsAndBytesConfig` of transformers.

use std::fmt;
use std::str::FromStr;

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::four_bit::FourBit;
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

    /// Understands `quantization_config` of a `config.json`.
    ///
    /// # Errors
    /// If it is of another method, or says what is not computed here.
    pub fn from_json(config: &Map<String, Value>) -> Result<Self> {
        let is_on = |field: &str| config.get(field).and_then(Value::as_bool).unwrap_or(false);
        let [four, eight] = ["load_in_4bit", "load_in_8bit"].map(is_on);
        match config.get("quant_method").and_then(Value::as_str) {
            Some("bitsandbytes") => {}
            None if four || eight => {}
            other => {
                let method = other.map_or("no quant_method".to_owned(), |it| format!("the quant_method `{it}`"));
                let reason = "read are NF4, FP4 and int8 of bitsandbytes; load the checkpoint that it was made from";
                return Err(PeftError::config("quantization_config", format!("names {method}: {reason}")));
            }
        }
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
            QuantFormat::Int8 => None,
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

impl fmt::Display for QuantConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.format, if self.double_quant { " with quantised scales" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> std::result::Result<QuantConfig, String> {
        QuantConfig::from_json(&serde_json::from_str(text).unwrap()).map_err(|it| it.to_string())
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
            (r#"{"quant_method": "gptq", "bits": 4}"#, "the quant_method `gptq`"),
            (r#"{"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf3"}"#, "`nf3`"),
            (r#"{"quant_method": "bitsandbytes"}"#, "neither `load_in_4bit`"),
        ] {
            let error = parsed(text).unwrap_err();
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
