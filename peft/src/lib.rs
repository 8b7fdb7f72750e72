//! Parameter-efficient fine-tuning on Burn, in the files of Hugging Face PEFT.
//!
//! This crate brings the others together: [`peft_core`] as `core`, [`peft_models`] as `models`, [`peft_tasks`] as
//! `tasks`, and the methods by feature. Most programs start with `use peft::prelude::*;`.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`device`](mod@device) | picks a backend at run time |
//! | [`load`] | finds models and adapters by name, and puts adapters on a base |
//! | [`task`] | kinds of tasks: which model each loads, what it makes of a data file |
//! | [`run`](mod@run) | a run as data; training, evaluation and single passes for any kind of task; the [`Registry`] |
//! | [`folder`] | adapter folders: combined, converted, exported, inspected, merged into their base |
//! | `cli` | the `peft` command, also for programs with a registry of their own |
//! | `mpi` | several processes that train together (feature `mpi`) |
//! | [`memory`] | tells the allocator what training is like |

#[cfg(not(any(feature = "flex", feature = "wgpu", feature = "cuda", feature = "tch", feature = "cube-cpu")))]
compile_error!(
    "peft needs a backend: switch on at least one of its features `flex` (CPU), `wgpu` (GPUs), `vulkan` (`wgpu` with \
     SPIR-V), `metal` (`wgpu` with MSL), `cuda` (NVIDIA), `tch` (libtorch) and `cube-cpu` (kernels for cards on the CPU)"
);

#[cfg(feature = "cli")]
pub mod cli;
pub mod device;
pub mod folder;
pub mod load;
pub mod memory;
mod methods;
#[cfg(feature = "mpi")]
pub mod mpi;
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

pub use peft_core::burn;

pub use methods::methods;
pub use run::registry::Registry;

/// The programs of the README and of the book's first page, so that they are compiled.
#[cfg(all(doctest, feature = "flex", feature = "lora"))]
mod documents {
    #[doc = include_str!("../../README.md")]
    struct Readme;

    #[doc = include_str!("../../docs/src/library.md")]
    struct Library;
}
