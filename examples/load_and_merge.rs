//! Load an adapter into a base, switch it off and on, and fold it into the weights.
//!
//! ```text
//! cargo run --release -p peft-examples --example load_and_merge -- MODEL ADAPTER
//! ```

#![allow(clippy::print_stdout)] // an example may speak

use peft::core::files::checkpoint::{FloatType, model_tensors, write_tensors};
use peft::core::{PeftError, PeftModel, Result};
use peft::models::auto::load_causal_lm;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base, adapter] = args.as_slice() else {
        return Err(PeftError::Invalid("give MODEL ADAPTER".into()));
    };
    let device = peft::device::device("flex")?;
    let (base, _report) = load_causal_lm(base, &device)?;
    let mut model = PeftModel::new(base);

    // Any method, any name; more adapters may follow, and `set_active` chooses among them.
    model.load_adapter(adapter, "mine", &peft::methods())?;
    model.set_active(&["mine"])?;
    model.set_enabled(false); // now the base computes, bit for bit
    model.set_enabled(true);

    let merged = model.merge()?; // a plain model; `model` stays as it is
    let folder = std::env::temp_dir().join("peft-merged");
    write_tensors(folder.join("model.safetensors"), model_tensors(&merged), FloatType::F32)?;
    model.save_adapter(folder.join("adapter"), "mine")?; // and the adapter again, as it came
    println!("written to {}", folder.display());
    Ok(())
}
