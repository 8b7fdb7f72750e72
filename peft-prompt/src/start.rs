//! Starting values of virtual tokens: random, from the vocabulary, from a text.

use burn::tensor::{Int, Tensor, TensorData};
use peft_core::{BaseTensor, Init};
use rand::RngExt;

use burn::module::Param;

/// Where the vectors of virtual tokens start.
#[derive(Debug, Clone)]
pub(crate) enum PromptInit {
    /// Normal numbers.
    Random,
    /// Rows of the embedding matrix, drawn at random.
    Vocabulary,
    /// Rows of the embedding matrix, these over and over.
    Words(Vec<i64>),
    /// These numbers.
    Given(TensorData),
}

impl PromptInit {
    /// `[rows, width]`
    pub(crate) fn values(&self, rows: usize, width: usize, base: BaseTensor, init: &mut Init) -> Param<Tensor<2>> {
        let ids: Vec<i64> = match self {
            Self::Random => return init.normal([rows, width], 1.0),
            Self::Given(data) => {
                let tensor = Tensor::<2>::from_data(data.clone(), &init.device().clone().without_autodiff());
                return init.given(tensor);
            }
            Self::Vocabulary => {
                let vocabulary = base.param().shape[0] as i64;
                (0..rows).map(|_| init.rng().random_range(0..vocabulary)).collect()
            }
            Self::Words(ids) => ids.iter().copied().cycle().take(rows).collect(),
        };
        let table: Tensor<2> = base.tensor();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [rows]), &table.device());
        init.given(table.select(0, ids))
    }
}
