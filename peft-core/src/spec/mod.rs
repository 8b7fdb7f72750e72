//! What a model offers to adapters: its parameters with their paths, kinds and shapes.

pub mod keys;
pub mod labels;
pub mod model;
mod other_names;
pub mod param;
pub mod path;
pub mod walk;

pub use crate::ops::Layout;
pub use keys::{KEY_PREFIX, is_method_tensor, is_wrapped_by_torch, names_another_adapter, plain_key};
pub(crate) use keys::{WRAPPED, WRAPPED_ROWS, frozen_path};
pub use labels::Labels;
pub use model::{Adaptable, ModelSpec, PromptShape, base_reference};
pub(crate) use other_names::key_of;
pub use param::{ParamKind, ParamSpec};
pub use path::{PathStack, contains_module, is_suffix};
pub(crate) use path::{enclosing, join, short_name};
pub use walk::{MapParams, VisitParams, map_params, visit_params};
