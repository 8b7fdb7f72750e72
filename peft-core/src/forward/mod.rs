//! The calls by which a layer lets adapters take part: the factored side of the weight seam.
//!
//! `linear(x, &self.weight, …)` computes what `x · weight.val() + bias` would, but through the adapters' own forward:
//! no dense update is formed, the frozen weight gets no gradient, and dropout on the adapter's input has its place.

pub(crate) mod draws;
pub mod gradient_checkpointing;

use std::cell::OnceCell;

use burn::module::{Module, Param};
use burn::tensor::kind::Basic;
use burn::tensor::{Int, Tensor};

use crate::adapter::mixed_batch;
use crate::adapter::pending_bias;
use crate::adapter::prompt::{GatedPrompt, Prompt};
use crate::adapter::slots;
use crate::adapter::{AdapterSet, AnyAdapter};
use crate::nn::Dropout;
use crate::ops::{self, LowRank};
use crate::spec::{Layout, ParamSpec};

/// `y = x W + b` through the active adapters of `weight`.
///
/// Leading axes are folded into one, so that the product is a single matrix product.
///
/// # Shapes
/// - input: `[.., in]`
/// - weight: `[out, in]` or `[in, out]`, as `layout` says
/// - output: `[.., out]`
pub fn linear<const D: usize>(
    input: Tensor<D>,
    weight: &Param<Tensor<2>>,
    bias: Option<&Param<Tensor<1>>>,
    layout: Layout,
) -> Tensor<D> {
    let sets = [weight.reparameterization(), bias.and_then(|it| it.reparameterization())];
    mixed_batch::each(&sets, input, |input| through(input, weight, bias, layout))
}

/// Computes a layer so that rows of the batch may use adapters of their own, as
/// [`PeftModel::with_adapter_names`](crate::PeftModel::with_adapter_names) gives them: once for each group of rows with the same ones.
///
/// For layers that read whole parameters, `weight.val()`: norms, biases, convolutions, also those of `burn::nn`. Otherwise
/// it is `forward(layer, input)`.
///
/// # Shapes
/// - input, output: `[rows, ..]`
pub fn by_rows<L: Module, const D: usize, const E: usize, K: Basic>(
    layer: &L,
    input: Tensor<D, K>,
    forward: impl Fn(&L, Tensor<D, K>) -> Tensor<E>,
) -> Tensor<E> {
    if mixed_batch::count().is_none() {
        return forward(layer, input);
    }
    let sets = slots::collect(layer);
    let sets: Vec<Option<&AdapterSet>> = sets.iter().map(Some).collect();
    mixed_batch::each(&sets, input, |input| forward(layer, input))
}

/// What a layer reads that computes with a whole parameter: `param.val()`, in single precision.
pub fn value<const D: usize>(param: &Param<Tensor<D>>) -> Tensor<D> {
    ops::to_f32(param.val())
}

/// What lies below the adapters: the frozen weight as it is kept, or what a reparameterization that is not ours makes of
/// its own.
pub(crate) fn unadapted(weight: &Param<Tensor<2>>) -> Tensor<2> {
    match weight.reparameterization::<AdapterSet>() {
        Some(_) => weight.base(),
        None => weight.val(),
    }
}

/// A tensor that a model computes once for all rows of the batch: once for each, if rows use adapters of their own and
/// layers that come behind must tell rows apart.
///
/// # Shapes
/// - shared: `[1, ..]`
/// - output: `[1 or rows, ..]`
pub fn for_each_row<const D: usize, K: Basic>(shared: Tensor<D, K>) -> Tensor<D, K> {
    let mut dims = shared.dims();
    match mixed_batch::count() {
        Some(count) if dims[0] == 1 => {
            dims[0] = count;
            shared.expand(dims)
        }
        _ => shared,
    }
}

/// The adapters of a parameter that act now.
fn acting(set: Option<&AdapterSet>) -> Vec<&AnyAdapter> {
    set.map(mixed_batch::acting).unwrap_or_default()
}

