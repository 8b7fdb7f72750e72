//! `peft methods`

use peft_core::{PeftError, RegisteredMethod, Result};
use serde_json::{Map, Value, json};

use super::terminal::say;
use crate::run::registry::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this one, by its name or `peft_type`, with its parameters.
    method: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<()> {
    let methods = &registry.methods;
    let wanted = |it: &&RegisteredMethod| {
        let same = |name: &str, given: &str| name.replace([' ', '-', '_'], "").eq_ignore_ascii_case(given);
        args.method.as_ref().is_none_or(|given| {
            let given = given.replace([' ', '-', '_'], "");
            same(it.about.name, &given) || same(it.about.peft_type, &given)
        })
    };
    let found: Vec<&RegisteredMethod> = methods.described().iter().filter(wanted).collect();
    if found.is_empty() {
        let known: Vec<&str> = methods.described().iter().map(|it| it.about.name).collect();
        let given = args.method.clone().unwrap_or_default();
        return Err(PeftError::config("method", format!("is `{given}`; known are {}", known.join(", "))));
    }
    if args.json {
        let rows = found.iter().map(|it| Ok(json!({ "about": it.about, "parameters": (it.defaults)()? })));
        let rows = rows.collect::<Result<Vec<Value>>>()?;
        let text = serde_json::to_string_pretty(&rows).map_err(|error| PeftError::Invalid(error.to_string()))?;
        return say!("{text}");
    }
    // Of a program's own methods, too, whose names may be longer than ours.
    let width =
        |of: fn(&RegisteredMethod) -> &str| found.iter().map(|it| of(it).chars().count()).max().unwrap_or(0) + 2;
    let (name, kind, paper) = (width(|it| it.about.name), width(|it| it.about.peft_type), width(|it| it.about.paper));
    for it in &found {
        let about = &it.about;
        say!("{:<name$}{:<kind$}{:<paper$}{}", about.name, about.peft_type, about.paper, about.package)?;
        say!("    trains {}", about.what)?;
        if args.method.is_some() {
            parameters(&(it.defaults)()?)?;
        }
    }
    if args.method.is_none() {
        say!("\npeft methods NAME lists the parameters of one, with their defaults")?;
    }
    Ok(())
}

fn parameters(defaults: &Map<String, Value>) -> Result<()> {
    defaults.iter().try_for_each(|(field, value)| say!("    {field} = {value}"))
}
