//! Adapters on the parameters of any Burn module.
//!
//! A method implements [`Adapter`] (what a parameter becomes) and [`Tuner`] (its `adapter_config.json`, and the
//! [`Plan`] that it makes for a model). [`PeftModel`] holds a frozen base with named adapters: it adds, loads,
//! switches, saves and merges them. Layers that take adapters in without a dense update are in [`nn`] and call
//! [`seam`]; every other layer sees the composed weight. [`checkpoint`] reads and writes safetensors.
//!
//! This crate knows neither a method nor a model.

mod adapter;
mod after_step;
mod draws;
mod erased;
mod error;
pub mod gradient_checkpointing;
pub mod laws;
pub mod nn;
pub mod ops;
mod owed;
mod projected;
mod prompt;
pub mod seam;
mod site;
pub mod slots;

pub use adapter::{Adapter, AdapterSet, AnyAdapter, Kept, NamedAdapter};
pub use after_step::AfterStep;
pub use error::{LoadReport, PeftError, Result, nearest};
pub use projected::ProjectedPair;
pub use prompt::{GatedPrompt, KeyValue, Prompt};
pub use site::{Layout, PathStack, PromptShape, Site, SiteKind, Sites};
mod init;
mod plan;
mod rows;
mod status;
mod targets;
mod torch_random;
mod update;
mod vocabulary;
pub use init::{Init, stable_hash};
pub use plan::{BaseTensor, Build, Plan, PlanRow, thousands};
pub use targets::{
    ALL_LINEAR, Indices, Names, Patterns, Selected, Selection, WholePath, contains_module, is_saved_whole, is_suffix,
    no_parameter_matched,
};
pub use torch_random::TorchGenerator;
pub mod checkpoint;
mod folder;
mod model;
mod replacement;
pub mod shared;
pub mod state;
mod tuner;
pub use folder::{
    AdapterFolder, CONFIG_FILE, ENCODER_FILE, LABELS_FILE, Labels, WEIGHTS_FILE, read_config, write_folder,
    write_folder_with_encoder,
};
pub use model::{AdapterInfo, DEFAULT_ADAPTER, Describe, PeftModel, REFERENCE_VERSION};
pub use replacement::{Replacement, replacement_row, replacement_row_beside_prompt, replacement_row_with_head};
pub use status::{AdapterStatus, LayerStatus, ModelStatus};
pub use tuner::{About, KnownMethod, Method, Methods, Tuner, is_off, refuse_unknown};
pub use update::Update;