/// The layer through the adapters that act now.
fn through<const D: usize>(
    input: Tensor<D>,
    weight: &Param<Tensor<2>>,
    bias: Option<&Param<Tensor<1>>>,
    layout: Layout,
) -> Tensor<D> {
    let mut dims = input.dims();
    let d_in = dims[D - 1];
    let rows = dims[..D - 1].iter().product::<usize>();
    let input = input.reshape([rows, d_in]);
    let base = unadapted(weight);
    pending_bias::forget();
    let bias = bias.map(|it| it.val());

    let set = weight.reparameterization::<AdapterSet>();
    let adapters = acting(set);
    let output = match set {
        Some(set) if !adapters.is_empty() => {
            let base = Frozen::new(base);
            LinearBelow { base: &base, bias: bias.as_ref(), layout, param: set.param(), adapters: &adapters }
                .forward(input)
        }
        _ => ops::linear(input, base, bias, layout),
    };
    dims[D - 1] = output.dims()[1];
    output.reshape(dims)
}

/// Rows of a table, through the active adapters of `weight`.
///
/// # Shapes
/// - ids: `[batch, seq]`
/// - weight: `[rows, d_model]`
/// - output: `[batch, seq, d_model]`
///
/// `padding` is torch's `padding_idx`: its row gets no gradient.
pub fn embedding(ids: Tensor<2, Int>, weight: &Param<Tensor<2>>, padding: Option<usize>) -> Tensor<3> {
    let base = Frozen::new(unadapted(weight));
    let set = weight.reparameterization::<AdapterSet>();
    // Positions come once for all rows; with adapters of their own each row needs them.
    let ids = if set.is_some_and(|it| !mixed_batch::any(it).is_empty()) { for_each_row(ids) } else { ids };
    mixed_batch::each(&[set], ids, |ids| {
        let adapters = acting(set);
        match set {
            Some(set) if !adapters.is_empty() => {
                EmbeddingBelow { base: &base, padding, param: set.param(), adapters: &adapters }.forward(ids)
            }
            _ => ops::embedding(ids, base.kept.clone()),
        }
    })
}

/// What active adapters put before the input of a model whose table of words is `table`; the first of them in front.
///
/// `tasks` numbers the task of every row, `[batch]`. Prompts make rows longer, so all rows of a batch have the same ones.
pub fn prompt(table: &Param<Tensor<2>>, tasks: Option<&Tensor<1, Int>>) -> Option<Prompt> {
    let set = table.reparameterization::<AdapterSet>()?;
    let adapters = mixed_batch::acting_as(set, |it| mixed_batch::count().is_none() || it.prompt(tasks).is_some());
    adapters.into_iter().filter_map(|it| it.prompt(tasks)).reduce(Prompt::and)
}

/// Between how many tasks active prompts tell; above 1 an input must name the task of every row.
pub fn tasks<M: Module>(model: &M) -> usize {
    let most = |set: &AdapterSet| mixed_batch::any(set).into_iter().map(AnyAdapter::tasks).max();
    slots::collect(model).iter().filter_map(most).max().unwrap_or(1)
}

/// Says that the rows of the batch are these of before from now on, so that each keeps the adapter that
/// [`PeftModel::with_adapter_names`](crate::PeftModel::with_adapter_names) gave it. Generation calls this when it repeats, reorders or drops
/// rows; without such adapters it does nothing.
pub fn reorder_batch(rows: &[usize]) {
    mixed_batch::select(rows);
}

/// How many virtual tokens active adapters put before a model's input.
pub fn virtual_tokens<M: Module>(model: &M) -> usize {
    let of = |set: &AdapterSet| mixed_batch::any(set).into_iter().map(AnyAdapter::virtual_tokens).sum::<usize>();
    slots::collect(model).iter().map(of).sum()
}

/// Whether the rows of a batch are more than room for its texts: active adapters put something before each of them, or rows
/// have adapters of their own ([`PeftModel::with_adapter_names`](crate::PeftModel::with_adapter_names)). Where they are not, several short texts
/// may share a row, if attention keeps them apart. Gated prompts look the same from everywhere.
pub fn rows_matter<M: Module>(model: &M) -> bool {
    let in_front = |it: &AnyAdapter| it.virtual_tokens() > 0 || it.tasks() > 1 || it.prompt(None).is_some();
    mixed_batch::count().is_some() || slots::collect(model).iter().any(|set| set.active().any(in_front))
}

