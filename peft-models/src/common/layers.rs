//! How a stack calls its layers.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::forward::gradient_checkpointing::{self, Inputs};

use crate::common::input::KvCache;

/// Layer `at` of a stack, of which within a [`gradient_checkpointing::scope`] only the inputs are kept.
///
/// `inputs` are what it reads beside the hidden state; `forward` may use nothing else that has gradients. A layer with a
/// cache that somebody goes on with is computed as ever: what it put there must not be thrown away.
///
/// # Shapes
/// - hidden, output: `[batch, seq, d_model]`
pub(crate) fn run<L: Module + 'static, I: Inputs>(
    (layer, at): (&L, usize),
    hidden: Tensor<3>,
    inputs: &I,
    cache: Option<&mut KvCache>,
    forward: impl Fn(&L, Tensor<3>, &I, Option<&mut KvCache>) -> Tensor<3> + Send + 'static,
) -> Tensor<3> {
    let cache = match cache {
        Some(cache) if !gradient_checkpointing::is_on() => Some(cache),
        Some(cache) => match cache.prefix_of(at) {
            Some((prefix, rest)) => {
                let inputs = (inputs.clone(), prefix);
                return gradient_checkpointing::layer(
                    layer,
                    hidden,
                    &inputs,
                    move |layer, hidden, (inputs, prefix)| {
                        let mut cache = rest.with_prefix_of(at, prefix.clone());
                        forward(layer, hidden, inputs, Some(&mut cache))
                    },
                );
            }
            None => Some(cache),
        },
        None => {
            let forward = move |layer: &L, hidden, inputs: &I| forward(layer, hidden, inputs, None);
            return gradient_checkpointing::layer(layer, hidden, inputs, forward);
        }
    };
    forward(layer, hidden, inputs, cache)
}
