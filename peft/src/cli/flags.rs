//! Errors in the words of the command line: a setting that was given as a flag is called by it.

use std::path::PathBuf;

use clap::ArgMatches;
use clap::parser::ValueSource;
use peft_core::PeftError;

/// Fields of a run whose flag has another name.
const NAMES: [(&str, &str); 20] = [
    ("num_beams", "beams"),
    ("learning_rate", "lr"),
    ("lr_scheduler_type", "schedule"),
    ("warmup_steps", "warmup"),
    ("gradient_accumulation_steps", "accumulate"),
    ("num_train_epochs", "epochs"),
    ("max_steps", "steps"),
    ("eval_batch_size", "batch_size"),
    ("logging_steps", "log_every"),
    ("eval_steps", "eval_every"),
    ("save_steps", "save_every"),
    ("save_total_limit", "keep"),
    ("early_stopping_patience", "patience"),
    ("masked_share", "masked"),
    ("lora_alpha", "alpha"),
    ("lora_dropout", "dropout"),
    ("target_modules", "targets"),
    ("init_lora_weights", "init"),
    ("use_rslora", "rslora"),
    ("use_dora", "dora"),
];

/// The error with the flag in place of the field, if `matches`, those of a subcommand, have the flag; with the file that
/// `--config` names, if the field may come from there.
pub(super) fn with_flags(error: PeftError, matches: &ArgMatches) -> PeftError {
    let is_given = |id: &str| {
        matches.ids().any(|it| it.as_str() == id) && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    let (field, reason) = match error {
        PeftError::Config { field, reason } => (field, reason),
        PeftError::BadFile { path, reason } => {
            let reason = as_flags(with_column(reason, matches), is_given);
            return PeftError::BadFile { path, reason };
        }
        PeftError::BadRow { path, line, reason } => {
            let reason = as_flags(reason, is_given);
            return PeftError::BadRow { path, line, reason };
        }
        error => return error,
    };
    let id = NAMES.iter().find(|it| it.0 == field).map_or(field.as_str(), |it| it.1);
    if is_given(id) {
        return PeftError::config(format!("--{}", id.replace('_', "-")), reason);
    }
    let is_flag = field.starts_with("--");
    let error = PeftError::Config { field, reason };
    match matches.try_get_one::<PathBuf>("config") {
        Ok(Some(file)) if !is_flag => PeftError::bad_file(file, error),
        _ => error,
    }
}

/// A part of the rows whose column nobody has named, with the flag that names it: `label` by `--label-column`.
fn with_column(reason: String, matches: &ArgMatches) -> String {
    let part = reason.strip_prefix('`').and_then(|it| it.split_once("` is not set and no column"));
    match part {
        Some((part, rest)) if matches.try_contains_id(&format!("{part}_column")).is_ok() => {
            format!("`--{}-column` is not set and no column{rest}", part.replace('_', "-"))
        }
        _ => reason,
    }
}

/// What is said of two runs that differ, with the flags in place of the fields that were given so.
fn as_flags(reason: String, is_given: impl Fn(&str) -> bool) -> String {
    reason
        .split('`')
        .enumerate()
        .map(|(at, part)| {
            let field = match part {
                "data.train" => "data",
                "data.eval" => "eval_data",
                part => ["adapter.", "data."].iter().find_map(|it| part.strip_prefix(it)).unwrap_or(part),
            };
            let id = NAMES.iter().find(|it| it.0 == field).map_or(field, |it| it.1);
            let is_flag = at % 2 == 1 && is_given(id);
            if is_flag { format!("--{}", id.replace('_', "-")) } else { part.to_owned() }
        })
        .collect::<Vec<_>>()
        .join("`")
}
