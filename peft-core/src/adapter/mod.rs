//! Adapters: the trait that a method implements, and the set of named adapters that is attached to a parameter.
//!
//! Burn's `Param` has one slot for a [`Reparameterization`](burn::module::Reparameterization). An [`AdapterSet`] takes
//! it. A layer that knows nothing of adapters reads `weight.val()` and gets the composed dense weight; a layer of ours
//! calls [`crate::forward`] and takes the low-rank path, without a dense update and without a dense gradient.

mod any;
mod below;
mod method;
pub(crate) mod mixed_batch;
pub(crate) mod pending_bias;
pub mod prompt;
mod set;
pub mod slots;

pub use any::AnyAdapter;
pub(crate) use below::Frozen;
pub use below::{EmbeddingBelow, LinearBelow};
pub use method::{Adapter, BiasAdapter, GatedAdapter, ParamRole, PromptAdapter, TableAdapter};
pub use set::{AdapterSet, NamedAdapter};
