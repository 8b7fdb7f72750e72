//! LoRA's relatives, one file each.

pub mod adalora;
pub mod boft;
pub(crate) mod dense_update;
pub mod fourierft;
pub mod hira;
pub mod ln_tuning;
pub mod loha;
pub mod lokr;
pub mod miss;
pub mod oft;
pub mod randlora;
pub(crate) mod rotation;
pub mod shira;
pub mod vera;
