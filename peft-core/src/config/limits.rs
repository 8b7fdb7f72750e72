//! Numbers that no configuration may have, whatever its method.
//!
//! A file comes from anywhere. What its numbers ask for is computed and allocated by many methods, so the numbers are
//! looked at once, before any of them counts with them.

use serde_json::{Map, Number, Value};

use crate::error::{PeftError, Result};

/// The largest whole number: what it counts could not be held in memory, and products of two of them do not overflow.
const LARGEST_COUNT: u64 = i32::MAX as u64;

/// Fields whose numbers count nothing.
fn is_seed(field: &str) -> bool {
    field.contains("seed") || field.ends_with("_key")
}

/// Refuses whole numbers beyond 2³¹ and numbers that single precision does not hold, however deep they lie.
///
/// # Errors
/// Names the field and the number.
pub fn check_numbers(config: &Map<String, Value>) -> Result<()> {
    config.iter().filter(|(field, _)| !is_seed(field)).try_for_each(|(field, value)| check_value(field, value))
}

fn check_value(field: &str, value: &Value) -> Result<()> {
    match value {
        Value::Number(number) => check_number(field, number),
        Value::Array(items) => items.iter().try_for_each(|it| check_value(field, it)),
        Value::Object(fields) => {
            let inner = |(name, value): (&String, &Value)| check_value(&format!("{field}.{name}"), value);
            fields.iter().filter(|(name, _)| !is_seed(name)).try_for_each(inner)
        }
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

fn check_number(field: &str, number: &Number) -> Result<()> {
    let refused = |limit: String| Err(PeftError::config(field, format!("is {number}, and {limit} is the limit")));
    let whole = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
    match (whole, number.as_f64()) {
        (Some(whole), _) if whole > LARGEST_COUNT => refused(LARGEST_COUNT.to_string()),
        (None, Some(number)) if number.is_nan() || number.abs() > f64::from(f32::MAX) => {
            refused(format!("{:e}", f32::MAX))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> String {
        let config = serde_json::from_str(text).unwrap();
        check_numbers(&config).map_or_else(|error| error.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn numbers_that_nothing_can_hold_are_named() {
        assert_eq!(check(r#"{"r": 1000000000000}"#), "`r` is 1000000000000, and 2147483647 is the limit");
        assert!(check(r#"{"rank_pattern": {"q_proj": -99999999999}}"#).starts_with("`rank_pattern.q_proj` is"));
        assert!(check(r#"{"layers_to_transform": [0, 18446744073709551615]}"#).contains("layers_to_transform"));
        assert!(check(r#"{"lora_alpha": 1e308}"#).starts_with("`lora_alpha` is 1e+308, and 3.4028235e38"));
        assert_eq!(check(r#"{"r": 8, "lora_alpha": 1e30, "layers": [1, 2], "bias": "none"}"#), "fine");
        assert_eq!(check(r#"{"projection_prng_key": 9999999999999, "loftq_config": {"seed": 9999999999999}}"#), "fine");
    }
}
