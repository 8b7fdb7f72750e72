//! How many operations a training step of LoRA needs, for its share of what the card can do.

use crate::bench::shapes::Shape;

/// Multiplications and additions of a step of a decoder in which `trainable` elements of adapters are trained.
///
/// With `T` tokens in `b` rows of `s`, `P` elements in the frozen matrices of products (the head among them, a table in
/// which tokens are looked up not), `A` elements in the adapters, `L` layers whose heads are `D` wide together:
///
/// - frozen matrices: `2·P·T` forward and `2·P·T` for the gradient of their inputs; nothing for their own, as they have none.
///   Together `4·P·T`.
/// - adapters: `2·A·T` forward, and as much for the gradients of their inputs and of themselves. Together `6·A·T`.
/// - attention: two products of `2·s²·D` a row and layer, of which half is behind the causal mask, and twice that
///   backward. Together `6·b·L·s²·D`.
///
/// Nothing else is counted, and nothing that is computed a second time. `None` for what is no decoder.
pub(crate) fn of_step(shape: &Shape, trainable: u64) -> Option<f64> {
    let decoder = Decoder::of(shape.config)?;
    let (batch, seq) = (shape.batch as f64, shape.seq as f64);
    let tokens = batch * seq;
    let frozen = 4.0 * decoder.matrices as f64 * tokens;
    let adapters = 6.0 * trainable as f64 * tokens;
    let attention = 6.0 * batch * decoder.layers as f64 * seq * seq * decoder.heads_width as f64;
    Some(frozen + adapters + attention)
}

/// What counts of a decoder.
struct Decoder {
    /// Elements of the matrices that tokens are multiplied with.
    matrices: u64,
    layers: u64,
    heads_width: u64,
}

impl Decoder {
    fn of(config: &str) -> Option<Self> {
        let number = |name| number(config, name);
        if config.contains("\"gpt2\"") {
            let (width, layers) = (number("n_embd")?, number("n_layer")?);
            // c_attn is 3 wide, c_proj 1, c_fc and the second c_proj 4 each.
            let matrices = layers * 12 * width * width + width * number("vocab_size")?;
            return Some(Self { matrices, layers, heads_width: width });
        }
        if config.contains("\"llama\"") {
            let (width, layers, heads) =
                (number("hidden_size")?, number("num_hidden_layers")?, number("num_attention_heads")?);
            let keys = width / heads * number("num_key_value_heads")?;
            let layer = 2 * width * width + 2 * width * keys + 3 * width * number("intermediate_size")?;
            return Some(Self { matrices: layers * layer + width * number("vocab_size")?, layers, heads_width: width });
        }
        None
    }
}

/// A field of one of our own configurations, which are flat.
fn number(config: &str, name: &str) -> Option<u64> {
    let (_, rest) = config.split_once(&format!("\"{name}\": "))?;
    let digits = rest.find(|it: char| !it.is_ascii_digit())?;
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes::SHAPES;

    fn shape(name: &str) -> Shape {
        *SHAPES.iter().find(|it| it.name == name).expect("a shape of the bench")
    }

    fn matrices(name: &str) -> u64 {
        Decoder::of(shape(name).config).expect("a decoder").matrices
    }

    /// Parameters of the published models, without those that are in no product.
    #[test]
    fn matrices_are_those_of_the_published_models() {
        // 124,439,808 less the positions, the norms and the biases.
        assert_eq!(matrices("gpt2-124m"), 124_439_808 - 1024 * 768 - (25 * 2 * 768 + 12 * (3 + 1 + 4 + 1) * 768));
        // 134,515,008 less the norms.
        assert_eq!(matrices("smollm2-135m"), 134_515_008 - 61 * 576);
        // 3,212,749,824 less the norms.
        assert_eq!(matrices("llama-3.2-3b"), 3_212_749_824 - 57 * 3072);
        // 1,100,048,384 less the norms and the table, for the head is not tied to it.
        assert_eq!(matrices("llama-1.1b"), 1_100_048_384 - 45 * 2048 - 32_000 * 2048);
        assert!(of_step(&shape("vit-base"), 0).is_none());
    }

    #[test]
    fn a_step_is_the_sum_of_its_parts() {
        let shape = Shape { batch: 2, seq: 8, ..shape("gpt2-124m") };
        let frozen = 4.0 * matrices("gpt2-124m") as f64 * 16.0;
        let attention = 6.0 * 2.0 * 12.0 * 64.0 * 768.0;
        assert_eq!(of_step(&shape, 0), Some(frozen + attention));
        assert_eq!(of_step(&shape, 100), Some(frozen + attention + 6.0 * 100.0 * 16.0));
    }
}
