//! Adapters on the parameters of any Burn module.
//!
//! A method implements [`Adapter`] (what a parameter becomes) and [`PeftConfig`] (its `adapter_config.json`, and the
//! [`Plan`] that it makes for a model). [`PeftModel`] holds a frozen base with named adapters: it adds, loads,
//! switches, saves and merges them. Layers that take adapters in without a dense update are in [`nn`] and call
//! [`mod@forward`]; every other layer sees the composed weight. [`checkpoint`] reads and writes safetensors.
//!
//! This crate knows neither a method nor a model.

/// The version of Burn that this crate is built on.
pub use burn;

pub mod adapter;
pub mod config;
mod context;
mod device;
pub mod erased;
mod error;
pub mod files;
pub mod forward;
pub mod launches;
pub mod laws;
mod mapped;
mod memory;
pub mod model;
pub mod nn;
pub mod ops;
mod order;
pub mod plan;
pub mod quant;
pub mod sharding;
pub mod spec;

pub use adapter::prompt::{GatedPrompt, KeyValue, Prompt};
pub use adapter::{
    Adapter, AdapterSet, AnyAdapter, BiasAdapter, GatedAdapter, NamedAdapter, ParamRole, PromptAdapter, TableAdapter,
    slots,
};
pub use config::peft_config::{
    AfterStep, MethodInfo, MethodRegistry, PeftConfig, RegisteredMethod, Tuner, is_off, refuse_unknown,
};
pub use config::projected::{GradientProjection, ProjectedPair};
pub use device::is_eager;
pub use error::{LoadReport, PeftError, Result, brief, nearest, printable};
pub use files::checkpoint;
pub use files::folder::{
    AdapterFolder, CONFIG_FILE, ENCODER_FILE, LABELS_FILE, WEIGHTS_FILE, read_config, write_folder, write_folder_in,
    write_folder_with_encoder,
};
pub use forward::gradient_checkpointing;
pub use memory::total_memory;
pub use model::peft_model::{AdapterInfo, DEFAULT_ADAPTER, PeftModel, REFERENCE_VERSION};
pub use model::state;
pub use model::status::{AdapterStatus, LayerStatus, ModelStatus};
pub use model::update::Update;
pub use plan::init::{Init, stable_hash};
pub use plan::memory::check_memory;
pub use plan::plan::{AdapterBuilder, BaseTensor, Plan, PlanRow, thousands};
pub use plan::replacement::{Replacement, replacement_row, replacement_row_beside_prompt, replacement_row_with_head};
pub use plan::targets::{
    ALL_LINEAR, Indices, Names, Patterns, Selected, Selection, WholePath, is_saved_whole, no_parameter_matched,
};
pub use plan::torch_random::TorchGenerator;
pub use spec::{
    Adaptable, Labels, Layout, MapParams, ModelSpec, ParamKind, ParamSpec, PathStack, PromptShape, VisitParams,
    base_reference, contains_module, is_suffix, map_params, visit_params,
};
