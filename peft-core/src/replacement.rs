//! A trainable copy in place of a frozen parameter: `modules_to_save` and trained biases.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::adapter::{Adapter, AnyAdapter};
use crate::erased::with_rank;
use crate::init::Init;
use crate::plan::{BaseTensor, Build, PlanRow};
use crate::site::Site;

/// A copy of a parameter that is trained and saved whole. The frozen original stays where it is.
#[derive(Module, Debug)]
pub struct Replacement<const D: usize> {
    /// The copy, as the file holds it.
    pub value: Param<Tensor<D>>,
    key: String,
    transposed: bool,
}

impl<const D: usize> Adapter for Replacement<D> {
    fn weight<const E: usize>(&self, weight: Tensor<E>, _base: &Tensor<E>, _site: &Site) -> Tensor<E> {
        let value = self.value.val();
        let value = if self.transposed { value.transpose() } else { value };
        value.reshape(weight.dims())
    }

    fn file_key(&self, _site: &Site, _field: &str) -> String {
        self.key.clone()
    }
}

#[derive(Debug)]
struct CopyOf {
    key: String,
}

impl Build for CopyOf {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let transposed = base.site().is_transposed_on_disk();
        let rank = base.site().shape.len();
        with_rank!(rank, D => {
            let value = base.tensor::<D>();
            let value = if transposed { value.transpose() } else { value };
            AnyAdapter::new(Replacement { value: init.given(value), key: self.key.clone(), transposed })
        })
    }
}

/// A row that trains a copy of a parameter and saves it under `key`.
pub fn replacement_row(site: &Arc<Site>, key: String) -> PlanRow {
    PlanRow {
        site: site.clone(),
        label: "trained whole".into(),
        parameters: site.len(),
        build: Arc::new(CopyOf { key }),
    }
}
