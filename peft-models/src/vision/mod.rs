//! Models that read pictures.
//!
//! Fields have the names of published checkpoints, which are those of transformers 4. Release 5 calls modules of these models
//! otherwise in memory; each file has its names as `OTHER_NAMES`, so that adapters made with it are read.

pub(crate) mod positions;
pub mod segformer;
mod size;
pub mod swin;
pub mod vit;

pub use size::Size;
