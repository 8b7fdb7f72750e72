//! Training and evaluation.

use burn::module::{Flag, Module, ModuleMapper, Param};

/// The model for evaluation and generation: without dropout and without gradients, as the reference's `eval()` under
/// `torch.no_grad()`. The parameters are shared with `model`.
///
/// Where gradients are wanted without dropout, use [`set_training`].
pub fn eval<M: Module>(model: &M) -> M {
    model.valid()
}

/// Switches dropout on or off everywhere, without touching gradients: the reference's `train()` and `eval()`.
pub fn set_training<M: Module>(model: M, training: bool) -> M {
    struct Switch(bool);
    impl ModuleMapper for Switch {
        fn map_flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
            flag.with_value(self.0)
        }
    }
    model.map(&mut Switch(training))
}
