//! Embedding matrices.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Int, Tensor};

use super::lazy::{INITIALIZER_RANGE, lazy, normal};
use super::linear::Projection;
use crate::forward;
use crate::forward::gradient_checkpointing::{Exchange, Inputs};

/// An embedding matrix: a vector for every token, or every position.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[rows, d_model]`
    pub weight: Param<Tensor<2>>,
    padding: Option<usize>,
    scale: f64,
}

impl Embedding {
    /// A lazy table.
    pub fn new(rows: usize, d_model: usize, device: &Device) -> Self {
        Self { weight: normal([rows, d_model], INITIALIZER_RANGE, device), padding: None, scale: 1.0 }
    }

    /// A row that gets no gradient: torch's `padding_idx`.
    pub fn with_padding(mut self, padding: Option<usize>) -> Self {
        self.padding = padding;
        self
    }

    /// The vectors that are looked up are multiplied by this, what an adapter adds to them too. The table as a head is not.
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// How many vectors there are.
    pub fn rows(&self) -> usize {
        self.weight.lazy_shape().dims::<2>()[0]
    }

    /// # Shapes
    /// - ids: `[batch, seq]`
    /// - output: `[batch, seq, d_model]`
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let vectors = forward::embedding(ids, &self.weight, self.padding);
        if self.scale == 1.0 { vectors } else { vectors.mul_scalar(self.scale) }
    }

    /// The table read as the output layer of a tied head.
    ///
    /// An adapter on the table takes no part here, as in the reference's live forward, unless it says so (trainable
    /// tokens do). Merged into the table it does, in the reference as well: there is only one tensor.
    ///
    /// # Shapes
    /// - hidden: `[.., d_model]`
    /// - output: `[.., rows]`
    pub fn attend<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        forward::attend(hidden, &self.weight)
    }

    /// The same for a head that finds the table by its place in the model: one that is trained whole takes part as well.
    ///
    /// # Shapes
    /// As [`Embedding::attend`].
    pub fn attend_in_place<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        forward::attend_in_place(hidden, &self.weight)
    }

    /// The table as it is stored, `[rows, d_model]`, if [`Embedding::attend`] is a product with it: no active adapter moves it along.
    pub fn bare_weight(&self) -> Option<Tensor<2>> {
        let moved = self.weight.reparameterization().is_some_and(forward::moves_tied_head);
        (!moved).then(|| forward::unadapted(&self.weight))
    }

    /// The whole table, `[rows, d_model]`, through the active adapters.
    pub fn table(&self) -> Tensor<2> {
        forward::value(&self.weight)
    }

    /// An output layer of its own that starts as the table and shares its memory.
    pub fn as_head(&self) -> Projection {
        if self.weight.is_initialized() {
            return Projection { weight: Param::initialized(ParamId::new(), self.weight.base()), bias: None };
        }
        let table = self.weight.clone();
        let shape = table.lazy_shape().dims::<2>();
        Projection {
            weight: lazy(shape, &table.lazy_device(), move |device| table.base().to_device(device)),
            bias: None,
        }
    }
}

impl Inputs for Embedding {
    fn exchange(self, exchange: &mut Exchange) -> Self {
        self.map(exchange)
    }
}
