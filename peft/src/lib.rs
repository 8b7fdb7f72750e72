//! Parameter-efficient fine-tuning on Burn, in the files of Hugging Face PEFT.
//!
//! This crate brings the others together: [`peft_core`] as `core`, [`peft_models`] as `models`, [`peft_tasks`] as
//! `tasks`, and the methods by feature. [`device`] picks a backend at run time, [`load`] finds models and adapters by
//! name, [`run`] makes a task of a data file, [`folder`] looks into adapter folders, combines, converts and exports them,
//! [`forward`](mod@forward) computes one pass from files to files, and [`memory`] tells the allocator what training is
//! like. The `peft` command is built on these.

#[cfg(not(any(feature = "flex", feature = "wgpu", feature = "cuda", feature = "tch")))]
compile_error!(
    "peft needs a backend: switch on at least one of its features `flex` (CPU), `wgpu` (GPUs), `vulkan` (`wgpu` with \
     SPIR-V), `cuda` (NVIDIA) and `tch` (libtorch)"
);

#[cfg(feature = "cli")]
pub mod cli;
pub mod device;
pub mod folder;
pub mod load;
pub mod memory;
mod methods;
pub mod prelude;
pub mod run;
pub mod task;

pub use peft_core as core;
#[cfg(feature = "ia3")]
pub use peft_ia3 as ia3;
#[cfg(feature = "lora")]
pub use peft_lora as lora;
pub use peft_models as models;
#[cfg(feature = "prompt")]
pub use peft_prompt as prompt;
pub use peft_tasks as tasks;

pub use methods::methods;
pub use run::registry::Registry;
