//! What all schedulers do.

use burn::tensor::Tensor;

/// The steps from noise to a picture.
///
/// The noise predictor is called once for every [timestep](Scheduler::timesteps), in their order, with the sample that
/// [`scale_model_input`](Scheduler::scale_model_input) gives; [`step`](Scheduler::step) takes what it says.
pub trait Scheduler {
    /// What the noise predictor is told, call by call.
    fn timesteps(&self) -> &[f32];

    /// What standard normal noise is multiplied by to be the first sample.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// The sample as the noise predictor sees it in call `at`.
    fn scale_model_input(&self, sample: Tensor<4>, at: usize) -> Tensor<4> {
        let _ = at;
        sample
    }

    /// The sample behind call `at`, whose `output` is what the noise predictor says of `sample`.
    ///
    /// `noise` is called for standard normal noise of their shape where the step needs some.
    fn step(
        &mut self,
        at: usize,
        output: Tensor<4>,
        sample: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4>;
}
