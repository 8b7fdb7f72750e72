//! Keys of tensors in adapter files.

/// What the reference puts before the path of an adapted module.
pub const KEY_PREFIX: &str = "base_model.model.";

/// How the reference names a frozen layer that an adapter wraps, and one of which rows are trained beside LoRA.
pub(crate) const WRAPPED: &str = ".base_layer";
pub(crate) const WRAPPED_ROWS: &str = ".token_adapter.base_layer";

/// The path of a frozen parameter whose copy has this key in an adapter file.
pub(crate) fn frozen_path(key: &str) -> Option<String> {
    let path = key.strip_prefix(KEY_PREFIX)?;
    Some([WRAPPED_ROWS, WRAPPED].iter().fold(path.to_owned(), |path, it| path.replace(&format!("{it}."), ".")))
}
