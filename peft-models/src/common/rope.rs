//! Rotary frequencies as `config.json` asks for them. Source: `transformers/modeling_rope_utils.py` (5.23).

use std::f32::consts::TAU;

use burn::tensor::{Int, Tensor};
use peft_core::ops::{Pairing, RotaryTable};
use peft_core::{PeftError, Result, refuse_unknown};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::common::config::RawConfig;
use crate::common::input::ModelInput;

/// Base of the frequencies where `config.json` names none.
const DEFAULT_THETA: f64 = 10_000.0;

/// `rope_parameters` of transformers 5, or `rope_scaling` of transformers 4.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RopeFields {
    rope_type: Option<String>,
    /// The old name of `rope_type`.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// Entries of a rope dictionary that never touch the numbers.
const HARMLESS: [&str; 1] = ["finetuned"];

/// The frequencies of a model.
#[derive(Debug, Clone)]
pub struct Rope {
    frequencies: Vec<f32>,
    scale: f64,
    stretch: Option<Stretch>,
    pairing: Pairing,
}

/// Frequencies of texts longer than those that a model was trained on first.
#[derive(Debug, Clone)]
struct Stretch {
    trained: usize,
    kind: StretchKind,
}

#[derive(Debug, Clone)]
enum StretchKind {
    /// `dynamic`: they depend on how long the text is.
    Dynamic { theta: f64, rotary: usize, factor: f64 },
    /// `longrope`: others.
    Long(Vec<f32>),
}

impl Rope {
    /// The frequencies of the paper, for the first `rotary` coordinates of a head.
    pub fn plain(theta: f32, rotary: usize) -> Self {
        Self::new(inverse_frequencies(theta, rotary))
    }

    fn new(frequencies: Vec<f32>) -> Self {
        Self { frequencies, scale: 1.0, stretch: None, pairing: Pairing::HalfSplit }
    }

    /// The same with neighbouring coordinates paired, instead of the first half with the second.
    pub fn with_pairing(mut self, pairing: Pairing) -> Self {
        self.pairing = pairing;
        self
    }

    /// The same with frequencies rounded to half precision, as the buffers of some models hold them.
    pub fn in_half_precision(mut self) -> Self {
        for it in &mut self.frequencies {
            *it = burn::tensor::f16::from_f32(*it).to_f32();
        }
        self
    }

    /// [`Rope::from_raw`] of the layers of one type, where types turn differently: `rope_parameters` has a dictionary for
    /// each of them.
    pub(crate) fn of_layers(
        raw: &RawConfig,
        layer_type: &str,
        theta: f64,
        d_head: usize,
        positions: usize,
    ) -> Result<Self> {
        let mut raw = raw.clone();
        raw.json.entry("rope_theta").or_insert(theta.into());
        let by_type = raw.json.get("rope_parameters").and_then(|it| it.get(layer_type)).cloned();
        let parameters = by_type.unwrap_or_else(|| Value::Object(Map::new()));
        raw.json.insert("rope_parameters".to_owned(), parameters);
        Self::from_raw(&raw, d_head, positions)
    }

