//! How a matrix lies in memory.

/// How a linear weight lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[out, in]`, as torch's `nn.Linear` stores it.
    OutIn,
    /// `[in, out]`, as Burn's `Linear` and the `Gpt2Linear` of transformers store it (`fan_in_fan_out`).
    InOut,
}
