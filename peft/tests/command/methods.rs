//! What the command says about methods.

use super::adapters::peft;
use crate::support::fixtures;

#[test]
fn methods_are_listed_with_their_papers_and_defaults() {
    let printed = peft(&["methods"]).unwrap();
    for name in peft::methods().names() {
        assert!(printed.contains(name), "{name} is not in\n{printed}");
    }
    let lora = peft(&["methods", "lora"]).unwrap();
    for part in ["2106.09685", "r = 8", "lora_alpha = 8", "bias = \"none\"", "peft-lora"] {
        assert!(lora.contains(part), "{part} is not in\n{lora}");
    }
    assert!(peft(&["methods", "p-tuning"]).unwrap().contains("encoder_hidden_size"));
    let json: serde_json::Value = serde_json::from_str(&peft(&["methods", "--json"]).unwrap()).unwrap();
    assert_eq!(json.as_array().unwrap().len(), peft::methods().names().count());
    assert!(peft(&["methods", "magic"]).unwrap_err().contains("AdaLoRA"));
}

#[test]
fn every_method_that_is_written_is_registered_and_described() {
    let methods = peft::methods();
    let mut registered: Vec<&str> = methods.described().iter().map(|it| it.config).collect();
    assert_eq!(registered.len(), methods.names().count(), "one is registered without a description");
    for method in methods.described() {
        let defaults = (method.defaults)().unwrap();
        assert!(!defaults.is_empty(), "{} has no parameter", method.about.name);
        assert!(method.about.paper.contains(char::is_numeric) || method.about.paper.starts_with("peft/"));
    }
    let mut written = Vec::new();
    let mut folders: Vec<_> =
        ["peft-lora", "peft-ia3", "peft-prompt"].map(|it| fixtures().join("..").join(it).join("src")).into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
                continue;
            }
            let text = std::fs::read_to_string(entry).unwrap();
            let names = text.lines().filter_map(|it| it.strip_prefix("impl Tuner for ")?.strip_suffix(" {"));
            written.extend(names.map(str::to_owned));
        }
    }
    written.sort();
    registered.sort_unstable();
    assert_eq!(registered, written);
}