    /// Understands the part of a `config.json` that speaks of rotation.
    ///
    /// Fields are looked for in `rope_scaling` or else `rope_parameters`, then beside them.
    pub fn from_raw(raw: &RawConfig, d_head: usize, max_positions: usize) -> Result<Self> {
        let beside = |field: &str| raw.json.get(field).filter(|it| !it.is_null());
        let (name, dictionary) = ["rope_scaling", "rope_parameters"]
            .into_iter()
            .find_map(|name| Some((name, beside(name)?.as_object().filter(|it| !it.is_empty())?.clone())))
            .unwrap_or(("rope_parameters", Map::new()));
        let fields: RopeFields =
            serde_json::from_value(Value::Object(dictionary)).map_err(|error| PeftError::config(name, error))?;
        refuse_unknown(&fields.other, &HARMLESS)?;

        let theta = fields.rope_theta.or_else(|| beside("rope_theta")?.as_f64()).unwrap_or(DEFAULT_THETA);
        let share = fields.partial_rotary_factor.or_else(|| beside("partial_rotary_factor")?.as_f64()).unwrap_or(1.0);
        let rotary = (d_head as f64 * share) as usize;
        if rotary == 0 || rotary > d_head {
            return Err(PeftError::config("partial_rotary_factor", format!("is {share}; it must be in (0, 1]")));
        }
        let original = beside("original_max_position_embeddings")
            .and_then(|it| Some(it.as_u64()? as usize))
            .or(fields.original_max_position_embeddings)
            .unwrap_or(max_positions);

        let plain = inverse_frequencies(theta as f32, rotary);
        let kind = fields.rope_type.as_deref().or(fields.old_type.as_deref()).unwrap_or("default");
        Ok(match kind {
            "default" => Self::new(plain),
            "linear" => {
                let factor = need("factor", fields.factor, kind)? as f32;
                Self::new(plain.into_iter().map(|it| it / factor).collect())
            }
            "dynamic" => {
                let factor = need("factor", fields.factor, kind)?;
                if rotary <= 2 {
                    return Err(PeftError::config("rope_type", "is `dynamic`, which needs more than 2 coordinates"));
                }
                let kind = StretchKind::Dynamic { theta, rotary, factor };
                Self { stretch: Some(Stretch { trained: max_positions, kind }), ..Self::new(plain) }
            }
            "llama3" => Self::new(llama3(
                plain,
                need("factor", fields.factor, kind)? as f32,
                need("low_freq_factor", fields.low_freq_factor, kind)? as f32,
                need("high_freq_factor", fields.high_freq_factor, kind)? as f32,
                original as f32,
            )),
            "longrope" => {
                let divided = |field: &str, factors: &Option<Vec<f32>>| match factors {
                    Some(factors) if factors.len() == plain.len() => {
                        // As the reference has it: one division, of 1 by the product.
                        let slow = plain
                            .iter()
                            .enumerate()
                            .map(|(at, _)| (theta as f32).powf((2 * at) as f32 / rotary as f32));
                        Ok(slow.zip(factors).map(|(slow, factor)| 1.0 / (factor * slow)).collect::<Vec<f32>>())
                    }
                    Some(factors) => {
                        let reason = format!("has {} numbers, wanted are {}", factors.len(), plain.len());
                        Err(PeftError::config(field, reason))
                    }
                    None => Err(PeftError::config(field, "is missing, and rope_type `longrope` needs it")),
                };
                let long = divided("long_factor", &fields.long_factor)?;
                let factor = fields.factor.unwrap_or(max_positions as f64 / original as f64);
                let grown = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
                Self {
                    scale: fields.attention_factor.unwrap_or(grown),
                    stretch: Some(Stretch { trained: original, kind: StretchKind::Long(long) }),
                    ..Self::new(divided("short_factor", &fields.short_factor)?)
                }
            }
            "yarn" => {
                let factor = fields.factor.unwrap_or(max_positions as f64 / original as f64);
                let frequencies = yarn(&fields, theta, rotary, factor, original as f64);
                Self { scale: yarn_scale(&fields, factor), ..Self::new(frequencies) }
            }
            other => {
                let reason = "known types are default, linear, dynamic, yarn, llama3 and longrope";
                return Err(PeftError::unsupported(format!("rope_type `{other}`"), reason));
            }
        })
    }