/// What attention sees of the active gated prompts beside its own tokens: `gate · softmax(q kᵀ / √d_head) v`, to be
/// projected and added as the layer does with its own. `output` is the weight of the layer's output projection.
///
/// # Shapes
/// - query: `[batch, heads, q_len, d_head]`
/// - project: virtual tokens `[1, virtual, d_model]` to their key and value, `[1, kv_heads, virtual, d_head]` each
/// - output: as the query
pub fn gated(
    output: &Param<Tensor<2>>,
    query: &Tensor<4>,
    project: impl Fn(Tensor<3>) -> (Tensor<4>, Tensor<4>),
) -> Option<Tensor<4>> {
    let set = output.reparameterization::<AdapterSet>()?;
    let attend = |query: &Tensor<4>, prompt: GatedPrompt| {
        let (key, value) = project(prompt.tokens);
        // Every row of the batch attends to the same tokens: its queries stand in one long row. (Widening the keys instead
        // costs memory, and the sum over the batch behind it comes out wrong on Burn 0.22.1's CubeCL backends, whose
        // `sum_dim` misreads a tensor with swapped dimensions.)
        let [batch, heads, q_len, d_head] = query.dims();
        let rows = query.clone().swap_dims(0, 1).reshape([1, heads, batch * q_len, d_head]);
        let scale = (d_head as f64).powf(-0.5);
        let seen = ops::attention(rows, key, value, None, scale, &Dropout::new(0.0));
        let seen = seen.reshape([heads, batch, q_len, d_head]).swap_dims(0, 1);
        seen * prompt.gate.reshape([1, 1, 1, 1])
    };
    let seen = |query: &Tensor<4>, adapters: Vec<&AnyAdapter>| {
        let prompts = adapters.into_iter().filter_map(AnyAdapter::gated);
        prompts.map(|it| attend(query, it)).reduce(|a, b| a + b)
    };
    if mixed_batch::count().is_none() {
        return seen(query, mixed_batch::acting(set));
    }
    mixed_batch::any(set).into_iter().find_map(AnyAdapter::gated)?;
    let sets = [Some(set)];
    Some(mixed_batch::each(&sets, query.clone(), |query| {
        seen(&query, mixed_batch::acting(set)).unwrap_or_else(|| query.zeros_like())
    }))
}

/// A table read as the output layer of a tied head, through those of its adapters that move it along.
///
/// # Shapes
/// - hidden: `[.., d_model]`
/// - weight: `[rows, d_model]`
/// - output: `[.., rows]`
pub fn attend<const D: usize>(hidden: Tensor<D>, weight: &Param<Tensor<2>>) -> Tensor<D> {
    let base = unadapted(weight);
    let Some(set) = weight.reparameterization::<AdapterSet>().filter(|it| moves_tied_head(it)) else {
        return ops::linear(hidden, base, None, Layout::OutIn);
    };
    let base = Frozen::new(base);
    mixed_batch::each(&[Some(set)], hidden, |hidden| {
        let mut moving = mixed_batch::acting(set);
        moving.retain(|it| it.moves_tied_head());
        let mut dims = hidden.dims();
        let rows = dims[..D - 1].iter().product::<usize>();
        let below =
            LinearBelow { base: &base, bias: None, layout: Layout::OutIn, param: set.param(), adapters: &moving };
        let output = below.forward(hidden.reshape([rows, dims[D - 1]]));
        dims[D - 1] = output.dims()[1];
        output.reshape(dims)
    })
}

/// Whether a head that is tied to a table with these adapters goes through one of them, for any row.
pub(crate) fn moves_tied_head(set: &AdapterSet) -> bool {
    mixed_batch::any(set).into_iter().any(AnyAdapter::moves_tied_head)
}

/// A frozen weight, read in single precision at most once.
struct Frozen {
    /// As it is kept, perhaps in half precision.
    kept: Tensor<2>,
    to_f32: OnceCell<Tensor<2>>,
}

impl Frozen {
    fn new(kept: Tensor<2>) -> Self {
        Self { kept, to_f32: OnceCell::new() }
    }

    fn to_f32(&self) -> &Tensor<2> {
        self.to_f32.get_or_init(|| ops::to_f32(self.kept.clone()))
    }
}

/// The linear layer below an adapter: the frozen one, with the adapters that apply before.
pub struct LinearBelow<'a> {
    base: &'a Frozen,
    bias: Option<&'a Tensor<1>>,
    layout: Layout,
    param: &'a ParamSpec,
    adapters: &'a [&'a AnyAdapter],
}

