//! A trainable copy in place of a frozen parameter: `modules_to_save` and trained biases.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::adapter::{Adapter, AnyAdapter, ParamRole, TableAdapter};
use crate::erased::with_rank;
use crate::plan::init::Init;
use crate::plan::plan::{AdapterBuilder, BaseTensor, PlanRow};
use crate::spec::{KEY_PREFIX, ParamKind, ParamSpec};

/// A copy of a parameter that is trained and saved whole. The frozen original stays where it is.
#[derive(Module, Debug)]
pub struct Replacement<const D: usize> {
    /// The copy, as the file holds it.
    pub value: Param<Tensor<D>>,
    key: String,
    transposed: bool,
    beside_prompt: bool,
    moves_head: bool,
    constant: bool,
}

impl<const D: usize> Adapter for Replacement<D> {
    fn weight<const E: usize>(&self, weight: Tensor<E>, _base: &Tensor<E>, _param: &ParamSpec) -> Tensor<E> {
        let value = self.value.val();
        let value = if self.transposed { value.transpose() } else { value };
        value.reshape(weight.dims())
    }

    fn as_table(&self) -> Option<&dyn TableAdapter> {
        Some(self)
    }

    /// A buffer of a module that is saved whole goes along.
    fn role(&self, _field: &str) -> ParamRole {
        if self.constant { ParamRole::Constant } else { ParamRole::Trained }
    }

    /// The reference does not wrap a model again that it puts a prompt before.
    fn key_prefix(&self) -> &'static str {
        prefix(self.beside_prompt)
    }

    fn file_key(&self, _param: &ParamSpec, _field: &str) -> String {
        self.key.clone()
    }
}

impl<const D: usize> TableAdapter for Replacement<D> {
    fn moves_tied_head(&self) -> bool {
        self.moves_head
    }

    fn replaces_table(&self) -> bool {
        true
    }
}

/// What plans say of such a parameter.
const TRAINED_WHOLE: &str = "trained whole";

impl PlanRow {
    /// Whether the parameter gets a copy that is trained and saved whole.
    pub fn is_whole(&self) -> bool {
        self.label == TRAINED_WHOLE
    }
}

fn prefix(beside_prompt: bool) -> &'static str {
    if beside_prompt { "base_model." } else { KEY_PREFIX }
}

#[derive(Debug)]
struct CopyOf {
    key: String,
    beside_prompt: bool,
    moves_head: bool,
}

impl AdapterBuilder for CopyOf {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let transposed = base.param().is_transposed_on_disk();
        let constant = base.param().kind == ParamKind::Buffer;
        let rank = base.param().shape.len();
        with_rank!(rank, D => {
            let value = base.tensor::<D>();
            let value = if transposed { value.transpose() } else { value };
            let (value, key) = (init.given(value).set_require_grad(!constant), self.key.clone());
            let (beside_prompt, moves_head) = (self.beside_prompt, self.moves_head);
            AnyAdapter::new(Replacement { value, key, transposed, beside_prompt, moves_head, constant })
        })
    }

    fn tensors(&self, param: &ParamSpec) -> Option<Vec<(String, Vec<usize>)>> {
        Some(vec![(format!("{}{}", prefix(self.beside_prompt), self.key), param.shape_on_disk())])
    }
}

/// A row that trains a copy of a parameter and saves it under `key`.
pub fn replacement_row(param: &Arc<ParamSpec>, key: String) -> PlanRow {
    row(param, CopyOf { key, beside_prompt: false, moves_head: false })
}

/// The same for a table whose tied head moves along.
pub fn replacement_row_with_head(param: &Arc<ParamSpec>, key: String) -> PlanRow {
    row(param, CopyOf { key, beside_prompt: false, moves_head: true })
}

/// The same in the file of a prompt, where `key` has a shorter prefix.
pub fn replacement_row_beside_prompt(param: &Arc<ParamSpec>, key: String) -> PlanRow {
    row(param, CopyOf { key, beside_prompt: true, moves_head: false })
}

fn row(param: &Arc<ParamSpec>, copy: CopyOf) -> PlanRow {
    let parameters = if param.kind == ParamKind::Buffer { 0 } else { param.len() };
    PlanRow { param: param.clone(), label: TRAINED_WHOLE.into(), parameters, build: Arc::new(copy) }
}

/// Whether an adapter on a parameter of this rank is a copy that is trained whole.
pub(crate) fn is_replacement(adapter: &AnyAdapter, rank: usize) -> bool {
    with_rank!(rank, D => adapter.downcast_ref::<Replacement<D>>().is_some())
}