    /// Number of coordinates of a head that are rotated.
    pub fn rotary(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// The frequencies of a text whose highest position is `length - 1`.
    ///
    /// Unlike the reference's module, which remembers the longest text it has seen, the result depends on nothing but
    /// its argument.
    pub fn frequencies(&self, length: usize) -> Vec<f32> {
        let Some(Stretch { trained, kind }) = self.stretch.as_ref().filter(|it| length > it.trained) else {
            return self.frequencies.clone();
        };
        match kind {
            StretchKind::Dynamic { theta, rotary, factor } => {
                let (factor, exponent) = (*factor as f32, *rotary as f32 / (rotary - 2) as f32);
                let stretch = factor * length as f32 / *trained as f32 - (factor - 1.0);
                inverse_frequencies(*theta as f32 * stretch.powf(exponent), *rotary)
            }
            StretchKind::Long(frequencies) => frequencies.clone(),
        }
    }

    /// The longest text of the frequencies that `longrope` has for short ones.
    pub(crate) fn short_texts(&self) -> Option<usize> {
        self.stretch.as_ref().filter(|it| matches!(it.kind, StretchKind::Long(_))).map(|it| it.trained)
    }

    /// Factor of cosines and sines.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Cosines and sines of an input's positions.
    pub fn table(&self, input: &ModelInput, past: usize) -> RotaryTable {
        let length = match (&self.stretch, &input.position_ids) {
            (Some(_), Some(positions)) => highest(positions) + 1,
            _ => past + input.dims()[1],
        };
        RotaryTable::new(input.positions(past), &self.frequencies(length), self.scale, self.pairing)
    }

    /// Cosines and sines of given positions, `[batch or 1, seq]`, with the frequencies of short texts.
    pub fn table_at(&self, positions: Tensor<2, Int>) -> RotaryTable {
        RotaryTable::new(positions, &self.frequencies, self.scale, self.pairing)
    }
}

/// The highest position of a batch: the device is waited for.
fn highest(positions: &Tensor<2, Int>) -> usize {
    let data = positions.clone().max().into_data();
    data.iter::<i64>().next().and_then(|it| usize::try_from(it).ok()).unwrap_or(0)
}

/// `θ^(−2i/d)`, in f32 as the reference computes it: a last bit more would show at position 100,000.
fn inverse_frequencies(theta: f32, rotary: usize) -> Vec<f32> {
    (0..rotary).step_by(2).map(|at| 1.0 / theta.powf(at as f32 / rotary as f32)).collect()
}

fn need(field: &str, value: Option<f64>, kind: &str) -> Result<f64> {
    value.ok_or_else(|| PeftError::config(field, format!("is missing, and rope_type `{kind}` needs it")))
}

/// Slow frequencies are divided by `factor`, fast ones stay, and between the two it is a mixture.
fn llama3(plain: Vec<f32>, factor: f32, low: f32, high: f32, original: f32) -> Vec<f32> {
    let soft_cap = |frequency: f32| {
        let wavelength = TAU / frequency;
        if wavelength > original / low {
            frequency / factor
        } else if wavelength < original / high {
            frequency
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    };
    plain.into_iter().map(soft_cap).collect()
}

/// As `llama3`, with a mixture that is linear in the index.
fn yarn(fields: &RopeFields, theta: f64, rotary: usize, factor: f64, original: f64) -> Vec<f32> {
    let nonzero = |value: Option<f64>, default: f64| value.filter(|it| *it != 0.0).unwrap_or(default);
    // The index at which a wave turns so many times within the original length.
    let index = |turns: f64| (rotary as f64 * (original / (turns * std::f64::consts::TAU)).ln()) / (2.0 * theta.ln());
    let (mut low, mut high) = (index(nonzero(fields.beta_fast, 32.0)), index(nonzero(fields.beta_slow, 1.0)));
    if fields.truncate.unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    let low = low.max(0.0);
    let mut high = high.min(rotary as f64 - 1.0);
    if low == high {
        high += 0.001;
    }
    let fast = inverse_frequencies(theta as f32, rotary);
    fast.into_iter()
        .enumerate()
        .map(|(at, frequency)| {
            let slow = ((at as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            frequency / factor as f32 * slow + frequency * (1.0 - slow)
        })
        .collect()
}

fn yarn_scale(fields: &RopeFields, factor: f64) -> f64 {
    let grown = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    match (fields.attention_factor, fields.mscale, fields.mscale_all_dim) {
        (Some(given), ..) => given,
        (None, Some(over), Some(under)) if over != 0.0 && under != 0.0 => grown(over) / grown(under),
        _ => grown(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(json: &str) -> Result<Rope> {
        Rope::from_raw(&RawConfig::parse_text(json).unwrap(), 8, 16)
    }

    #[test]
    fn old_and_new_spelling_give_the_same() {
        let new = rope(r#"{"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 500.0}}"#).unwrap();
        let old = rope(r#"{"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 500}"#).unwrap();
        assert_eq!(new.frequencies(1), old.frequencies(1));
        assert_eq!(new.frequencies(1)[0], 0.5);
    }

    #[test]
    fn a_part_of_the_head_can_be_rotated() {
        let half = rope(r#"{"partial_rotary_factor": 0.5}"#).unwrap();
        assert_eq!(half.rotary(), 4);
        let frequencies = half.frequencies(1);
        assert_eq!(frequencies[0], 1.0);
        assert!((frequencies[1] - 0.01).abs() < 1e-7, "{frequencies:?}");
    }

    #[test]
    fn dynamic_frequencies_change_beyond_the_trained_length_only() {
        let dynamic = rope(r#"{"rope_scaling": {"type": "dynamic", "factor": 2.0}}"#).unwrap();
        assert_eq!(dynamic.frequencies(16), rope("{}").unwrap().frequencies(16));
        assert!(dynamic.frequencies(17)[1] < dynamic.frequencies(16)[1]);
    }

    /// Numbers of the reference for heads of 128, at these frequencies.
    #[test]
    fn frequencies_are_the_references() {
        const AT: [usize; 7] = [1, 10, 20, 30, 40, 50, 63];
        let cases: [(&str, usize, usize, f64, [f64; 7]); 5] = [
            (
                r#"{"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#,
                131_072,
                1,
                1.0,
                [0.814617217, 0.128687382, 0.0165604409, 0.00137189368, 3.42810235e-05, 4.41153452e-06, 3.06892588e-07],
            ),
            (
                r#"{"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
                    "rope_theta": 1000000.0}"#,
                32_768,
                1,
                1.138629436111989,
                [0.805842221, 0.115478203, 0.0133352149, 0.00106436096, 4.44569851e-05, 5.13381246e-06, 3.10234441e-07],
            ),
            (
                r#"{"rope_parameters": {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0,
                    "beta_slow": 1.0, "original_max_position_embeddings": 4096, "truncate": false}}"#,
                131_072,
                1,
                1.3465735902799727,
                [0.830086946, 0.155322984, 0.0193349998, 0.00105260219, 1.8188337e-05, 2.82506676e-06, 2.50977735e-07],
            ),
            (
                r#"{"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40, "mscale": 0.707,
                    "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}}"#,
                163_840,
                1,
                0.9210423553163399,
                [0.865964353, 0.237137362, 0.0562341288, 0.0083345091, 0.000790569407, 1.87473543e-05, 2.88695469e-06],
            ),
            (
                r#"{"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}"#,
                2048,
                5000,
                1.0,
                [0.847517073, 0.191198587, 0.0365569033, 0.00698962854, 0.00133640715, 0.000255519175, 2.9740866e-05],
            ),
        ];
        for (json, max_positions, length, scale, want) in cases {
            let rope = Rope::from_raw(&RawConfig::parse_text(json).unwrap(), 128, max_positions).unwrap();
            let got = rope.frequencies(length);
            assert_eq!(got.len(), 64);
            assert!((rope.scale() - scale).abs() < 1e-12, "{json}: {}", rope.scale());
            for (at, want) in AT.into_iter().zip(want) {
                assert!((f64::from(got[at]) / want - 1.0).abs() < 1e-6, "{json}: {} is not {want}", got[at]);
            }
        }
    }

    #[test]
    fn yarn_scale_follows_whatever_is_given() {
        let scale = |more: &str| {
            let json = format!(r#"{{"rope_parameters": {{"rope_type": "yarn", "factor": 4.0 {more}}}}}"#);
            rope(&json).unwrap().scale()
        };
        assert!((scale("") - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
        assert_eq!(scale(r#", "attention_factor": 0.7"#), 0.7);
        assert_eq!(scale(r#", "mscale": 1.0, "mscale_all_dim": 1.0"#), 1.0);
    }

    #[test]
    fn what_cannot_be_computed_is_refused_by_name() {
        let error = |json: &str| rope(json).unwrap_err().to_string();
        let text = error(r#"{"rope_scaling": {"type": "spiral", "factor": 2.0}}"#);
        assert!(text.contains("`spiral`") && text.contains("llama3"), "{text}");
        let text = error(r#"{"rope_scaling": {"type": "longrope", "long_factor": [1, 2, 3, 4]}}"#);
        assert!(text.contains("`short_factor` is missing"), "{text}");
        let text = error(r#"{"rope_scaling": {"type": "longrope", "long_factor": [1], "short_factor": [1, 2, 3, 4]}}"#);
        assert!(text.contains("has 1 numbers, wanted are 4"), "{text}");
        let text = error(r#"{"rope_scaling": {"type": "linear"}}"#);
        assert!(text.contains("`factor` is missing"), "{text}");
        let text = error(r#"{"rope_parameters": {"full_attention": {"rope_type": "default"}}}"#);
        assert!(text.contains("full_attention"), "{text}");
    }
}
