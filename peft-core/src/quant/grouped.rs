//! Whole numbers of 4 or 8 bits in groups, each with a scale and a zero: what GPTQ and AWQ store.
//!
//! A number is `(code - zero) * scale`. A group is a run of columns of one row; GPTQ may sort columns into groups by how much they
//! matter (`desc_act`), and then says of every column which group it is of. Both programs pack eight codes into a word, in an order
//! of their own. Here the codes lie as those of the other formats do, row by row of the matrix `[out, in]`, so that products read
//! them in the same way.
//!
//! Source: arXiv 2210.17323 and 2306.00978; the layouts of AutoGPTQ, GPTQModel and AutoAWQ, as transformers 5.23 reads them.

use std::sync::LazyLock;

#[cfg(feature = "flex")]
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::four_bit::widen_codes;
use super::scales::Scales;
use crate::error::{PeftError, Result};

/// Codes of AWQ in a word, by the columns that they are of.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// How many bits a code has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupBits {
    /// Four bits, eight codes a word.
    Four,
    /// Eight bits, four codes a word.
    Eight,
}

impl GroupBits {
    /// The number of bits.
    pub fn bits(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// Codes in a word of 32 bits.
    pub fn in_word(self) -> usize {
        32 / self.bits()
    }

    /// The largest code.
    fn largest(self) -> u32 {
        (1 << self.bits()) - 1
    }
}

/// Which program's layout codes come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupLayout {
    /// Words hold codes of columns that follow one another. `zeros_less_one`: zeros are stored less one, which was the first
    /// form of such files.
    Gptq {
        /// Whether a stored zero is one less than what it means.
        zeros_less_one: bool,
    },
    /// Words hold codes of rows, in the order of the kernel "gemm".
    Awq,
}

/// What `quantization_config` says of a checkpoint of GPTQ or AWQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupedConfig {
    /// How words are filled.
    pub layout: GroupLayout,
    /// Bits of a code.
    pub bits: GroupBits,
    /// Columns that share a scale; `None` for all of a row.
    pub group: Option<usize>,
}

impl GroupedConfig {
    /// Understands `quantization_config` of the methods `gptq` and `awq`.
    ///
    /// # Errors
    /// If it says what is not read here.
    pub fn from_json(config: &Map<String, Value>) -> Result<Self> {
        let is_awq = config.get("quant_method").and_then(Value::as_str) == Some("awq");
        let first = |fields: &[&'static str]| {
            let field = fields.iter().find(|it| config.get(**it).is_some_and(|it| !it.is_null()));
            field.map(|it| (*it, &config[*it]))
        };
        // The second names are those of AutoAWQ's own files.
        let bits = match first(&["bits", "w_bit"]) {
            Some((_, bits)) if bits.as_u64() == Some(4) => GroupBits::Four,
            Some((_, bits)) if bits.as_u64() == Some(8) && !is_awq => GroupBits::Eight,
            Some((field, bits)) => {
                let known = if is_awq { "AWQ is read in 4 bits" } else { "GPTQ is read in 4 and 8 bits" };
                let reason =
                    format!("is {bits}, and {known}: take another checkpoint, or the one that it was made from");
                return Err(PeftError::config(field, reason));
            }
            None => return Err(PeftError::config("bits", "is missing in `quantization_config`")),
        };
        let group = match first(&["group_size", "q_group_size"]) {
            Some((_, size)) if size.as_i64() == Some(-1) => None,
            Some((field, size)) => match size.as_u64().and_then(|it| usize::try_from(it).ok()).filter(|it| *it > 0) {
                Some(size) => Some(size),
                None => {
                    return Err(PeftError::config(field, format!("is {size}, expected a number of columns, or -1")));
                }
            },
            None => return Err(PeftError::config("group_size", "is missing in `quantization_config`")),
        };
        let layout = if is_awq { awq_layout(config)? } else { gptq_layout(config)? };
        Ok(Self { layout, bits, group })
    }

    /// The method's name.
    pub fn method(&self) -> &'static str {
        match self.layout {
            GroupLayout::Gptq { .. } => "gptq",
            GroupLayout::Awq => "awq",
        }
    }
}

fn awq_layout(config: &Map<String, Value>) -> Result<GroupLayout> {
    // transformers 5 writes `format`, and all others wrote `version`.
    for field in ["version", "format"] {
        if let Some(version) = config.get(field).filter(|it| !it.is_null())
            && !version.as_str().is_some_and(|it| it.eq_ignore_ascii_case("gemm"))
        {
            let reason = format!("is {version}, and AWQ is read in the layout \"gemm\", in which most checkpoints are");
            return Err(PeftError::config(field, reason));
        }
    }
    match config.get("backend").and_then(Value::as_str) {
        Some("llm-awq") => Err(PeftError::config("backend", "is llm-awq, whose layout is another than \"gemm\"")),
        _ => Ok(GroupLayout::Awq),
    }
}

