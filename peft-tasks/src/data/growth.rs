//! How much longer a tokenizer's normalizer can make a text.
//!
//! A normalizer is a program: forty replacements of `a` by `aa` in a row make a terabyte of a letter. Their product is known
//! before the first text.

use serde_json::Value;

/// By what a sequence of steps multiplies the length of a text at most, as far as literal replacements do it. What Unicode
/// normalisation adds, at most eighteen times, does not count.
pub(crate) fn growth(step: &Value) -> f64 {
    let kind = step.get("type").and_then(Value::as_str).unwrap_or_default();
    let parts = ["normalizers", "decoders"].iter().find_map(|it| step.get(it)?.as_array());
    match (kind, parts) {
        ("Sequence", Some(parts)) => parts.iter().map(growth).product(),
        ("Replace", _) => {
            let content = step.get("content").and_then(Value::as_str).map_or(0, str::len) as f64;
            match step.pointer("/pattern/String").and_then(Value::as_str) {
                Some(pattern) => (content / pattern.len().max(1) as f64).max(1.0),
                // An expression may match at every place without taking anything away.
                None => content + 1.0,
            }
        }
        // Once a text, and a text has at least a byte.
        ("Prepend", _) => 1.0 + step.get("prepend").and_then(Value::as_str).map_or(0, str::len) as f64,
        _ => 1.0,
    }
}

/// More than any tokenizer needs. LLaMA's multiplies by 12.
pub(crate) const MAX_GROWTH: f64 = 1e6;

/// The longest text that a tokenizer may make of another, in bytes.
pub(crate) const MAX_TEXT: f64 = 16e9;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn replacements_multiply() {
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        assert_eq!(growth(&json!({"type": "Sequence", "normalizers": vec![double; 40]})), 2f64.powi(40));
        let llama = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
        assert_eq!(growth(&llama), 12.0);
        assert_eq!(growth(&json!({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "yy"})), 3.0);
        assert_eq!(growth(&json!({"type": "NFKC"})), 1.0);
        assert_eq!(growth(&Value::Null), 1.0);
    }
}
