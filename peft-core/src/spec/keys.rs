//! Keys of tensors in adapter files.

use std::borrow::Cow;

/// What the reference puts before the path of an adapted module.
pub const KEY_PREFIX: &str = "base_model.model.";

/// Starts of the names that methods of the reference give to their tensors.
const METHOD_TENSORS: [&str; 20] = [
    "lora_",
    "ia3_",
    "hada_",
    "lokr_",
    "oft_",
    "boft_",
    "vera_",
    "vblora_",
    "fourierft_",
    "hra_",
    "miss_",
    "bone_",
    "randlora_",
    "road_",
    "shira_",
    "c3a_",
    "waveft_",
    "delora_",
    "gralora_",
    "trainable_tokens_",
];

/// Whether a segment of a key names a tensor of a method: `lora_A`.
pub fn is_method_tensor(segment: &str) -> bool {
    METHOD_TENSORS.iter().any(|start| segment.starts_with(start))
}

/// What torch puts into the paths of modules that it wraps: `torch.compile`, FSDP, activation checkpointing.
const TORCH_WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// The name that the reference gives to an adapter if nobody else does.
const REFERENCE_ADAPTER: &str = "default";

/// The key as the reference saves it, without what other ways of saving leave in it: the adapter's name, as in
/// `….lora_A.default.weight`, which the reference reads, and the names of torch's wrappers, of which it reads nothing.
pub fn plain_key(key: &str) -> Cow<'_, str> {
    let without_module = key.strip_prefix("module.").filter(|it| it.starts_with("base_model.")).unwrap_or(key);
    let mut segments: Vec<&str> = Vec::new();
    for segment in without_module.split('.') {
        let names_adapter = segment == REFERENCE_ADAPTER && segments.last().is_some_and(|it| is_method_tensor(it));
        if !names_adapter && !TORCH_WRAPPERS.contains(&segment) {
            segments.push(segment);
        }
    }
    let plain = segments.join(".");
    // `module.` may lie outside of a wrapper's name, or inside.
    let plain = plain.strip_prefix("module.").filter(|it| it.starts_with("base_model.")).unwrap_or(&plain);
    if plain == key { Cow::Borrowed(key) } else { Cow::Owned(plain.to_owned()) }
}

/// Whether a key holds the name of an adapter that the reference does not look for, as `….lora_A.mine.weight`: it puts in the
/// name that it loads the adapter by, and takes out `default` alone.
pub fn names_another_adapter(key: &str) -> bool {
    let segments: Vec<&str> = key.split('.').collect();
    segments.windows(2).any(|it| is_method_tensor(it[0]) && !["weight", "bias", REFERENCE_ADAPTER].contains(&it[1]))
}

/// Whether the reference finds nothing under a key because torch wrapped the model that was saved.
pub fn is_wrapped_by_torch(key: &str) -> bool {
    key.starts_with("module.base_model.") || key.split('.').any(|it| TORCH_WRAPPERS.contains(&it))
}

/// How the reference names a frozen layer that an adapter wraps, and one of which rows are trained beside LoRA.
pub(crate) const WRAPPED: &str = ".base_layer";
pub(crate) const WRAPPED_ROWS: &str = ".token_adapter.base_layer";

/// The path of a frozen parameter whose copy has this key in an adapter file.
pub(crate) fn frozen_path(key: &str) -> Option<String> {
    let path = key.strip_prefix(KEY_PREFIX)?;
    Some([WRAPPED_ROWS, WRAPPED].iter().fold(path.to_owned(), |path, it| path.replace(&format!("{it}."), ".")))
}

#[cfg(test)]
mod tests {
    use super::{KEY_PREFIX, is_wrapped_by_torch, names_another_adapter, plain_key};

    #[test]
    fn keys_lose_names_of_adapters_and_wrappers_and_nothing_else() {
        let layer = format!("{KEY_PREFIX}model.layers.0.self_attn.q_proj");
        let plain = format!("{layer}.lora_A.weight");
        let others = [
            format!("{layer}.lora_A.default.weight"),
            format!("module.{plain}"),
            format!("_orig_mod.{plain}"),
            format!("module._orig_mod.{plain}"),
            format!("_orig_mod.module.{plain}"),
            plain.replace("self_attn", "_fsdp_wrapped_module.self_attn._checkpoint_wrapped_module"),
        ];
        for key in &others {
            assert_eq!(plain_key(key), plain, "{key}");
        }
        assert!(!is_wrapped_by_torch(&others[0]) && others[1..].iter().all(|it| is_wrapped_by_torch(it)));
        assert_eq!(plain_key(&format!("{layer}.lora_embedding_A.default")), format!("{layer}.lora_embedding_A"));
        let mine = format!("{layer}.lora_A.mine.weight");
        assert!(names_another_adapter(&mine) && names_another_adapter(&format!("{layer}.oft_R.mine")));
        assert!(others.iter().chain([&plain]).all(|it| !names_another_adapter(it)));
        assert!(
            !names_another_adapter(&format!("{layer}.lora_B.bias")) && !names_another_adapter("model.lora_embedding_A")
        );
        // A module of the base may be called so.
        for key in [&plain, "base_model.model.module.default.weight", "base_model.model.blocks.default.lora_B.weight"] {
            assert_eq!(plain_key(key), key);
        }
    }
}
