//! A base model of whatever class.

use burn::module::{Module, ModuleDisplay};
use peft_core::Adaptable;
use peft_core::erased::AnyModule;

/// A base model whose class is forgotten: it takes adapters, and can be merged and written.
pub type AnyModel = AnyModule<dyn Adaptable>;

/// Forgets the class of a model.
pub fn any_model<M: Module + ModuleDisplay + Adaptable + Sync + 'static>(model: M) -> AnyModel {
    AnyModule::new(model, |it| it, |it| it)
}
