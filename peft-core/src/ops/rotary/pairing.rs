//! Which coordinates are turned together.

/// How a checkpoint pairs the coordinates that are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// `(i, i + d/2)`: LLaMA, Qwen2 and relatives, as stored on the hub.
    HalfSplit,
    /// `(2i, 2i + 1)`: GPT-J.
    Neighbours,
}
