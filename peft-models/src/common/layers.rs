//! The layers of a stack: how they are called, so that gradient checkpointing can come in, and how they are repeated.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::forward::gradient_checkpointing::{self, Inputs};
use peft_core::{PeftError, Result};

use crate::common::cache::{KvCache, SourceCache};

/// Runs layer `at` of a stack. Within a [`gradient_checkpointing::scope`] only its inputs are kept, and the backward pass
/// computes it again.
///
/// `inputs` are what the layer reads beside the hidden state: masks, rotary tables. `forward` may capture nothing that has
/// gradients. A layer whose cache outlives the forward is not computed again: what it put into the cache must stay.
///
/// # Shapes
/// - hidden, output: `[batch, seq, d_model]`
pub fn run<L: Module + 'static, I: Inputs>(
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

/// [`run`] for a decoder layer that reads an encoded source, whose keys and values have a cache too.
///
/// A source cache outlives the forward, so that a layer that has one is not computed again either.
pub fn run_decoder<L: Module + 'static, I: Inputs>(
    layer: (&L, usize),
    hidden: Tensor<3>,
    inputs: &I,
    (cache, source_cache): (Option<&mut KvCache>, Option<&mut SourceCache>),
    forward: impl Fn(&L, Tensor<3>, &I, (Option<&mut KvCache>, Option<&mut SourceCache>)) -> Tensor<3> + Send + 'static,
) -> Tensor<3> {
    match source_cache {
        Some(source_cache) => forward(layer.0, hidden, inputs, (cache, Some(source_cache))),
        None => run(layer, hidden, inputs, cache, move |layer, hidden, inputs, cache| {
            forward(layer, hidden, inputs, (cache, None))
        }),
    }
}

/// Puts the entries of a list of layers in another order, in which some may come several times: what
/// [`Adaptable::repeat_layers`](peft_core::Adaptable::repeat_layers) does to layers, and to what is known of each.
///
/// # Errors
/// If there is no layer of such a number.
pub fn reorder<T: Clone>(layers: &mut Vec<T>, order: &[usize]) -> Result<()> {
    let count = layers.len();
    if let Some(absent) = order.iter().find(|it| **it >= count) {
        let reason = format!("names the layer {absent}, but the model has {count}, which count from 0");
        return Err(PeftError::config("layer_replication", reason));
    }
    *layers = order.iter().map(|it| layers[*it].clone()).collect();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_may_come_twice_and_must_be_there() {
        let mut layers = vec!["a", "b", "c"];
        reorder(&mut layers, &[0, 1, 1, 2]).unwrap();
        assert_eq!(layers, ["a", "b", "b", "c"]);
        let error = reorder(&mut layers, &[0, 4]).unwrap_err().to_string();
        assert_eq!(error, "`layer_replication` names the layer 4, but the model has 4, which count from 0");
    }
}
