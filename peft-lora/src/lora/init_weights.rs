//! Where the factors of LoRA start.

/// `init_lora_weights`, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InitWeights {
    Kaiming,
    Gaussian,
    Random,
    Orthogonal,
    Pissa(Option<usize>),
    Olora,
    Eva,
    Corda,
}

impl InitWeights {
    pub(crate) fn reads_base(&self) -> bool {
        matches!(self, Self::Pissa(_) | Self::Olora | Self::Corda)
    }
}