impl LinearBelow<'_> {
    /// The layer's output, `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        match self.adapters.split_last() {
            None => ops::linear(input, self.frozen().clone(), self.bias.cloned(), self.layout),
            Some((top, rest)) => top.linear(input, &LinearBelow { adapters: rest, ..*self }),
        }
    }

    /// Whether this is the frozen layer itself, without adapters that apply before.
    pub fn is_frozen(&self) -> bool {
        self.adapters.is_empty()
    }

    /// The layer's output with a low-rank update, `[rows, in]` to `[rows, out]`.
    pub fn with_low_rank(&self, input: Tensor<2>, update: LowRank<'_>) -> Tensor<2> {
        if self.is_frozen() {
            return ops::linear_low_rank(input, self.frozen().clone(), self.bias.cloned(), self.layout, update);
        }
        ops::low_rank_update(self.forward(input.clone()), input, update)
    }

    /// The layer's weight, composed; it lies as [`LinearBelow::layout`] says.
    pub fn weight(&self) -> Tensor<2> {
        self.adapters.iter().fold(self.base().clone(), |weight, it| it.weight(weight, self.base(), self.param))
    }

    /// The layer's bias.
    pub fn bias(&self) -> Option<Tensor<1>> {
        self.bias.map(|bias| self.adapters.iter().fold(bias.clone(), |bias, it| it.bias(bias)))
    }

    /// The frozen weight, in single precision.
    pub fn base(&self) -> &Tensor<2> {
        self.base.to_f32()
    }

    /// The frozen weight as it is kept, perhaps in half precision: for products, as of [`LinearBelow::apply`].
    pub fn frozen(&self) -> &Tensor<2> {
        &self.base.kept
    }

    /// How weights lie.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The parameter that is adapted.
    pub fn param(&self) -> &ParamSpec {
        self.param
    }

    /// `x W + b` for any weight that lies as [`LinearBelow::layout`] says, the [`frozen`](LinearBelow::frozen) one too.
    pub fn apply(&self, input: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        ops::linear(input, weight, bias, self.layout)
    }
}

/// The embedding below an adapter: the frozen one, with the adapters that apply before.
pub struct EmbeddingBelow<'a> {
    base: &'a Frozen,
    padding: Option<usize>,
    param: &'a ParamSpec,
    adapters: &'a [&'a AnyAdapter],
}

impl EmbeddingBelow<'_> {
    /// The rows, `[batch, seq]` to `[batch, seq, d_model]`.
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        match self.adapters.split_last() {
            None => self.look_up_frozen(ids),
            Some((top, rest)) => top.embedding(ids, &EmbeddingBelow { adapters: rest, ..*self }),
        }
    }

    /// Rows of the frozen table itself, `[batch, seq]` to `[batch, seq, d_model]`.
    pub fn look_up_frozen(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        ops::embedding(ids, self.base.kept.clone())
    }

    /// Rows of any table, `[rows, d]`, where the padding row gets no gradient.
    pub fn look_up(&self, ids: Tensor<2, Int>, table: Tensor<2>) -> Tensor<3> {
        let rows = burn::tensor::module::embedding(table, ids.clone());
        self.shield(&ids, rows)
    }

    /// Rows that were looked up, `[batch, seq, d]`: those of padding get no gradient.
    pub fn shield(&self, ids: &Tensor<2, Int>, rows: Tensor<3>) -> Tensor<3> {
        match self.padding {
            Some(padding) => {
                let mask = ids.clone().equal_elem(padding as i64).unsqueeze_dim::<3>(2).expand(rows.dims());
                rows.clone().mask_where(mask, rows.detach())
            }
            None => rows,
        }
    }

    /// The table, composed, `[rows, d_model]`.
    pub fn weight(&self) -> Tensor<2> {
        self.adapters.iter().fold(self.base().clone(), |weight, it| it.weight(weight, self.base(), self.param))
    }

    /// The frozen table, in single precision.
    pub fn base(&self) -> &Tensor<2> {
        self.base.to_f32()
    }

    /// The parameter that is adapted.
    pub fn param(&self) -> &ParamSpec {
        self.param
    }
}

/// Lets the layers of `burn::nn` take part, in models that are not ours: `self.fc.adapted(x)` for `self.fc.forward(x)`.
pub trait Adapted {
    /// The forward of the layer, through the active adapters of its weight.
    fn adapted<const D: usize>(&self, input: Tensor<D>) -> Tensor<D>;
}

impl Adapted for burn::nn::Linear {
    fn adapted<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        linear(input, &self.weight, self.bias.as_ref(), Layout::InOut)
    }
}
