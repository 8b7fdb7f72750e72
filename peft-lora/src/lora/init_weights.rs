//! Where the factors of LoRA start.

use crate::lora::loftq::Loftq;

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
    Loftq(Loftq),
}

impl InitWeights {
    pub(crate) fn reads_base(&self) -> bool {
        matches!(self, Self::Pissa(_) | Self::Olora | Self::Corda | Self::Loftq(_))
    }
}