fn gptq_layout(config: &Map<String, Value>) -> Result<GroupLayout> {
    let said = |field: &str| config.get(field).filter(|it| !it.is_null());
    if said("is_marlin_format").is_some_and(|it| it == true) {
        return Err(PeftError::config("is_marlin_format", "is true, and GPTQ is read in the layouts gptq and gptq_v2"));
    }
    if let Some(word) =
        said("pack_dtype").filter(|it| it.as_str().is_none_or(|it| it.trim_start_matches("torch.") != "int32"))
    {
        return Err(PeftError::config("pack_dtype", format!("is {word}, and words of int32 are read")));
    }
    // Rules with "-:" leave modules out, which is seen from their tensors.
    if let Some(rule) =
        said("dynamic").and_then(Value::as_object).and_then(|it| it.keys().find(|it| !it.starts_with("-:")))
    {
        let reason = format!("gives the modules `{rule}` settings of their own, which is not read");
        return Err(PeftError::config("dynamic", reason));
    }
    match said("checkpoint_format").or(said("format")) {
        None => Ok(GroupLayout::Gptq { zeros_less_one: true }),
        Some(format) => match format.as_str() {
            Some("gptq") => Ok(GroupLayout::Gptq { zeros_less_one: true }),
            Some("gptq_v2") => Ok(GroupLayout::Gptq { zeros_less_one: false }),
            _ => {
                let reason = format!("is {format}, and GPTQ is read in the layouts gptq and gptq_v2");
                Err(PeftError::config("checkpoint_format", reason))
            }
        },
    }
}

/// What the groups of a matrix have beside their scales.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Groups<'a> {
    /// The code that means 0, for each group of each row: `[lines, groups]`.
    pub zeros: &'a [u8],
    /// The group of each column, where that is not simply the next one after so many columns.
    pub of_column: Option<&'a [u32]>,
}

/// Tensors of a matrix as they lie in a file, already read into words and numbers.
#[derive(Debug, Clone)]
pub struct GroupedParts {
    /// `[in / codes in a word, out]` of GPTQ, `[in, out / 8]` of AWQ.
    pub codes: Vec<u32>,
    /// `[groups, out / codes in a word]`
    pub zeros: Vec<u32>,
    /// `[groups, out]`
    pub scales: Vec<f32>,
    /// The group of each column, `[in]`.
    pub of_column: Option<Vec<u32>>,
}

/// A matrix `[out, in]` in groups.
#[derive(Debug, Clone)]
pub struct Grouped {
    pub(super) shape: [usize; 2],
    pub(super) bits: GroupBits,
    pub(super) block: usize,
    pub(super) codes: Vec<u8>,
    pub(super) scales: Vec<f32>,
    pub(super) zeros: Vec<u8>,
    pub(super) of_column: Option<Vec<u32>>,
}

impl Grouped {
    /// Brings a matrix `[out, in]` into the order in which it is computed with.
    ///
    /// # Errors
    /// If a part has another length than the shape asks for, or a column is of no group.
    pub fn new(config: &GroupedConfig, shape: [usize; 2], parts: &GroupedParts) -> Result<Self> {
        let [lines, width] = shape;
        let GroupedConfig { layout, bits, group } = *config;
        let block = group.unwrap_or(width).max(1);
        let (per_word, groups) = (bits.in_word(), width.div_ceil(block));
        let wanted = |what: &str, have: usize, need: usize| match have == need {
            true => Ok(()),
            false => Err(PeftError::Invalid(format!("{what} has {have} entries, where {lines} × {width} need {need}"))),
        };
        let whole = match layout {
            GroupLayout::Gptq { .. } => width.is_multiple_of(per_word),
            GroupLayout::Awq => true,
        };
        if lines == 0 || width == 0 || !whole || !lines.is_multiple_of(per_word) {
            let reason = format!("a matrix of {lines} × {width} does not fill words of {per_word} codes");
            return Err(PeftError::Invalid(reason));
        }
        wanted("qweight", parts.codes.len(), lines * width / per_word)?;
        wanted("qzeros", parts.zeros.len(), groups * lines / per_word)?;
        wanted("scales", parts.scales.len(), groups * lines)?;
        let of_column = match &parts.of_column {
            None => None,
            Some(columns) => {
                wanted("g_idx", columns.len(), width)?;
                if let Some(odd) = columns.iter().find(|it| **it as usize >= groups) {
                    return Err(PeftError::Invalid(format!("g_idx names the group {odd}, and there are {groups}")));
                }
                let is_usual = columns.iter().enumerate().all(|(at, it)| at / block == *it as usize);
                (!is_usual).then(|| columns.clone())
            }
        };
        let codes = match layout {
            GroupLayout::Gptq { .. } => gptq_codes(&parts.codes, shape, bits),
            GroupLayout::Awq => awq_codes(&parts.codes, shape),
        };
        let zero = |line: usize, group: usize| {
            let (word, at) = match layout {
                GroupLayout::Gptq { .. } => (line / per_word, line % per_word),
                GroupLayout::Awq => (line / per_word, awq_place(line % per_word)),
            };
            let stored = (parts.zeros[group * lines / per_word + word] >> (at * bits.bits())) & bits.largest();
            match layout {
                // The zero 0 was stored as the largest code.
                GroupLayout::Gptq { zeros_less_one: true } => ((stored + 1) & bits.largest()) as u8,
                _ => stored as u8,
            }
        };
        let all = || (0..lines).flat_map(|line| (0..groups).map(move |group| (line, group)));
        let zeros = all().map(|(line, group)| zero(line, group)).collect();
        let scales = all().map(|(line, group)| parts.scales[group * lines + line]).collect();
        Ok(Self { shape, bits, block, codes, scales, zeros, of_column })
    }
}

