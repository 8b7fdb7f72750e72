//! LoRA on a network that has never heard of adapters: two plain `burn::nn` layers of your own.
//!
//! The network learns a sine. Then the world changes, the sine gets a slope, and a LoRA adapter learns the difference
//! while the network stays frozen.
//!
//! ```text
//! cargo run -p peft-examples --example adapt_any_module
//! ```

#![allow(clippy::print_stdout)]

use std::error::Error;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor, activation};
use peft::lora::LoraConfig;
use peft_core::PeftModel;

/// Nothing in here comes from us. Burn lets a parameter say what its value is, and that is where adapters sit.
#[derive(Module, Debug)]
struct Net {
    hidden: Linear,
    output: Linear,
}

impl Net {
    fn new(device: &Device) -> Self {
        Self { hidden: LinearConfig::new(1, 32).init(device), output: LinearConfig::new(32, 1).init(device) }
    }

    /// Call `self.hidden.adapted(input)`, from `peft_core::forward::Adapted`, to spare the dense update of the weight;
    /// `forward` gives the same numbers.
    fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        self.output.forward(activation::tanh(self.hidden.forward(input)))
    }

    fn loss(&self, input: &Tensor<2>, wanted: &Tensor<2>) -> Tensor<1> {
        (self.forward(input.clone()) - wanted.clone()).square().mean()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = peft::device::device("flex")?;
    device.seed(1);
    let points: Vec<f32> = (0..64).map(|at| at as f32 / 32.0 - 1.0).collect();
    let input = Tensor::<1>::from_floats(points.as_slice(), &device).reshape([64, 1]);
    let sine = input.clone().mul_scalar(3.0).sin();
    let sloped = sine.clone() + input.clone();

    // The base: trained as a whole, as usual, then taken off the tape.
    let base = train(Net::new(&device.clone().autodiff()), 0.02, 300, &input, &sine).valid();
    println!("base     on the sine   {:.5}", value(base.loss(&input, &sine)));
    let base_loss = value(base.loss(&input, &sloped));
    println!("base     on the slope  {base_loss:.5}");

    // The layers' paths are the names of the fields: `hidden`, `output`.
    let mut model = PeftModel::of_module(base);
    println!("{}", model.add_adapter_as("slope", LoraConfig::new(4, 8.0).targets(["hidden", "output"]), 0)?);
    let trained = train(model.model().clone(), 0.02, 300, &input, &sloped);
    model.set_model(trained);
    let adapted_loss = value(model.loss(&input, &sloped));
    println!("adapted  on the slope  {adapted_loss:.5}");
    assert!(adapted_loss < 0.1 * base_loss, "the adapter must have learnt the slope");

    // Off, the adapter is not there at all: the base computes, bit for bit.
    model.set_enabled(false);
    let disabled_loss = value(model.loss(&input, &sloped));
    println!("disabled on the slope  {disabled_loss:.5}");
    assert!(disabled_loss == base_loss, "a disabled adapter must leave no trace");

    // Merged, the result is a plain `Net` again. The model with the adapter stays as it is.
    model.set_enabled(true);
    let merged: Net = model.merge()?;
    let merged_loss = value(merged.loss(&input, &sloped));
    println!("merged   on the slope  {merged_loss:.5}");
    assert!((merged_loss - adapted_loss).abs() < 1e-6, "merging must not change the numbers");
    Ok(())
}

/// Trains whatever has gradients: the whole network, or its adapter.
fn train(mut net: Net, rate: f64, steps: usize, input: &Tensor<2>, wanted: &Tensor<2>) -> Net {
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    for _ in 0..steps {
        let gradients = GradientsParams::from_grads(net.loss(input, wanted).backward(), &net);
        net = optimizer.step(rate, net, gradients);
    }
    net
}

fn value(loss: Tensor<1>) -> f32 {
    loss.into_scalar()
}