/// Calls `write` with every part of so many bytes and its number, by all threads where there are any.
fn each_part(bytes: &mut [u8], size: usize, write: impl Fn(usize, &mut [u8]) + Sync) {
    #[cfg(feature = "flex")]
    bytes.par_chunks_mut(size).enumerate().for_each(|(at, part)| write(at, part));
    #[cfg(not(feature = "flex"))]
    bytes.chunks_mut(size).enumerate().for_each(|(at, part)| write(at, part));
}

/// Rows that a task brings into order: as many as a line of a cache has words.
const LINES: usize = 16;

/// GPTQ's words `[in / codes in a word, out]`, row by row of the matrix.
fn gptq_codes(words: &[u32], [lines, width]: [usize; 2], bits: GroupBits) -> Vec<u8> {
    let bytes = width * bits.bits() / 8;
    let mut codes = vec![0; lines * bytes];
    each_part(&mut codes, LINES * bytes, |task, codes| {
        for (at, words) in words.chunks_exact(lines).enumerate() {
            for (line, word) in codes.chunks_exact_mut(bytes).zip(&words[task * LINES..]) {
                let word = match bits {
                    // The first code of a byte is in its upper half here.
                    GroupBits::Four => ((word & 0x0f0f_0f0f) << 4) | ((word >> 4) & 0x0f0f_0f0f),
                    GroupBits::Eight => *word,
                };
                line[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
    });
    codes
}

/// Where in a word AWQ has the code of a row.
fn awq_place(row: usize) -> usize {
    AWQ_ORDER.iter().position(|it| *it == row).unwrap_or(row)
}

/// AWQ's words `[in, out / 8]`, row by row of the matrix.
fn awq_codes(words: &[u32], [lines, width]: [usize; 2]) -> Vec<u8> {
    let mut codes = vec![0_u8; lines * width / 2];
    let per_column = lines / 8;
    // Eight rows begin and end with a byte, whatever their length is.
    each_part(&mut codes, 4 * width, |column, codes| {
        for at in 0..width {
            let word = words[at * per_column + column];
            for (place, row) in AWQ_ORDER.iter().enumerate() {
                let to = row * width + at;
                let code = ((word >> (4 * place)) & 15) as u8;
                codes[to / 2] |= code << (4 * (1 - to % 2));
            }
        }
    });
    codes
}

/// The codes of every byte as numbers.
static PAIRS: LazyLock<[[f32; 2]; 256]> =
    LazyLock::new(|| std::array::from_fn(|byte| [(byte >> 4) as f32, (byte & 15) as f32]));

impl GroupBits {
    /// The codes from `place` on as numbers.
    #[inline(always)]
    pub(super) fn widen_codes(self, codes: &[u8], place: usize, out: &mut [f32]) {
        match self {
            Self::Four => widen_codes(&PAIRS, codes, place, out),
            Self::Eight => {
                for (to, code) in out.iter_mut().zip(&codes[place..]) {
                    *to = f32::from(*code);
                }
            }
        }
    }
}

impl Groups<'_> {
    /// Makes of codes what they mean: a run of a row from the column `from` on, whose groups are those from `first` on.
    #[inline(always)]
    pub(super) fn scale(&self, scales: Scales<'_>, first: usize, block: usize, from: usize, out: &mut [f32]) {
        match self.of_column {
            None => {
                let mut at = 0;
                while at < out.len() {
                    let column = from + at;
                    let count = (block - column % block).min(out.len() - at);
                    let group = first + column / block;
                    let (zero, scale) = (f32::from(self.zeros[group]), scales.of(group));
                    for x in &mut out[at..at + count] {
                        *x = (*x - zero) * scale;
                    }
                    at += count;
                }
            }
            Some(columns) => {
                for (x, group) in out.iter_mut().zip(&columns[from..]) {
                    let group = first + *group as usize;
                    *x = (*x - f32::from(self.zeros[group])) * scales.of(group);
                }
            }
        }
    }
}
